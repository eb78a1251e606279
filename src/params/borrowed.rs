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

/// All parameters of a network, the caller's. Made of a list of affine maps where there is nothing else.
#[derive(Debug, Clone, Copy)]
pub struct ParamsRef<'a> {
    /// The affine maps, in the order of [`crate::Layer::affine`].
    pub affines: &'a [AffineRef<'a>],
    /// Gains, shifts, running averages and scales, in the order of [`crate::Layer::vector`].
    pub vectors: &'a [&'a [f32]],
}

impl<'a> From<&'a [AffineRef<'a>]> for ParamsRef<'a> {
    fn from(affines: &'a [AffineRef<'a>]) -> Self {
        Self { affines, vectors: &[] }
    }
}

impl<'a, const N: usize> From<&'a [AffineRef<'a>; N]> for ParamsRef<'a> {
    fn from(affines: &'a [AffineRef<'a>; N]) -> Self {
        Self { affines, vectors: &[] }
    }
}

impl<'a> From<&'a Vec<AffineRef<'a>>> for ParamsRef<'a> {
    fn from(affines: &'a Vec<AffineRef<'a>>) -> Self {
        Self { affines, vectors: &[] }
    }
}

/// Where all gradients of a network go: to the caller. Made of a list of affine maps where there is nothing else.
#[derive(Debug)]
pub struct GradsMut<'g, 'm> {
    /// Of the affine maps, in the order of [`crate::Layer::affine`].
    pub affines: &'g mut [AffineGradMut<'m>],
    /// Of gains, shifts and scales, in the order of [`crate::Layer::vector`]. None: not wanted, or a running average, which has none.
    pub vectors: &'g mut [Option<&'m mut [f32]>],
}

impl<'g, 'm> From<&'g mut [AffineGradMut<'m>]> for GradsMut<'g, 'm> {
    fn from(affines: &'g mut [AffineGradMut<'m>]) -> Self {
        Self { affines, vectors: &mut [] }
    }
}

impl<'g, 'm, const N: usize> From<&'g mut [AffineGradMut<'m>; N]> for GradsMut<'g, 'm> {
    fn from(affines: &'g mut [AffineGradMut<'m>; N]) -> Self {
        Self { affines, vectors: &mut [] }
    }
}

impl<'g, 'm> From<&'g mut Vec<AffineGradMut<'m>>> for GradsMut<'g, 'm> {
    fn from(affines: &'g mut Vec<AffineGradMut<'m>>) -> Self {
        Self { affines, vectors: &mut [] }
    }
}
