//! y = x + phi(x W1ᵀ + b1) W2ᵀ + b2, and the same without x.

use super::init::Init;
use super::{Compiled, Layer};
use crate::Activation;
use crate::error::{Error, expect_shape};
use crate::params::name::{Part, Place};
use crate::params::tensor::TensorMut;
use crate::parts::compile_one;
use crate::program::Program;
use crate::program::form::{self, Form};
use crate::weights::Affine;
use std::sync::Arc;

/// Whether a layer adds its input to its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Skip {
    /// y = x + G(x): residual.
    Identity,
    /// y = G(x): plain (vanilla).
    None,
}

/// Two weight layers with an activation between them: y = x + G(x) or y = G(x), G(x) = phi(x W1ᵀ + b1) W2ᵀ + b2.
/// x, y: `n x d`, W1: (h, d), W2: (d, h). The hidden activations stay in cache between the two.
#[derive(Debug, Clone)]
pub struct Block {
    first: Affine,
    second: Affine,
    phi: Activation,
    skip: Skip,
    program: Arc<Program>,
}

impl Block {
    /// From parameters.
    ///
    /// # Errors
    /// [`Error::Shape`] if W2 is not (d, h) where W1 is (h, d).
    pub fn new(first: Affine, second: Affine, phi: Activation, skip: Skip) -> Result<Self, Error> {
        let expected = (first.inputs(), first.outputs());
        expect_shape("second weights", expected, (second.outputs(), second.inputs()))?;
        let form = form::Block {
            inputs: first.inputs(),
            hidden: first.outputs(),
            outputs: second.outputs(),
            phi,
            skip: skip == Skip::Identity,
        };
        Ok(Self { program: compile_one(Form::Block(form)), first, second, phi, skip })
    }

    /// y = x + G(x) on `d` features with `h` hidden ones, weights drawn by `init`, biases zero.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn residual(d: usize, h: usize, phi: Activation, init: &mut Init) -> Result<Self, Error> {
        Self::with_init(d, h, phi, Skip::Identity, 1.0, init)
    }

    /// y = G(x), otherwise as [`Block::residual`].
    ///
    /// # Errors
    /// [`Error::Overflow`] if a size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn plain(d: usize, h: usize, phi: Activation, init: &mut Init) -> Result<Self, Error> {
        Self::with_init(d, h, phi, Skip::None, 1.0, init)
    }

    /// As [`Block::residual`] or [`Block::plain`], with the second weights scaled by `branch_scale`.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn with_init(
        d: usize,
        h: usize,
        phi: Activation,
        skip: Skip,
        branch_scale: f32,
        init: &mut Init,
    ) -> Result<Self, Error> {
        Self::new(init.affine(d, h, 1.0)?, init.affine(h, d, branch_scale)?, phi, skip)
    }

    /// W1 and b1.
    pub fn first(&self) -> &Affine {
        &self.first
    }

    /// W2 and b2.
    pub fn second(&self) -> &Affine {
        &self.second
    }

    /// The activation.
    pub fn activation(&self) -> Activation {
        self.phi
    }

    /// Whether the input is added.
    pub fn skip(&self) -> Skip {
        self.skip
    }
}

impl Block {
    /// Parameters by their names in block `block` of a stack, or by themselves.
    pub(super) fn tensors_mut(&mut self, block: Option<usize>) -> impl Iterator<Item = TensorMut<'_>> {
        let second = self.second.tensors_mut(Place { layer: None, block, part: Part::Second });
        self.first.tensors_mut(Place { layer: None, block, part: Part::First }).chain(second)
    }
}

impl Compiled for Block {
    fn program(&self) -> &Arc<Program> {
        &self.program
    }
}

impl Layer for Block {
    fn inputs(&self) -> usize {
        self.first.inputs()
    }
    fn outputs(&self) -> usize {
        self.second.outputs()
    }
    fn affine_count(&self) -> usize {
        2
    }
    fn affine(&self, index: usize) -> Option<&Affine> {
        [&self.first, &self.second].get(index).copied()
    }
    fn affine_mut(&mut self, index: usize) -> Option<&mut Affine> {
        match index {
            0 => Some(&mut self.first),
            1 => Some(&mut self.second),
            _ => None,
        }
    }
    fn affine_name(&self, index: usize) -> Place {
        if index == 0 { Part::First.into() } else { Part::Second.into() }
    }
    fn parameters_mut(&mut self) -> impl Iterator<Item = TensorMut<'_>> {
        self.tensors_mut(None)
    }
}
