//! Norms, of rows and of the columns of a batch, forward and backward; and the layer that is a norm alone.

use super::elementwise::activate;
use super::spec::{Real, moments, row_sum};
use crate::program::build::{Builder, Vector};
use crate::program::form::NormForm;
use crate::program::norm::{Norm, NormKind};
use crate::program::step::{
    BatchNormAdjointStep, BatchNormStep, BatchStep, Grad, NormAdjointStep, NormStep, Step, Val,
};

/// A norm that has been emitted: what its adjoint needs of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Emitted {
    norm: Norm,
    gain: Option<Vector>,
    shift: Option<Vector>,
    normal: Val,
    rate: Rate,
    pub(super) out: Val,
}

/// What a norm divides by, as its adjoint finds it.
#[derive(Debug, Clone, Copy)]
enum Rate {
    /// 1 / sqrt(variance + ε) of each row.
    Row(Val),
    /// The variance of each column.
    Column(Val),
}

impl Norm {
    /// `leaves`: whether the result may go to the caller, so that it is on no record.
    pub(super) fn emit(self, b: &mut Builder, a: Val, leaves: bool) -> Emitted {
        let width = b.cols(a);
        let gain = self.gain.then(|| b.vector("gain", width));
        let shift = self.shift.then(|| b.vector("shift", width));
        // Without γ and β the result is x̂ itself.
        let normal = (self.gain || self.shift || leaves).then(|| b.value("normal", width));
        let of = |vector: Option<Vector>| vector.map(|vector| vector.val);
        let (gains, shifts) = (of(gain), of(shift));
        let (rate, out) = if self.kind == NormKind::Batch {
            let (mean, variance) = (b.running("mean", width), b.running("variance", width));
            let out = b.value("n", width);
            b.step(Step::Batch(BatchStep::Moments { a, mean, variance }));
            let (norm, gain, shift) = (self, gains, shifts);
            b.step(Step::BatchNorm(BatchNormStep { norm, a, mean, variance, gain, shift, normal, out }));
            (Rate::Column(variance), out)
        } else {
            let (rate, out) = (b.value("rate", 1), b.value("n", width));
            let (norm, gain, shift) = (self, gains, shifts);
            b.step(Step::Norm(NormStep { norm, a, gain, shift, normal, rate: Some(rate), out }));
            (Rate::Row(rate), out)
        };
        Emitted { norm: self, gain, shift, normal: normal.unwrap_or(out), rate, out }
    }
}

impl Emitted {
    /// From the gradient of the result to that of what entered, and what is added to it, times what.
    pub(super) fn adjoint(self, b: &mut Builder, dn: Val, skip: Option<(f32, Val)>) -> Val {
        let Self { norm, gain, shift, normal, rate, .. } = self;
        let (width, out) = (b.cols(dn), b.value("dr", b.cols(dn)));
        let gains = gain.map(|vector| vector.val);
        match rate {
            Rate::Row(rate) => {
                b.step(Step::NormAdjoint(NormAdjointStep { norm, dn, gain: gains, normal, rate, skip, out }));
            }
            Rate::Column(variance) => {
                let (mean, slope) = (b.statistic("mean of dn", width), b.statistic("slope", width));
                b.step(Step::Batch(BatchStep::Slopes { dn, normal, mean, slope }));
                let (gain, mean, slope) = (gains, Some(mean), Some(slope));
                let step = BatchNormAdjointStep { norm, dn, gain, normal, variance, mean, slope, skip, out };
                b.step(Step::BatchNormAdjoint(step));
            }
        }
        if let Some(Vector { number: vector, .. }) = gain {
            b.grad(Grad::Columns { vector, b: dn, times: Some(normal) });
        }
        if let Some(Vector { number: vector, .. }) = shift {
            b.grad(Grad::Columns { vector, b: dn, times: None });
        }
        out
    }
}

impl NormForm {
    pub(super) fn formula(&self) -> String {
        let Self { width, norm, phi } = self;
        format!("y = {}({} of x), {width} -> {width}", phi.name(), norm.formula())
    }

    pub(super) fn emit(self, b: &mut Builder, x: Val) -> Val {
        let norm = self.norm.emit(b, x, true);
        let (y, slope) = activate(b, self.phi, norm.out, true);
        b.adjoint(move |b, dy| {
            let dn = slope.times(b, "dn", dy);
            norm.adjoint(b, dn, None)
        });
        y
    }
}

/// The parameters of a norm, or their gradients. What it does not have is None.
#[derive(Debug, Clone, PartialEq)]
pub struct NormTensors<T> {
    /// γ.
    pub gain: Option<Vec<T>>,
    /// β.
    pub shift: Option<Vec<T>>,
    /// The running averages of mean and variance of a batch. They have no gradient: what is here is then left alone.
    pub running: Option<[Vec<T>; 2]>,
}

impl<T: Real> NormTensors<T> {
    /// All of one number, as far as the norm has them.
    pub fn filled(norm: Option<Norm>, width: usize, value: T) -> Self {
        let line = |there: bool| there.then(|| vec![value; width]);
        let batch = norm.is_some_and(|norm| norm.kind == NormKind::Batch);
        Self {
            gain: line(norm.is_some_and(|norm| norm.gain)),
            shift: line(norm.is_some_and(|norm| norm.shift)),
            running: batch.then(|| [vec![value; width], vec![value; width]]),
        }
    }
}

/// Where a BatchNorm has mean and variance from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// From the batch.
    Batch,
    /// They are the running averages.
    Running,
}

/// What a norm computes on the way forward.
#[derive(Debug, Clone, PartialEq)]
pub struct NormOut<T> {
    /// x̂, `n x d`.
    pub normal: Vec<T>,
    /// 1 / sqrt(variance + ε), one for each row, or of a BatchNorm for each column.
    pub rate: Vec<T>,
    /// γ x̂ + β, `n x d`.
    pub out: Vec<T>,
    /// Mean and variance of the batch, where they were taken.
    pub statistics: Option<[Vec<T>; 2]>,
}

/// γ x̂ + β of one element.
fn scaled<T: Real>(x: T, j: usize, tensors: &NormTensors<T>) -> T {
    match (&tensors.gain, &tensors.shift) {
        (Some(gain), Some(shift)) => x.fma(gain[j], shift[j]),
        (Some(gain), None) => x.mul(gain[j]),
        (None, Some(shift)) => x.add(shift[j]),
        (None, None) => x,
    }
}

/// [`Norm`] of x, `n x d`.
pub fn norm<T: Real>(
    (n, d): (usize, usize),
    x: &[T],
    norm: Norm,
    tensors: &NormTensors<T>,
    from: Statistics,
) -> NormOut<T> {
    let mut out = NormOut { normal: Vec::new(), rate: Vec::new(), out: Vec::new(), statistics: None };
    let (width, epsilon) = (T::number(d as f32), T::number(norm.epsilon));
    let rate = |variance: T| T::number(1.0).div(variance.add(epsilon).sqrt());
    if let Some([mean, variance]) = &tensors.running {
        let taken = (from == Statistics::Batch).then(|| {
            let columns = (0..d).map(|j| moments((0..n).map(|r| x[r * d + j])));
            let (means, variances): (Vec<T>, Vec<T>) = columns.unzip();
            [means, variances]
        });
        let [mean, variance] = taken.as_ref().map_or([mean, variance], |[mean, variance]| [mean, variance]);
        out.rate = variance.iter().map(|&variance| rate(variance)).collect();
        for (i, &x) in x.iter().enumerate() {
            let j = i % d;
            out.normal.push(x.sub(mean[j]).mul(out.rate[j]));
            out.out.push(scaled(out.normal[i], j, tensors));
        }
        out.statistics = taken;
        return out;
    }
    let centre = norm.kind == NormKind::Layer;
    for row in (0..n).map(|r| &x[r * d..(r + 1) * d]) {
        let mean = if centre { row_sum(d, |j, sum: T| sum.add(row[j])).div(width) } else { T::ZERO };
        let centred = |j: usize| if centre { row[j].sub(mean) } else { row[j] };
        let r = rate(row_sum(d, |j, sum: T| centred(j).fma(centred(j), sum)).div(width));
        out.rate.push(r);
        for j in 0..d {
            let x = centred(j).mul(r);
            out.normal.push(x);
            out.out.push(scaled(x, j, tensors));
        }
    }
    out
}

/// Backward of [`norm`] given dn: returns dx, without any skip. `grads` holds what the chains continue from, and is touched where there are such
/// parameters.
///
/// g = γ dn, dx = r ((g - Σ g / d) - x̂ Σ g x̂ / d) along rows, dγ += sums of dn x̂ over the rows (by fma), dβ += sums of dn. Of a BatchNorm, dx =
/// (γ r) ((dn - Σ dn / n) - x̂ Σ dn x̂ / n), the sums down the columns; (γ r) dn with running averages.
pub fn norm_backward<T: Real>(
    (n, d): (usize, usize),
    norm: Norm,
    tensors: &NormTensors<T>,
    out: &NormOut<T>,
    dn: &[T],
    grads: &mut NormTensors<T>,
) -> Vec<T> {
    let mut dx = Vec::new();
    let gain = tensors.gain.as_deref();
    if norm.kind == NormKind::Batch {
        let rows = T::number(n as f32);
        let column = |j: usize, f: &dyn Fn(usize, T) -> T| (0..n).fold(T::ZERO, |sum, r| f(r * d + j, sum)).div(rows);
        let means: Vec<T> = (0..d).map(|j| column(j, &|i, sum| sum.add(dn[i]))).collect();
        let slopes: Vec<T> = (0..d).map(|j| column(j, &|i, sum| dn[i].fma(out.normal[i], sum))).collect();
        for (i, &g) in dn.iter().enumerate() {
            let (j, x) = (i % d, out.normal[i]);
            let t = if out.statistics.is_some() { x.neg().fma(slopes[j], g.sub(means[j])) } else { g };
            dx.push(t.mul(gain.map_or(out.rate[j], |gain| gain[j].mul(out.rate[j]))));
        }
    } else {
        let (centre, width) = (norm.kind == NormKind::Layer, T::number(d as f32));
        for r in 0..n {
            let (normal, dn) = (&out.normal[r * d..(r + 1) * d], &dn[r * d..(r + 1) * d]);
            let g = |j: usize| gain.map_or(dn[j], |gain| dn[j].mul(gain[j]));
            let mean = if centre { row_sum(d, |j, sum: T| sum.add(g(j))).div(width) } else { T::ZERO };
            let slope = row_sum(d, |j, sum: T| g(j).fma(normal[j], sum)).div(width);
            for (j, &x) in normal.iter().enumerate() {
                let t = if centre { g(j).sub(mean) } else { g(j) };
                dx.push(x.neg().fma(slope, t).mul(out.rate[r]));
            }
        }
    }
    let column = |sums: Option<&mut Vec<T>>, f: &dyn Fn(usize, T) -> T| {
        if let Some(sums) = sums {
            (0..n * d).for_each(|i| sums[i % d] = f(i, sums[i % d]));
        }
    };
    column(grads.gain.as_mut(), &|i, sum| dn[i].fma(out.normal[i], sum));
    column(grads.shift.as_mut(), &|i, sum| sum.add(dn[i]));
    dx
}
