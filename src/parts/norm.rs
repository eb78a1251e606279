//! Norms of rows, forward and backward.

use super::spec::{Real, row_sum};
use crate::program::form::Norm;
use crate::program::{Builder, Grad, NormAdjointStep, NormStep, Step, Val, Vector};

/// A norm that has been emitted: what its adjoint needs of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Emitted {
    norm: Norm,
    gain: Option<Vector>,
    shift: Option<Vector>,
    normal: Val,
    rate: Val,
    pub(super) out: Val,
}

impl Norm {
    /// `leaves`: whether the result may go to the caller, so that it is on no record.
    pub(super) fn emit(self, b: &mut Builder, a: Val, leaves: bool) -> Emitted {
        let width = b.cols(a);
        let gain = self.gain.then(|| b.vector("gain", width));
        let shift = self.shift.then(|| b.vector("shift", width));
        // Without γ and β the result is x̂ itself.
        let normal = (self.gain || self.shift || leaves).then(|| b.value("normal", width));
        let (rate, out) = (b.value("rate", 1), b.value("n", width));
        let of = |vector: Option<Vector>| vector.map(|vector| vector.val);
        b.step(Step::Norm(NormStep { norm: self, a, gain: of(gain), shift: of(shift), normal, rate: Some(rate), out }));
        Emitted { norm: self, gain, shift, normal: normal.unwrap_or(out), rate, out }
    }
}

impl Emitted {
    /// From the gradient of the result to that of what entered, and what is added to it, times what.
    pub(super) fn adjoint(self, b: &mut Builder, dn: Val, skip: Option<(f32, Val)>) -> Val {
        let Self { norm, gain, shift, normal, rate, .. } = self;
        let out = b.value("dr", b.cols(dn));
        let gains = gain.map(|vector| vector.val);
        b.step(Step::NormAdjoint(NormAdjointStep { norm, dn, gain: gains, normal, rate, skip, out }));
        if let Some(Vector { number: vector, .. }) = gain {
            b.grad(Grad::Columns { vector, b: dn, times: Some(normal) });
        }
        if let Some(Vector { number: vector, .. }) = shift {
            b.grad(Grad::Columns { vector, b: dn, times: None });
        }
        out
    }
}

/// What a norm computes on the way forward.
#[derive(Debug, Clone, PartialEq)]
pub struct NormOut<T> {
    /// x̂, `n x d`.
    pub normal: Vec<T>,
    /// 1 / sqrt(variance + ε), one for each row.
    pub rate: Vec<T>,
    /// γ x̂ + β, `n x d`.
    pub out: Vec<T>,
}

/// [`Norm`] of the rows of x, `n x d`.
pub fn norm<T: Real>(
    (n, d): (usize, usize),
    x: &[T],
    norm: Norm,
    gain: Option<&[T]>,
    shift: Option<&[T]>,
) -> NormOut<T> {
    let (mut normal, mut rate, mut out) = (Vec::new(), Vec::new(), Vec::new());
    let width = T::number(d as f32);
    for r in 0..n {
        let row = &x[r * d..(r + 1) * d];
        let mean = if norm.centred { row_sum(d, |j, sum: T| sum.add(row[j])).div(width) } else { T::ZERO };
        let centred = |j: usize| if norm.centred { row[j].sub(mean) } else { row[j] };
        let variance = row_sum(d, |j, sum: T| centred(j).fma(centred(j), sum)).div(width);
        let r = T::number(1.0).div(variance.add(T::number(norm.epsilon)).sqrt());
        rate.push(r);
        for j in 0..d {
            let x = centred(j).mul(r);
            normal.push(x);
            out.push(match (gain, shift) {
                (Some(gain), Some(shift)) => x.fma(gain[j], shift[j]),
                (Some(gain), None) => x.mul(gain[j]),
                (None, Some(shift)) => x.add(shift[j]),
                (None, None) => x,
            });
        }
    }
    NormOut { normal, rate, out }
}

/// Backward of [`norm`] given dn: returns dx, without any skip. `dgain` and `dshift` hold what the chains continue from, and are touched
/// where there are such parameters.
///
/// g = γ dn, dx = r ((g - Σ g / d) - x̂ Σ g x̂ / d), dγ += sums of dn x̂ over the rows (by fma), dβ += sums of dn.
pub fn norm_backward<T: Real>(
    (n, d): (usize, usize),
    norm: Norm,
    gain: Option<&[T]>,
    out: &NormOut<T>,
    dn: &[T],
    dgain: Option<&mut [T]>,
    dshift: Option<&mut [T]>,
) -> Vec<T> {
    let mut dx = Vec::new();
    let width = T::number(d as f32);
    for r in 0..n {
        let (normal, dn) = (&out.normal[r * d..(r + 1) * d], &dn[r * d..(r + 1) * d]);
        let g = |j: usize| gain.map_or(dn[j], |gain| dn[j].mul(gain[j]));
        let mean = if norm.centred { row_sum(d, |j, sum: T| sum.add(g(j))).div(width) } else { T::ZERO };
        let slope = row_sum(d, |j, sum: T| g(j).fma(normal[j], sum)).div(width);
        for (j, &x) in normal.iter().enumerate() {
            let t = if norm.centred { g(j).sub(mean) } else { g(j) };
            dx.push(x.neg().fma(slope, t).mul(out.rate[r]));
        }
    }
    let column = |sums: Option<&mut [T]>, f: &dyn Fn(usize, T) -> T| {
        if let Some(sums) = sums {
            (0..n * d).for_each(|i| sums[i % d] = f(i, sums[i % d]));
        }
    };
    column(dgain, &|i, sum| dn[i].fma(out.normal[i], sum));
    column(dshift, &|i, sum| sum.add(dn[i]));
    dx
}
