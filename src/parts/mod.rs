//! Parts: how the forms of layers and blocks are computed. One file each: the steps forward, the adjoint, and the specification beside
//! them.
//!
//! A new form is a row of `crate::program::form::Form` and a file here. It emits steps from `crate::program`; kernels, executor, threads and
//! memory are not its business.

pub(crate) mod block;
mod elementwise;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod spec;

use crate::error::Error;
use crate::program::Program;
use crate::program::build::Builder;
use crate::program::form::Form;
use crate::program::step::{Port, Val};
use std::sync::Arc;

/// The program of some forms, each of which takes what the one before puts out; of each, whether its inputs alone go on record.
///
/// # Errors
/// [`Error::Memory`]. (A part's own lists, of some hundred bytes, are as any small allocation.)
pub(crate) fn compile(forms: impl Iterator<Item = (Form, bool)> + Clone) -> Result<Arc<Program>, Error> {
    Ok(Arc::new(build(Builder::new(forms.clone().count())?, forms)))
}

/// The program of one form.
pub(crate) fn compile_one(form: Form) -> Arc<Program> {
    Arc::new(build(Builder::default(), [(form, false)].into_iter()))
}

fn build(mut builder: Builder, forms: impl Iterator<Item = (Form, bool)>) -> Program {
    let mut y = None;
    for (form, recompute) in forms {
        builder.begin(form, recompute);
        let x = y.unwrap_or_else(|| builder.load(Port::X, form.inputs()));
        let out = form.emit(&mut builder, x);
        builder.end(out);
        y = Some(out);
    }
    builder.finish(y)
}

impl Form {
    /// The formula, with its sizes.
    pub(crate) fn formula(&self) -> String {
        match self {
            Form::Linear(form) => form.formula(),
            Form::Block(form) => form.formula(),
            Form::Norm(form) => form.formula(),
        }
    }

    /// Emits the steps from `x` to the output, and leaves the adjoint.
    fn emit(self, b: &mut Builder, x: Val) -> Val {
        match self {
            Form::Linear(form) => form.emit(b, x),
            Form::Block(form) => form.emit(b, x),
            Form::Norm(form) => form.emit(b, x),
        }
    }
}
