//! Parts: the forms of layers and blocks. One file each: the steps forward, the adjoint, and the specification beside them.
//!
//! A new form is a file here and a row of [`Form`]. It emits steps from `crate::program`; kernels, executor, threads and memory are not
//! its business.

pub(crate) mod block;
pub(crate) mod linear;
pub(crate) mod spec;

use crate::program::{Builder, Val};

/// A part of a network before it is compiled: its formula and its sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Linear(linear::Linear),
    Block(block::Block),
}

impl Form {
    pub(crate) fn inputs(&self) -> usize {
        match self {
            Form::Linear(form) => form.inputs,
            Form::Block(form) => form.inputs,
        }
    }

    /// The formula, with its sizes.
    pub(crate) fn formula(&self) -> String {
        match self {
            Form::Linear(form) => form.formula(),
            Form::Block(form) => form.formula(),
        }
    }

    /// Emits the steps from `x` to the output, and leaves the adjoint.
    pub(crate) fn emit(self, b: &mut Builder, x: Val) -> Val {
        match self {
            Form::Linear(form) => form.emit(b, x),
            Form::Block(form) => form.emit(b, x),
        }
    }
}
