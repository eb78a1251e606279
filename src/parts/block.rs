//! A block of two weight layers: y = phi(x W1ᵀ + b1) W2ᵀ + b2 (+ x).

use super::linear::linear;
use super::spec::{Real, input_gradient, times_derivative, weight_gradient};
use crate::Activation;
use crate::gemm::epilogue::Post;
use crate::program::form::Block;
use crate::program::{Builder, GemmStep, Posts, Side, Step, Val};

impl Block {
    pub(super) fn formula(self) -> String {
        let Self { inputs, hidden, outputs, phi, skip } = self;
        let (phi, skip) = (phi.name(), if skip { " + x" } else { "" });
        format!("y = {phi}(x W1ᵀ + b1) W2ᵀ + b2{skip}, {inputs} -> {hidden} -> {outputs}")
    }

    pub(super) fn emit(self, b: &mut Builder, x: Val) -> Val {
        let Self { inputs, hidden, outputs, phi, skip } = self;
        let (w1, w2) = (b.affine(inputs, hidden), b.affine(hidden, outputs));
        // F1, F2. The slope is kept unless h tells it.
        let told = phi.differentiates_from_output();
        let slope = (!told).then(|| b.value("slope", hidden));
        let (h, y) = (b.value("h", hidden), b.value("y", outputs));
        let gemm = |a, affine, side, posts, slope, out| GemmStep { a, affine, side, posts, slope, out };
        b.step(Step::Chunks {
            first: gemm(x, w1, Side::Forward, Posts::new(phi, None), slope, h),
            second: gemm(h, w2, Side::Forward, Posts::new(Activation::Identity, skip.then_some(x)), None, y),
        });

        b.adjoint(move |b, dy| {
            // B1 dz = (dy W2) * phi'(z), B2 dx = dz W1 (+ dy); then B3, B4.
            let (dz, dx) = (b.value("dz", hidden), b.value("dx", inputs));
            let derive = match (phi, slope) {
                (Activation::Identity, _) => Posts::default(),
                (_, Some(slope)) => Posts::from_iter([Post::Times(slope)]),
                (_, None) => Posts::from_iter([Post::Mask(h)]),
            };
            let dy_skip = Posts::new(Activation::Identity, skip.then_some(dy));
            b.step(Step::Chunks {
                first: gemm(dy, w2, Side::Adjoint, derive, None, dz),
                second: gemm(dz, w1, Side::Adjoint, dy_skip, None, dx),
            });
            b.grad(w2, h, dy);
            b.grad(w1, x, dz);
            dx
        });
        y
    }
}

/// The parameters of a two-layer block. W1: `h x d`, b1: `h`, W2: `d x h`, b2: `d`.
#[derive(Debug, Clone, Copy)]
pub struct BlockParams<'a, T> {
    /// First weights, `h x d`.
    pub w1: &'a [T],
    /// First bias, `h`.
    pub b1: &'a [T],
    /// Second weights, `d x h`.
    pub w2: &'a [T],
    /// Second bias, `d`.
    pub b2: &'a [T],
    /// phi.
    pub phi: Activation,
    /// True for y = x + G(x), false for the plain y = G(x).
    pub skip: bool,
}

/// What a block computes on the way forward.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockOut<T> {
    /// z = x W1ᵀ + b1, `n x h`.
    pub z: Vec<T>,
    /// h = phi(z), `n x h`.
    pub h: Vec<T>,
    /// y = (h W2ᵀ + b2) (+ x), `n x d`.
    pub y: Vec<T>,
}

/// y = x + W2 phi(W1 x + b1) + b2, or without x. Sizes are (n, d, h).
pub fn block<T: Real>((n, d, h): (usize, usize, usize), x: &[T], p: BlockParams<'_, T>) -> BlockOut<T> {
    let first = linear((n, d, h), x, p.w1, Some(p.b1), p.phi, None);
    let second = linear((n, h, d), &first.y, p.w2, Some(p.b2), Activation::Identity, p.skip.then_some(x));
    BlockOut { z: first.z, h: first.y, y: second.y }
}

/// Gradients of a block. On entry to [`block_backward`] the parameter gradients hold what the chains continue from.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGrads<T> {
    /// dL/dx, `n x d`.
    pub dx: Vec<T>,
    /// dL/dW1, `h x d`.
    pub dw1: Vec<T>,
    /// dL/db1, `h`.
    pub db1: Vec<T>,
    /// dL/dW2, `d x h`.
    pub dw2: Vec<T>,
    /// dL/db2, `d`.
    pub db2: Vec<T>,
}

impl<T: Real> BlockGrads<T> {
    /// All zero.
    pub fn zeros((n, d, h): (usize, usize, usize)) -> Self {
        let z = |len| vec![T::ZERO; len];
        Self { dx: z(n * d), dw1: z(h * d), db1: z(h), dw2: z(d * h), db2: z(d) }
    }
}

/// Backward of [`block`] given dy: dz = (dy W2) * phi'(z), dx = dz W1 (+ dy), dW2 += dyᵀ h, db2 += sums of dy, dW1 += dzᵀ x,
/// db1 += sums of dz.
pub fn block_backward<T: Real>(
    (n, d, h): (usize, usize, usize),
    x: &[T],
    p: BlockParams<'_, T>,
    out: &BlockOut<T>,
    dy: &[T],
    grads: &mut BlockGrads<T>,
) {
    let dh = input_gradient((n, h, d), dy, p.w2, None);
    let dz: Vec<T> = dh.iter().zip(&out.z).map(|(&g, &z)| times_derivative(g, z, p.phi)).collect();
    grads.dx = input_gradient((n, d, h), &dz, p.w1, p.skip.then_some(dy));
    weight_gradient((n, h, d), &out.h, dy, &mut grads.dw2, &mut grads.db2);
    weight_gradient((n, d, h), x, &dz, &mut grads.dw1, &mut grads.db1);
}
