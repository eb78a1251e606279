//! A tensor to be saved: a name, a shape, and values that are laid out row by row when they are written.

use crate::gemm::panels::PanelRef;
use crate::layers::Layer;
use crate::layers::gradients::Parameter;
use safetensors::Dtype;

/// A tensor of a file, borrowed from the network or the optimiser.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Values<'a> {
    Parameter(Parameter<'a>),
    /// Moments of weights, laid out as the weights: panels of (inputs, outputs).
    Panels(PanelRef<'a>),
    /// Moments of a bias.
    Slice(&'a [f32]),
    /// Moments before the first step.
    Zeros,
    Number(f32),
    Count(u64),
}

/// The parameters of a network, each with the index of its affine map.
pub(super) fn parameters<L: Layer>(layer: &L) -> impl Iterator<Item = (usize, Parameter<'_>)> {
    (0..layer.affine_count()).flat_map(|i| {
        let name = layer.affine_name(i);
        layer.affine(i).into_iter().flat_map(move |map| Parameter::of(name, map)).map(move |p| (i, p))
    })
}

impl<'a> Tensor<'a> {
    pub(super) fn parameter(parameter: Parameter<'a>) -> Self {
        let name = parameter.to_string();
        Self { name, shape: shape_of(&parameter), values: Values::Parameter(parameter) }
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
        let mut write = |value: f32| bytes.extend(value.to_le_bytes());
        match self.values {
            Values::Parameter(p) => {
                let (rows, cols) = p.shape();
                (0..rows).flat_map(|i| (0..cols).filter_map(move |j| p.get(i, j))).for_each(write);
            }
            Values::Panels(p) => {
                (0..p.cols()).flat_map(|o| (0..p.rows()).filter_map(move |i| p.get(i, o))).for_each(write);
            }
            Values::Slice(values) => values.iter().copied().for_each(write),
            Values::Zeros => (0..self.shape.iter().product()).for_each(|_| write(0.0)),
            Values::Number(value) => write(value),
            // Nobody takes 2^63 steps.
            Values::Count(steps) => bytes.extend(i64::try_from(steps).unwrap_or(i64::MAX).to_le_bytes()),
        }
    }
}

/// The shape in files, as PyTorch has it: a bias has one dimension.
pub(super) fn shape_of(parameter: &Parameter<'_>) -> Vec<usize> {
    match parameter.shape() {
        (_, len) if parameter.is_bias() => vec![len],
        (outputs, inputs) => vec![outputs, inputs],
    }
}
