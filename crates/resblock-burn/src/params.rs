//! Parameters: which tensors a formula has, and how calls see them.

use crate::view;
use burn::backend::flex::FlexTensor;
use resblock::{AffineGradMut, AffineRef, Error, Formula, GradsMut, MatMut, ParamsRef, Role, TensorName};

/// A tensor of a formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spec {
    pub(crate) name: TensorName,
    pub(crate) place: Place,
    /// (outputs, inputs) of weights, (1, length) of all else.
    rows: usize,
    cols: usize,
}

/// What a tensor is to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Those of the next affine map.
    Weights,
    /// That of the last affine map.
    Bias,
    /// The next vector: learned.
    Vector,
    /// The next vector: a running average.
    Running,
}

impl Spec {
    /// Those of formulas one after the other.
    pub(crate) fn of_chain(formulas: &[Formula]) -> Vec<Self> {
        let of_layer = |(layer, formula): (usize, &Formula)| {
            let within = |name: TensorName| match formulas.len() {
                1 => name,
                _ => resblock::Place { layer: Some(layer), ..name.place }.tensor(name.role),
            };
            formula.tensors().into_iter().map(|(name, shape)| Self::new(within(name), shape)).collect::<Vec<_>>()
        };
        formulas.iter().enumerate().flat_map(of_layer).collect()
    }

    fn new(name: TensorName, (rows, cols): (usize, usize)) -> Self {
        let place = match name.role {
            Role::Weight => Place::Weights,
            Role::Bias => Place::Bias,
            role if role.is_learned() => Place::Vector,
            _ => Place::Running,
        };
        Self { name, place, rows, cols }
    }

    /// Its shape as burn has it: weights are (inputs, outputs).
    pub(crate) fn dims(&self) -> Vec<usize> {
        if self.place == Place::Weights { vec![self.cols, self.rows] } else { vec![self.cols] }
    }

    /// Whether these are its dimensions.
    pub(crate) fn has(&self, dims: &[usize]) -> bool {
        if self.place == Place::Weights { *dims == [self.cols, self.rows] } else { *dims == [self.cols] }
    }

    /// A tensor of this shape as calls can read it: itself, where its strides allow it.
    pub(crate) fn readable(&self, tensor: FlexTensor) -> FlexTensor {
        if self.place == Place::Weights { view::with_rows(tensor) } else { view::contiguous(tensor) }
    }
}

/// Calls `f` with the parameters where they are. `tensors`: readable ones, of these specs.
pub(crate) fn with_params<R>(
    specs: &[Spec],
    tensors: &[FlexTensor],
    f: impl FnOnce(ParamsRef<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    let (mut affines, mut vectors): (Vec<AffineRef<'_>>, Vec<&[f32]>) = Default::default();
    for (spec, tensor) in specs.iter().zip(tensors) {
        match spec.place {
            Place::Weights => affines.push(AffineRef { weights: view::matrix(tensor)?.t(), bias: None }),
            Place::Bias => {
                if let Some(map) = affines.last_mut() {
                    map.bias = Some(view::line(tensor));
                }
            }
            Place::Vector | Place::Running => vectors.push(view::line(tensor)),
        }
    }
    f(ParamsRef { affines: &affines, vectors: &vectors })
}

/// Calls `f` with a place for each gradient that is wanted, and returns these, in the shape of the parameters.
pub(crate) fn with_grads(
    specs: &[Spec],
    wanted: &[bool],
    f: impl FnOnce(GradsMut<'_, '_>) -> Result<(), Error>,
) -> Result<Vec<FlexTensor>, Error> {
    let mut buffers: Vec<_> =
        specs.iter().zip(wanted).map(|(spec, &wanted)| wanted.then(|| vec![0.0; spec.rows * spec.cols])).collect();
    let (mut affines, mut vectors) = (Vec::new(), Vec::new());
    for (spec, buffer) in specs.iter().zip(&mut buffers) {
        let buffer = buffer.as_deref_mut();
        match spec.place {
            Place::Weights => {
                let weights = buffer.map(|dw| MatMut::new(dw, spec.cols, spec.rows)).transpose()?;
                affines.push(AffineGradMut { weights: weights.map(MatMut::t), bias: None });
            }
            Place::Bias => {
                if let Some(map) = affines.last_mut() {
                    map.bias = buffer;
                }
            }
            Place::Vector | Place::Running => vectors.push(buffer),
        }
    }
    f(GradsMut { affines: &mut affines, vectors: &mut vectors })?;
    let tensors = specs.iter().zip(buffers).filter_map(|(spec, grad)| Some(view::tensor(grad?, spec.dims())));
    Ok(tensors.collect())
}
