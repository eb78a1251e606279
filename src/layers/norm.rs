//! A norm as a layer of its own: y = φ(N(x)).

use super::{Compiled, Layer};
use crate::Activation;
use crate::error::{Error, expect_len};
use crate::params::name::{Part, Place, Role, Within};
use crate::params::tensor::{TensorMut, TensorRef};
use crate::parts::compile_one;
use crate::program::Program;
use crate::program::form::{Form, NormForm};
use crate::program::norm::Norm;
use crate::weights::{Affine, Vector};
use std::sync::Arc;

/// y = φ(N(x)): what stands at the end of a pre-norm network, or, with an activation, before its head. x, y: `n x width`.
///
/// ```
/// use resblock::{Activation, Block, BlockForm, Dropout, Init, Linear, Norm, NormLayer, Sequence};
/// let (mut init, dropout) = (Init::he(1), Dropout { hidden: 0.2, ..Dropout::default() });
/// let tabular = Sequence::new([
///     Linear::with_init(10, 64, Activation::Identity, &mut init)?.into(),
///     Block::with_form(&BlockForm::tabular(64, 128, dropout), &mut init)?.into(),
///     NormLayer::new(64, Norm::batch(1e-5), Activation::Relu)?.into(),
///     Linear::with_init(64, 3, Activation::Identity, &mut init)?.into(),
/// ])?;
/// # Ok::<(), resblock::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct NormLayer {
    norm: Norm,
    phi: Activation,
    vectors: Vec<Vector>,
    program: Arc<Program>,
}

/// What a vector of a norm is at first.
pub(super) fn initial(role: Role) -> f32 {
    if matches!(role, Role::Gain | Role::RunningVariance) { 1.0 } else { 0.0 }
}

/// What errors call a vector.
pub(super) fn operand(role: Role) -> &'static str {
    match role {
        Role::Gain => "gain",
        Role::Shift => "shift",
        Role::RunningMean => "running_mean",
        Role::RunningVariance => "running_var",
        _ => "scale",
    }
}

impl NormLayer {
    /// Shifts and running means 0, gains and running variances 1.
    ///
    /// # Errors
    /// [`Error::Setting`] if ε is not finite and larger than 0, or the width 0; [`Error::Overflow`] if a size overflows, [`Error::Memory`].
    pub fn new(width: usize, norm: Norm, phi: Activation) -> Result<Self, Error> {
        norm.check("width", width)?;
        let vectors = norm.roles().map(|role| Vector::filled(width, initial(role)));
        let vectors = vectors.collect::<Result<_, _>>()?;
        Self::from_vectors(width, norm, phi, vectors)
    }

    /// From its vectors, as far as the norm has them: gain, shift, running mean, running variance.
    ///
    /// # Errors
    /// [`Error::Setting`] as [`NormLayer::new`]; [`Error::Length`] naming `vectors` if they are not as many as the norm has, or the one that has
    /// another length than the width.
    pub fn from_vectors(width: usize, norm: Norm, phi: Activation, vectors: Vec<Vector>) -> Result<Self, Error> {
        norm.check("width", width)?;
        expect_len("vectors", norm.roles().count(), vectors.len())?;
        for (role, vector) in norm.roles().zip(&vectors) {
            expect_len(operand(role), width, vector.as_slice().len())?;
        }
        Ok(Self { norm, phi, vectors, program: compile_one(Form::Norm(NormForm { width, norm, phi })) })
    }

    /// The norm.
    pub fn norm(&self) -> Norm {
        self.norm
    }

    /// The activation.
    pub fn activation(&self) -> Activation {
        self.phi
    }
}

impl Compiled for NormLayer {
    fn program(&self) -> &Arc<Program> {
        &self.program
    }
    fn replace_program(&mut self, program: Arc<Program>) {
        self.program = program;
    }
    fn tensors<'a>(&'a self, within: Within, see: &mut dyn FnMut(TensorRef<'a>)) {
        for (role, vector) in self.norm.roles().zip(&self.vectors) {
            see(TensorRef::new(within.part(Part::Norm).tensor(role), vector.view()));
        }
    }
    fn tensors_mut<'a>(&'a mut self, within: Within, see: &mut dyn FnMut(TensorMut<'a>)) {
        for (role, vector) in self.norm.roles().zip(&mut self.vectors) {
            see(TensorMut::new(within.part(Part::Norm).tensor(role), vector.view_mut()));
        }
    }
}

impl Layer for NormLayer {
    fn affine(&self, _: usize) -> Option<&Affine> {
        None
    }
    fn affine_mut(&mut self, _: usize) -> Option<&mut Affine> {
        None
    }
    fn affine_name(&self, _: usize) -> Place {
        Part::Norm.into()
    }
    fn vector(&self, index: usize) -> Option<&Vector> {
        self.vectors.get(index)
    }
    fn vector_mut(&mut self, index: usize) -> Option<&mut Vector> {
        self.vectors.get_mut(index)
    }
}
