//! Parameters and gradients that are the caller's.

use crate::mat::{MatMut, MatRef};

/// Weights and bias of an affine map, the caller's.
#[derive(Debug, Clone, Copy)]
pub struct AffineRef<'a> {
    /// W, (outputs, inputs), any strides: a matrix (inputs, outputs) serves by [`MatRef::t`].
    pub weights: MatRef<'a>,
    /// b, one for each output.
    pub bias: Option<&'a [f32]>,
}

/// Where the gradients of an affine map go: to the caller.
#[derive(Debug, Default)]
pub struct AffineGradMut<'a> {
    /// ∂L/∂W, (outputs, inputs), any strides: a matrix (inputs, outputs) serves by [`MatMut::t`]. None: not wanted.
    pub weights: Option<MatMut<'a>>,
    /// ∂L/∂b, one for each output. None: not wanted.
    pub bias: Option<&'a mut [f32]>,
}
