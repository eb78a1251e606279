//! Forms: what a part of a network computes, as data. How is in `crate::parts`.

use crate::Activation;

/// A part of a network before it is compiled: its formula and its sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Linear(Linear),
    Block(Block),
}

/// y = phi(x Wᵀ + b) (+ x).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Linear {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) phi: Activation,
    /// Whether the input is added.
    pub(crate) skip: bool,
}

/// y = phi(x W1ᵀ + b1) W2ᵀ + b2 (+ x).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Block {
    pub(crate) inputs: usize,
    pub(crate) hidden: usize,
    pub(crate) outputs: usize,
    pub(crate) phi: Activation,
    /// Whether the input is added.
    pub(crate) skip: bool,
}

impl Form {
    pub(crate) fn inputs(&self) -> usize {
        match self {
            Form::Linear(form) => form.inputs,
            Form::Block(form) => form.inputs,
        }
    }
}
