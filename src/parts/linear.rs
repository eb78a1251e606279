//! A linear layer: y = phi(x Wᵀ + b) (+ x, or + a skip of the caller's).

use super::spec::{Real, input_gradient, times_derivative, weight_gradient};
use crate::Activation;
use crate::gemm::epilogue::{Aux, Post};
use crate::program::build::Builder;
use crate::program::form::Linear;
use crate::program::step::{Beside, GemmStep, Grad, Port, Posts, Side, Step, Val};

impl Linear {
    pub(super) fn formula(self) -> String {
        let Self { inputs, outputs, phi, skip } = self;
        let (phi, skip) = (phi.name(), if skip { " + x" } else { "" });
        format!("y = {phi}(x Wᵀ + b){skip}, {inputs} -> {outputs}")
    }

    pub(super) fn emit(self, b: &mut Builder, x: Val) -> Val {
        let Self { inputs, outputs, phi, skip } = self;
        let affine = b.affine(inputs, outputs);
        let addend = if skip { x } else { b.load(Port::Skip, outputs) };
        // The slope is kept, whatever the activation: the output may have a skip in it, which hides phi(z).
        let slope = (phi != Activation::Identity).then(|| b.value("slope", outputs));
        let y = b.value("y", outputs);
        b.step(Step::Gemm(GemmStep {
            a: x,
            affine,
            side: Side::Forward,
            onto: false,
            posts: Posts::new(phi, Some(addend)),
            aux: slope.map(|to| Beside { what: Aux::Slope, to }),
            out: y,
        }));

        b.adjoint(move |b, dy| {
            let dz = slope.map_or(dy, |slope| {
                let dz = b.value("dz", outputs);
                let posts = Posts::from_iter([Post::Times(slope)]);
                b.step(Step::Each { a: dy, posts, aux: None, out: dz });
                dz
            });
            let dx = b.value("dx", inputs);
            let posts = Posts::new(Activation::Identity, skip.then_some(dy));
            b.step(Step::Gemm(GemmStep { a: dz, affine, side: Side::Adjoint, onto: false, posts, aux: None, out: dx }));
            b.grad(Grad::Affine { affine, a: x, b: dz });
            dx
        });
        y
    }
}

/// Pre-activation and output of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearOut<T> {
    /// z = x Wᵀ + b, `n x m`.
    pub z: Vec<T>,
    /// y = phi(z) + skip, `n x m`.
    pub y: Vec<T>,
}

/// y = phi(x Wᵀ + b) + skip. x: `n x k`; w: `m x k`; b: `m`; skip: `n x m`.
///
/// `z[r, j] = fma(x[r, k-1], w[j, k-1], ... fma(x[r, 0], w[j, 0], b[j]))`: the chain starts from the bias.
pub fn linear<T: Real>(
    (n, k, m): (usize, usize, usize),
    x: &[T],
    w: &[T],
    b: Option<&[T]>,
    phi: Activation,
    skip: Option<&[T]>,
) -> LinearOut<T> {
    let mut out = LinearOut { z: vec![T::ZERO; n * m], y: vec![T::ZERO; n * m] };
    for r in 0..n {
        for j in 0..m {
            let mut z = b.map_or(T::ZERO, |b| b[j]);
            for i in 0..k {
                z = x[r * k + i].fma(w[j * k + i], z);
            }
            let h = z.activate(phi);
            out.z[r * m + j] = z;
            out.y[r * m + j] = skip.map_or(h, |s| h.add(s[r * m + j]));
        }
    }
    out
}

/// Gradients of a linear layer. On entry to a backward function `dw` and `db` hold what the chain continues from.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearGrads<T> {
    /// dL/dx, `n x k`.
    pub dx: Vec<T>,
    /// dL/dW, `m x k`.
    pub dw: Vec<T>,
    /// dL/db, `m`.
    pub db: Vec<T>,
}

/// Backward of [`linear`] given dy `n x m`: dz = dy * phi'(z), dx = dz W (+ dy where the skip was x itself), dW += dzᵀ x,
/// db += the column sums of dz. (An external skip receives dy itself.)
///
/// `dw[j, i] = fma(dz[n-1, j], x[n-1, i], ... fma(dz[0, j], x[0, i], dw[j, i]))`: the chain runs over the rows of the batch, in
/// order, and continues from what `grads` holds.
#[allow(clippy::too_many_arguments, reason = "one argument for each operand of the formula")]
pub fn linear_backward<T: Real>(
    (n, k, m): (usize, usize, usize),
    x: &[T],
    w: &[T],
    phi: Activation,
    z: &[T],
    dy: &[T],
    skip_is_x: bool,
    grads: &mut LinearGrads<T>,
) {
    let dz: Vec<T> = (0..n * m).map(|i| times_derivative(dy[i], z[i], phi)).collect();
    grads.dx = input_gradient((n, k, m), &dz, w, skip_is_x.then_some(dy));
    weight_gradient((n, k, m), x, &dz, &mut grads.dw, &mut grads.db);
}
