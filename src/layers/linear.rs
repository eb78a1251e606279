//! y = phi(x Wᵀ + b) + skip.

use super::init::Init;
use super::{Compiled, Layer, Pass, check, network, record};
use crate::Activation;
use crate::context::Context;
use crate::error::{Error, expect_shape};
use crate::mat::{MatMut, MatRef};
use crate::params::name::{Part, Place, Within};
use crate::params::tensor::{TensorMut, TensorRef};
use crate::parts::compile_one;
use crate::program::Program;
use crate::program::form::{self, Form, Skip};
use crate::run::forward;
use crate::run::workspace::Workspace;
use crate::weights::{Affine, Vector};
use std::sync::Arc;

/// A fused linear layer: y = phi(x Wᵀ + b), or y = x + phi(x Wᵀ + b), in one pass. x: `n x inputs`, W: (outputs, inputs),
/// y: `n x outputs`.
#[derive(Debug, Clone)]
pub struct Linear {
    affine: Affine,
    phi: Activation,
    skip: bool,
    program: Arc<Program>,
}

impl Linear {
    /// From parameters.
    pub fn new(affine: Affine, phi: Activation) -> Self {
        Self::compile(affine, phi, false)
    }

    fn compile(affine: Affine, phi: Activation, skip: bool) -> Self {
        let form = form::Linear { inputs: affine.inputs(), outputs: affine.outputs(), phi, skip };
        Self { program: compile_one(Form::Linear(form)), affine, phi, skip }
    }

    /// With weights drawn by `init` and a bias of zeros.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn with_init(inputs: usize, outputs: usize, phi: Activation, init: &mut Init) -> Result<Self, Error> {
        Ok(Self::new(init.affine(inputs, outputs, 1.0)?, phi))
    }

    /// The same layer with its input added to its output: y = x + phi(x Wᵀ + b).
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are as many outputs as inputs.
    pub fn with_skip(self) -> Result<Self, Error> {
        let n = self.affine.inputs();
        expect_shape("weights", (n, n), (self.affine.outputs(), n))?;
        Ok(Self::compile(self.affine, self.phi, true))
    }

    /// W and b.
    pub fn affine_map(&self) -> &Affine {
        &self.affine
    }

    /// The activation.
    pub fn activation(&self) -> Activation {
        self.phi
    }

    /// Whether the input is added.
    pub fn skip(&self) -> Skip {
        if self.skip { Skip::Identity } else { Skip::None }
    }

    /// y = phi(x Wᵀ + b) + skip, with a skip of the caller's choosing (`n x outputs`), nothing kept.
    ///
    /// # Errors
    /// [`Error::Shape`] naming `x`, `skip` or `y`; [`Error::Setting`] if the layer has a skip of its own.
    pub fn infer_with_skip(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        x: MatRef<'_>,
        skip: MatRef<'_>,
        y: MatMut<'_>,
    ) -> Result<(), Error> {
        self.check_skip(x, skip, &y)?;
        forward(ctx, ws, network(self)?, (x, Some(skip)), y, None).map(|_| ())
    }

    /// As [`Linear::infer_with_skip`], recorded. The gradient of the skip is dy itself; backward gives the others.
    ///
    /// # Errors
    /// As [`Linear::infer_with_skip`].
    pub fn forward_with_skip<'a>(
        &'a self,
        ctx: &Context,
        ws: &'a mut Workspace,
        x: MatRef<'_>,
        skip: MatRef<'_>,
        y: MatMut<'_>,
    ) -> Result<Pass<'a, Self>, Error> {
        self.check_skip(x, skip, &y)?;
        record(ctx, ws, network(self)?, (x, Some(skip)), y)?;
        Ok(Pass { layer: self, ws, ctx: *ctx, rows: x.rows() })
    }

    /// Weights and bias, to be changed, by their names at a place that is not this layer's own.
    pub(super) fn tensors_at<'a>(&'a mut self, place: Place, see: &mut dyn FnMut(TensorMut<'a>)) {
        self.affine.visit_mut(place, see);
    }

    fn check_skip(&self, x: MatRef<'_>, skip: MatRef<'_>, y: &MatMut<'_>) -> Result<(), Error> {
        check(self, x, y)?;
        expect_shape("skip", y.shape(), skip.shape())?;
        if self.skip {
            return Err(Error::Setting { operand: "skip", reason: "this layer already adds its input" });
        }
        Ok(())
    }
}

impl Compiled for Linear {
    fn program(&self) -> &Arc<Program> {
        &self.program
    }
    fn replace_program(&mut self, program: Arc<Program>) {
        self.program = program;
    }
    fn tensors<'a>(&'a self, within: Within, see: &mut dyn FnMut(TensorRef<'a>)) {
        self.affine.visit(within.part(Part::Linear), see);
    }
    fn tensors_mut<'a>(&'a mut self, within: Within, see: &mut dyn FnMut(TensorMut<'a>)) {
        self.affine.visit_mut(within.part(Part::Linear), see);
    }
}

impl Layer for Linear {
    fn affine(&self, index: usize) -> Option<&Affine> {
        (index == 0).then_some(&self.affine)
    }
    fn affine_mut(&mut self, index: usize) -> Option<&mut Affine> {
        (index == 0).then_some(&mut self.affine)
    }
    fn affine_name(&self, _: usize) -> Place {
        Part::Linear.into()
    }
    fn vector(&self, _: usize) -> Option<&Vector> {
        None
    }
    fn vector_mut(&mut self, _: usize) -> Option<&mut Vector> {
        None
    }
}
