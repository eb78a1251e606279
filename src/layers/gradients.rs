//! Parameters and gradients that can be named and iterated.

use super::Layer;
use super::affines::Affines;
use super::summary::Sums;
use crate::error::Error;
use crate::gemm::buffers::zeros;
use crate::gemm::panels::{PANEL, PanelMat};
use crate::mat::{MatMut, MatRef};
use crate::weights::{Affine, Weights};
use std::fmt;

/// Which affine map of a network. Displays as a path: `input`, `blocks.3.first`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AffineName {
    /// The only one of a [`crate::Linear`].
    Linear,
    /// W1, b1 of a [`crate::Block`].
    First,
    /// W2, b2 of a [`crate::Block`].
    Second,
    /// The input projection of a [`crate::Stack`].
    Input,
    /// Block number and whether it is the second map of that block of a [`crate::Stack`].
    Block(usize, bool),
    /// The output projection of a [`crate::Stack`].
    Output,
}

impl fmt::Display for AffineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AffineName::Linear => write!(f, "linear"),
            AffineName::First => write!(f, "first"),
            AffineName::Second => write!(f, "second"),
            AffineName::Input => write!(f, "input"),
            AffineName::Block(i, second) => write!(f, "blocks.{i}.{}", if *second { "second" } else { "first" }),
            AffineName::Output => write!(f, "output"),
        }
    }
}

/// A parameter or a gradient: a name, a shape and values to read. Made on the fly; costs nothing to iterate.
#[derive(Debug, Clone, Copy)]
pub struct Parameter<'a> {
    affine: AffineName,
    values: Values<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Values<'a> {
    Weights(&'a Weights),
    /// Panels of the transpose, (inputs, outputs).
    Gradient(&'a PanelMat),
    Bias(&'a [f32]),
}

impl<'a> Parameter<'a> {
    pub(crate) fn of(affine: AffineName, map: &'a Affine) -> impl Iterator<Item = Parameter<'a>> {
        let bias = map.bias().map(|bias| Parameter { affine, values: Values::Bias(bias) });
        std::iter::once(Parameter { affine, values: Values::Weights(map.weights()) }).chain(bias)
    }

    /// Whose parameter it is.
    pub fn affine(&self) -> AffineName {
        self.affine
    }

    /// True for a bias, false for weights.
    pub fn is_bias(&self) -> bool {
        matches!(self.values, Values::Bias(_))
    }

    /// (outputs, inputs) of weights, (1, outputs) of a bias.
    pub fn shape(&self) -> (usize, usize) {
        match self.values {
            Values::Weights(w) => (w.outputs(), w.inputs()),
            Values::Gradient(g) => (g.shape().1, g.shape().0),
            Values::Bias(b) => (1, b.len()),
        }
    }

    /// Element (i, j) of the shape, or `None` outside.
    pub fn get(&self, i: usize, j: usize) -> Option<f32> {
        match self.values {
            Values::Weights(w) => w.get(i, j),
            Values::Gradient(g) => g.get(j, i),
            Values::Bias(b) => (i == 0).then(|| b.get(j).copied()).flatten(),
        }
    }

    /// Copies the values to `out`, of the same shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape differs.
    pub fn write_to(&self, mut out: MatMut<'_>) -> Result<(), Error> {
        crate::error::expect_shape("output", self.shape(), out.shape())?;
        match self.values {
            Values::Weights(w) => w.write_to(out),
            Values::Gradient(g) => g.write_to(out.t()),
            Values::Bias(b) => {
                for (j, &v) in b.iter().enumerate() {
                    out.set(0, j, v);
                }
                Ok(())
            }
        }
    }

    /// Sum of squares, in f64, of each column modulo 16 by itself and then over these (columns are outputs, for weights): an order
    /// that does not depend on the machine.
    pub fn norm_squared(&self) -> f64 {
        self.sums().squares()
    }

    pub(super) fn sums(&self) -> Sums {
        match self.values {
            Values::Weights(w) => Sums::of(w.view().lines()),
            Values::Gradient(g) => Sums::of(g.view().lines()),
            Values::Bias(b) => Sums::of(b.chunks(PANEL)),
        }
    }
}

impl fmt::Display for Parameter<'_> {
    /// `blocks.3.first.weight`, say: the name alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.affine, if self.is_bias() { "bias" } else { "weight" })
    }
}

/// Gradients of one affine map. What was declined is None.
#[derive(Debug, Clone)]
pub(crate) struct AffineGrad {
    name: AffineName,
    /// Panels of dWᵀ, (inputs, outputs), as the weights are stored: an optimiser is elementwise on both.
    pub(crate) dw: Option<PanelMat>,
    pub(crate) db: Option<Vec<f32>>,
}

/// The parameter gradients of a network: made once, written by every backward pass.
#[derive(Debug, Clone)]
pub struct Gradients {
    pub(crate) affines: Vec<AffineGrad>,
}

impl Gradients {
    /// Zero gradients for every parameter of `layer`.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn new<L: Layer>(layer: &L) -> Result<Self, Error> {
        let one = |i| -> Result<_, Error> {
            let name = layer.affine_name(i);
            let Some(map) = layer.affine(i) else { return Ok(AffineGrad { name, dw: None, db: None }) };
            let dw = Some(PanelMat::zeros(map.inputs(), map.outputs())?);
            Ok(AffineGrad { name, dw, db: map.bias().map(|b| zeros(b.len())).transpose()? })
        };
        Ok(Self { affines: (0..layer.affine_count()).map(one).collect::<Result<_, _>>()? })
    }

    /// Declines the weight gradient of a map: backward no longer computes it, optimisers leave those weights as they are.
    /// False if there is no such map.
    pub fn decline_weights(&mut self, name: AffineName) -> bool {
        self.find(name).map(|g| g.dw = None).is_some()
    }

    /// Declines the bias gradient of a map. False if there is no such map.
    pub fn decline_bias(&mut self, name: AffineName) -> bool {
        self.find(name).map(|g| g.db = None).is_some()
    }

    fn find(&mut self, name: AffineName) -> Option<&mut AffineGrad> {
        self.affines.iter_mut().find(|g| g.name == name)
    }

    /// Every gradient that is computed, named as its parameter.
    pub fn iter(&self) -> impl Iterator<Item = Parameter<'_>> {
        self.affines.iter().flat_map(|g| {
            let dw = g.dw.as_ref().map(Values::Gradient);
            let db = g.db.as_deref().map(Values::Bias);
            dw.into_iter().chain(db).map(|values| Parameter { affine: g.name, values })
        })
    }

    /// Sets a weight gradient (outputs, inputs): where an accumulating backward goes on from. False if it was declined or there
    /// is no such map.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape differs.
    pub fn set_weights(&mut self, name: AffineName, dw: MatRef<'_>) -> Result<bool, Error> {
        let Some(slot) = self.find(name).and_then(|g| g.dw.as_mut()) else { return Ok(false) };
        let (inputs, outputs) = slot.shape();
        crate::error::expect_shape("dw", (outputs, inputs), dw.shape())?;
        slot.read_from(dw.t()).map(|()| true)
    }

    /// Sets a bias gradient. False if it was declined or there is no such map.
    ///
    /// # Errors
    /// [`Error::Length`] if the length differs.
    pub fn set_bias(&mut self, name: AffineName, db: &[f32]) -> Result<bool, Error> {
        let Some(slot) = self.find(name).and_then(|g| g.db.as_mut()) else { return Ok(false) };
        crate::error::expect_len("db", slot.len(), db.len())?;
        slot.copy_from_slice(db);
        Ok(true)
    }

    /// Every value as stored, padding included.
    fn values_mut(&mut self) -> impl Iterator<Item = &mut f32> {
        self.affines.iter_mut().flat_map(|grad| {
            let dw = grad.dw.iter_mut().flat_map(|dw| dw.as_mut_slice());
            dw.chain(grad.db.iter_mut().flatten())
        })
    }

    /// Multiplies every gradient by `factor`, rounding it once more: the factor of a norm clip, say.
    ///
    /// Not for the mean over micro-batches: pieces of 3 and 2 rows would weigh the same. Give the loss the divisor of the whole batch
    /// ([`crate::Divisor`]), accumulate, and there is nothing to scale: the bits are those of the batch.
    pub fn scale(&mut self, factor: f32) {
        self.values_mut().for_each(|v| *v *= factor);
    }

    /// That these gradients belong to a network of `layer`'s shape.
    pub(crate) fn check(&self, operand: &'static str, layer: &dyn Affines) -> Result<(), Error> {
        for index in 0..layer.count().max(self.affines.len()) {
            let fits = layer.get(index).zip(self.affines.get(index)).is_some_and(|(map, grad)| {
                let shape = (map.inputs(), map.outputs());
                grad.dw.as_ref().is_none_or(|dw| dw.shape() == shape)
                    && grad.db.as_ref().is_none_or(|db| map.bias().is_some_and(|b| b.len() == db.len()))
            });
            if !fits {
                return Err(Error::Mismatch { operand, index });
            }
        }
        Ok(())
    }
}
