//! Weights in panels.

use crate::error::{Error, expect_shape};
use crate::gemm::panel_mat::PanelMat;
use crate::gemm::panels::{PanelMut, PanelRef};
use crate::mat::{MatMut, MatRef};
use crate::params::name::Place;
use crate::params::tensor::{TensorMut, TensorRef};

/// The weight matrix of a linear map from `inputs` to `outputs` features, packed once and reused by every call.
///
/// Stored as panels of Wᵀ (`inputs x outputs`), for inference and training alike: the input gradient, which needs W the other way
/// round, transposes it as it reads. So weights may change between any two calls, and nothing has to be made again.
#[derive(Debug, Clone)]
pub struct Weights {
    panels: PanelMat,
}

impl Weights {
    /// Packs `w`, (outputs, inputs) as PyTorch and safetensors store it. A transposed view serves for (inputs, outputs).
    ///
    /// # Errors
    /// [`Error::Overflow`] if the size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn new(w: MatRef<'_>) -> Result<Self, Error> {
        Ok(Self { panels: PanelMat::from_mat(w.t())? })
    }

    /// Input features.
    pub fn inputs(&self) -> usize {
        self.panels.shape().0
    }

    /// Output features.
    pub fn outputs(&self) -> usize {
        self.panels.shape().1
    }

    /// Weight from input `i` to output `o`, or `None` outside the matrix.
    pub fn get(&self, o: usize, i: usize) -> Option<f32> {
        self.panels.get(i, o)
    }

    /// Copies the weights to `out`, (outputs, inputs).
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape differs.
    pub fn write_to(&self, out: MatMut<'_>) -> Result<(), Error> {
        expect_shape("output", (self.outputs(), self.inputs()), out.shape())?;
        self.panels.write_to(out.t())
    }

    /// Overwrites the weights with `w`, (outputs, inputs).
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape differs.
    pub fn read_from(&mut self, w: MatRef<'_>) -> Result<(), Error> {
        expect_shape("weights", (self.outputs(), self.inputs()), w.shape())?;
        self.panels.read_from(w.t())
    }

    /// Panels of Wᵀ, `inputs x outputs`.
    pub(crate) fn view(&self) -> PanelRef<'_> {
        self.panels.view()
    }
}

/// f(x) = x Wᵀ + b: weights and, if there is one, a bias.
#[derive(Debug, Clone)]
pub struct Affine {
    pub(crate) weights: Weights,
    /// `1 x outputs`: padded to whole panels, as the kernels load it.
    bias: Option<PanelMat>,
}

impl Affine {
    /// From weights (outputs, inputs) and a bias for each output.
    ///
    /// # Errors
    /// [`Error::Length`] if the bias has another length than W has outputs; [`Error::Overflow`] if the size overflows,
    /// [`Error::Memory`] if there is not so much memory.
    pub fn new(w: MatRef<'_>, bias: Option<&[f32]>) -> Result<Self, Error> {
        if let Some(bias) = bias {
            crate::error::expect_len("bias", w.rows(), bias.len())?;
        }
        let weights = Weights::new(w)?;
        let bias = bias.map(|b| PanelMat::from_mat(MatRef::new(b, 1, b.len())?)).transpose()?;
        Ok(Self { weights, bias })
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The weights, to be changed.
    pub fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }

    /// The bias.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(|b| &b.as_slice()[..b.shape().1])
    }

    /// The bias, to be changed.
    pub fn bias_mut(&mut self) -> Option<&mut [f32]> {
        let outputs = self.outputs();
        self.bias.as_mut().map(|b| &mut b.as_mut_slice()[..outputs])
    }

    /// The bias, padded to whole panels.
    pub(crate) fn padded_bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(PanelMat::as_slice)
    }

    /// Calls `see` with weights and bias by their names at `place`.
    pub(crate) fn visit<'a>(&'a self, place: Place, see: &mut dyn FnMut(TensorRef<'a>)) {
        see(TensorRef::new(place.weight(), self.weights.view()));
        if let Some(bias) = &self.bias {
            see(TensorRef::new(place.bias(), bias.view()));
        }
    }

    /// As [`Affine::visit`], to be changed.
    pub(crate) fn visit_mut<'a>(&'a mut self, place: Place, see: &mut dyn FnMut(TensorMut<'a>)) {
        see(TensorMut::new(place.weight(), self.weights.panels.view_mut()));
        if let Some(bias) = &mut self.bias {
            see(TensorMut::new(place.bias(), bias.view_mut()));
        }
    }

    /// Input features.
    pub fn inputs(&self) -> usize {
        self.weights.inputs()
    }

    /// Output features.
    pub fn outputs(&self) -> usize {
        self.weights.outputs()
    }
}

/// A vector of parameters that is not a bias: a gain, a shift or a scale.
#[derive(Debug, Clone)]
pub struct Vector {
    /// `1 x len`: padded to whole panels, as the kernels load it.
    values: PanelMat,
}

impl Vector {
    /// From its values.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not so much memory.
    pub fn new(values: &[f32]) -> Result<Self, Error> {
        Ok(Self { values: PanelMat::from_mat(MatRef::new(values, 1, values.len())?)? })
    }

    /// `len` times the same value.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn filled(len: usize, value: f32) -> Result<Self, Error> {
        let mut vector = Self { values: PanelMat::zeros(1, len)? };
        vector.as_mut_slice().fill(value);
        Ok(vector)
    }

    /// The values.
    pub fn as_slice(&self) -> &[f32] {
        &self.values.as_slice()[..self.values.shape().1]
    }

    /// The values, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        let len = self.values.shape().1;
        &mut self.values.as_mut_slice()[..len]
    }

    /// Padded to whole panels.
    pub(crate) fn padded(&self) -> &[f32] {
        self.values.as_slice()
    }

    pub(crate) fn view(&self) -> PanelRef<'_> {
        self.values.view()
    }

    pub(crate) fn view_mut(&mut self) -> PanelMut<'_> {
        self.values.view_mut()
    }
}
