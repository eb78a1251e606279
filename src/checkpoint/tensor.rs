//! A tensor to be saved: a name, a shape, and values that are laid out row by row when they are written.

use crate::params::tensor::TensorRef;
use safetensors::Dtype;

/// A tensor of a file, borrowed from the network or the optimiser.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values<'a>,
}

#[derive(Debug, Clone)]
pub(super) enum Values<'a> {
    /// A parameter or a moment.
    Tensor(TensorRef<'a>),
    /// Parameters one after the other along the outputs, matrices (inputs, outputs) or not.
    Pieces(Vec<TensorRef<'a>>, bool),
    /// Moments before the first step.
    Zeros,
    Number(f32),
    Count(u64),
}

impl<'a> Tensor<'a> {
    pub(super) fn parameter(parameter: TensorRef<'a>) -> Self {
        Self { name: parameter.to_string(), shape: parameter.spec().dims(), values: Values::Tensor(parameter) }
    }

    /// The parameter that this is, under our name.
    pub(super) fn as_parameter(&self) -> Option<&TensorRef<'a>> {
        match &self.values {
            Values::Tensor(tensor) if tensor.to_string() == self.name => Some(tensor),
            _ => None,
        }
    }

    pub(super) fn number(name: String, values: Values<'a>) -> Self {
        Self { name, shape: Vec::new(), values }
    }

    pub(super) fn dtype(&self) -> Dtype {
        // Signed, because PyTorch hardly knows another.
        if matches!(self.values, Values::Count(_)) { Dtype::I64 } else { Dtype::F32 }
    }

    /// Bytes of the values, or None if they cannot be counted as readers do, who count bits.
    pub(super) fn len(&self) -> Option<usize> {
        let bits = self.shape.iter().try_fold(self.dtype().bitsize(), |n, &dim| n.checked_mul(dim))?;
        Some(bits / 8)
    }

    /// Appends the values, row by row.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        if self.len() == Some(0) {
            return; // at once, whatever the sizes beside the 0
        }
        let mut write = |value: f32| bytes.extend(value.to_le_bytes());
        match &self.values {
            Values::Tensor(tensor) => tensor.iter().for_each(write),
            Values::Pieces(pieces, false) => pieces.iter().flat_map(TensorRef::iter).for_each(write),
            Values::Pieces(pieces, true) => {
                for input in 0..pieces.first().map_or(0, |piece| piece.shape().1) {
                    for piece in pieces {
                        (0..piece.shape().0).filter_map(|output| piece.get(output, input)).for_each(&mut write);
                    }
                }
            }
            Values::Zeros => (0..self.shape.iter().product()).for_each(|_| write(0.0)),
            Values::Number(value) => write(*value),
            // Nobody takes 2^63 steps.
            Values::Count(steps) => bytes.extend(i64::try_from(*steps).unwrap_or(i64::MAX).to_le_bytes()),
        }
    }
}
