//! Residual blocks of two weight layers, in any of the forms of [`BlockForm`].

use super::init::Init;
use super::norm::{initial, operand};
use super::{Compiled, Layer};
use crate::Activation;
use crate::error::{Error, expect_len, expect_shape};
use crate::params::name::{Part, Place, Role, TensorName, Within};
use crate::params::tensor::{TensorMut, TensorRef};
use crate::parts::compile_one;
use crate::program::Program;
use crate::program::form::{BlockForm, BranchScale, Form, Skip};
use crate::program::norm::Norm;
use crate::weights::{Affine, Vector};
use std::sync::Arc;

/// Two weight layers with an activation between them: y = x + G(x) or y = G(x), G(x) = phi(x W1ᵀ + b1) W2ᵀ + b2, and all that
/// [`BlockForm`] has beside them. x, y: `n x d`, W1: (h, d), W2: (d, h). The hidden activations stay in cache between the two.
#[derive(Debug, Clone)]
pub struct Block {
    form: BlockForm,
    /// W1, W3, W2, Ws, as far as the form has them.
    affines: Vec<Affine>,
    /// Those of the norms before the branch and inside, the scale, those of the norms of the branch and after the skip.
    vectors: Vec<Vector>,
    program: Arc<Program>,
}

/// The affine maps of a form, in the order of its program: part, inputs, outputs, factor on initial weights.
fn maps(form: &BlockForm) -> impl Iterator<Item = (Part, usize, usize, f32)> + use<> {
    let BlockForm { inputs: d, hidden: h, outputs: m, gated, skip, init_scales: [s1, s2], .. } = *form;
    let third = gated.then_some((Part::Third, d, h, s1));
    let shortcut = (skip == Skip::Projection).then_some((Part::Shortcut, d, m, 1.0));
    [Some((Part::First, d, h, s1)), third, Some((Part::Second, h, m, s2)), shortcut].into_iter().flatten()
}

/// The vectors of a form, in the order of its program: part, role, length, initial value.
fn vectors(form: &BlockForm) -> impl Iterator<Item = (Part, Role, usize, f32)> + use<> {
    let BlockForm {
        inputs: d, hidden: h, outputs: m, pre_norm, inner_norm, post_norm, branch_norm, branch_scale, ..
    } = *form;
    let norm = |part, norm: Option<Norm>, width| {
        norm.into_iter().flat_map(Norm::roles).map(move |role| (part, role, width, initial(role)))
    };
    let scale = match branch_scale {
        BranchScale::Constant(_) => None,
        BranchScale::Scalar(from) => Some((Part::Branch, Role::Scale, 1, from)),
        BranchScale::Vector(from) => Some((Part::Branch, Role::Scale, m, from)),
    };
    let before = norm(Part::PreNorm, pre_norm, d).chain(norm(Part::InnerNorm, inner_norm, h));
    let after = norm(Part::BranchNorm, branch_norm, m).chain(norm(Part::PostNorm, post_norm, m));
    before.chain(scale).chain(after)
}

impl BlockForm {
    /// The tensors of a block of this form by itself, each with its shape, in the order of [`Block::from_parts`]: the weights, (outputs, inputs),
    /// and the bias of each map in turn, then the vectors, (1, length).
    ///
    /// ```
    /// use resblock::BlockForm;
    /// let names: Vec<String> = BlockForm::llama(64, 256).tensors().map(|(tensor, _)| tensor.to_string()).collect();
    /// assert_eq!(names, ["first.weight", "third.weight", "second.weight", "pre_norm.gain"]);
    /// ```
    pub fn tensors(&self) -> impl Iterator<Item = (TensorName, (usize, usize))> + use<> {
        let biases = self.biases;
        let maps = maps(self).flat_map(move |(part, inputs, outputs, _)| {
            let bias = biases.then_some((part.bias(), (1, outputs)));
            [(part.weight(), (outputs, inputs))].into_iter().chain(bias)
        });
        maps.chain(vectors(self).map(|(part, role, len, _)| (Place::from(part).tensor(role), (1, len))))
    }
}

impl Block {
    /// From parameters: y = x + G(x), or without x.
    ///
    /// # Errors
    /// [`Error::Shape`] if W2 is not (d, h) where W1 is (h, d); [`Error::Length`] if the skip is a projection, which has weights of its own
    /// ([`Block::from_parts`]).
    pub fn new(first: Affine, second: Affine, phi: Activation, skip: Skip) -> Result<Self, Error> {
        let expected = (first.inputs(), first.outputs());
        expect_shape("second weights", expected, (second.outputs(), second.inputs()))?;
        let form = BlockForm { skip, ..BlockForm::new(first.inputs(), first.outputs(), phi) };
        Self::from_parts(&form, vec![first, second], Vec::new())
    }

    /// A block of any form, weights drawn by `init`; biases, shifts and running means 0, gains and running variances 1, scales as the form says.
    ///
    /// # Errors
    /// [`Error::Setting`] or [`Error::Shape`] if the form contradicts itself; [`Error::Overflow`] if a size overflows, [`Error::Memory`] if
    /// there is not so much memory.
    pub fn with_form(form: &BlockForm, init: &mut Init) -> Result<Self, Error> {
        form.check()?;
        let affines = maps(form).map(|(_, inputs, outputs, scale)| init.map(inputs, outputs, scale, form.biases));
        let affines = affines.collect::<Result<_, _>>()?;
        let vectors = vectors(form).map(|(_, _, len, value)| Vector::filled(len, value));
        let vectors = vectors.collect::<Result<_, _>>()?;
        Ok(Self { form: *form, affines, vectors, program: compile_one(Form::Block(*form)) })
    }

    /// A block of any form from its parameters, as far as the form has them: `affines` are W1, W3, W2, Ws with or without their biases,
    /// `vectors` those of the norms before the branch and inside (gain, shift, running mean and variance), the scale, those of the norms of the
    /// branch and after the skip.
    ///
    /// # Errors
    /// [`Error::Setting`] or [`Error::Shape`] if the form contradicts itself; [`Error::Length`] naming `affines` or `vectors` if they are not
    /// as many as the form has; [`Error::Shape`] or [`Error::Length`] naming the one that does not fit.
    pub fn from_parts(form: &BlockForm, affines: Vec<Affine>, vectors: Vec<Vector>) -> Result<Self, Error> {
        form.check()?;
        expect_len("affines", maps(form).count(), affines.len())?;
        expect_len("vectors", self::vectors(form).count(), vectors.len())?;
        for ((part, inputs, outputs, _), map) in maps(form).zip(&affines) {
            let operand = match part {
                Part::First => "first weights",
                Part::Third => "third weights",
                Part::Second => "second weights",
                _ => "shortcut weights",
            };
            expect_shape(operand, (outputs, inputs), (map.outputs(), map.inputs()))?;
        }
        for ((_, role, len, _), vector) in self::vectors(form).zip(&vectors) {
            expect_len(operand(role), len, vector.as_slice().len())?;
        }
        Ok(Self { form: *form, affines, vectors, program: compile_one(Form::Block(*form)) })
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
        let form = BlockForm { skip, init_scales: [1.0, branch_scale], ..BlockForm::new(d, h, phi) };
        Self::with_form(&form, init)
    }

    /// Affine maps and vectors of a form.
    pub(super) fn counts(form: &BlockForm) -> (usize, usize) {
        (maps(form).count(), vectors(form).count())
    }

    /// Its parameters, in the order of [`Block::from_parts`].
    pub(super) fn parts(&self) -> (&[Affine], &[Vector]) {
        (&self.affines, &self.vectors)
    }

    /// The form.
    pub fn form(&self) -> &BlockForm {
        &self.form
    }

    /// W1 and b1.
    pub fn first(&self) -> &Affine {
        &self.affines[0]
    }

    /// W2 and b2.
    pub fn second(&self) -> &Affine {
        &self.affines[if self.form.gated { 2 } else { 1 }]
    }

    /// The activation.
    pub fn activation(&self) -> Activation {
        self.form.activation
    }

    /// What is added to the branch.
    pub fn skip(&self) -> Skip {
        self.form.skip
    }
}

impl Compiled for Block {
    fn program(&self) -> &Arc<Program> {
        &self.program
    }
    fn replace_program(&mut self, program: Arc<Program>) {
        self.program = program;
    }
    fn tensors<'a>(&'a self, within: Within, see: &mut dyn FnMut(TensorRef<'a>)) {
        for ((part, ..), map) in maps(&self.form).zip(&self.affines) {
            map.visit(within.part(part), see);
        }
        for ((part, role, ..), vector) in vectors(&self.form).zip(&self.vectors) {
            see(TensorRef::new(within.part(part).tensor(role), vector.view()));
        }
    }
    fn tensors_mut<'a>(&'a mut self, within: Within, see: &mut dyn FnMut(TensorMut<'a>)) {
        for ((part, ..), map) in maps(&self.form).zip(&mut self.affines) {
            map.visit_mut(within.part(part), see);
        }
        for ((part, role, ..), vector) in vectors(&self.form).zip(&mut self.vectors) {
            see(TensorMut::new(within.part(part).tensor(role), vector.view_mut()));
        }
    }
}

impl Layer for Block {
    fn affine(&self, index: usize) -> Option<&Affine> {
        self.affines.get(index)
    }
    fn affine_mut(&mut self, index: usize) -> Option<&mut Affine> {
        self.affines.get_mut(index)
    }
    fn affine_name(&self, index: usize) -> Place {
        maps(&self.form).nth(index).map_or(Part::Second, |(part, ..)| part).into()
    }
    fn vector(&self, index: usize) -> Option<&Vector> {
        self.vectors.get(index)
    }
    fn vector_mut(&mut self, index: usize) -> Option<&mut Vector> {
        self.vectors.get_mut(index)
    }
}
