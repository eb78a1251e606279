//! Norms of columns by statistics that are there, forward and backward: element by element, a panel at a time.

use super::cells::{In, Out};
use super::lanes::{fnma_rows, load_cells, mul_rows, sub_rows};
use super::norm::{Group, groups, panel_of, scaled, with_skip};
use super::panels::{PANEL, panels};
use crate::simd::{Isa, Kernel, Simd};

/// x̂ = (x - mean) r, out = fma(x̂, γ, β) (x̂ γ, x̂ + β or x̂ where one or both are not there); r = 1 / sqrt(variance + ε) of each column.
pub(crate) struct BatchNorm<'a> {
    pub(crate) epsilon: f32,
    pub(crate) a: In<'a>,
    pub(crate) rows: usize,
    /// One for each column, as γ and β are.
    pub(crate) mean: &'a [f32],
    pub(crate) variance: &'a [f32],
    pub(crate) gain: Option<&'a [f32]>,
    pub(crate) shift: Option<&'a [f32]>,
    /// Where x̂ goes, if it is not the result.
    pub(crate) normal: Option<Out<'a>>,
    pub(crate) out: Out<'a>,
}

/// out = (γ r) t (+ skip, or fma(factor, skip, ·)), t = (dn - mean) - x̂ slope by an fma: mean and slope are those of dn and of dn x̂ over the batch. Where
/// statistics are frozen they are not there, and t is dn.
pub(crate) struct BatchNormAdjoint<'a> {
    pub(crate) epsilon: f32,
    pub(crate) dn: In<'a>,
    pub(crate) rows: usize,
    pub(crate) gain: Option<&'a [f32]>,
    pub(crate) normal: In<'a>,
    pub(crate) variance: &'a [f32],
    /// Mean and slope.
    pub(crate) through: Option<(&'a [f32], &'a [f32])>,
    /// What is added, and times what.
    pub(crate) skip: Option<(f32, In<'a>)>,
    pub(crate) out: Out<'a>,
}

/// Runs a norm.
pub(crate) fn batch_norm(isa: Isa, job: BatchNorm<'_>) {
    let cols = job.a.cols();
    assert_eq!(cols, job.out.cols(), "output columns");
    let lines = [Some(job.mean), Some(job.variance), job.gain, job.shift];
    assert!(lines.into_iter().flatten().all(|line| line.len() >= panels(cols) * PANEL), "a number for each column");
    isa.run(job);
}

/// Runs the adjoint of a norm.
pub(crate) fn batch_norm_adjoint(isa: Isa, job: BatchNormAdjoint<'_>) {
    let cols = job.dn.cols();
    assert_eq!(cols, job.out.cols(), "output columns");
    let (mean, slope) = job.through.unzip();
    let lines = [mean, slope, Some(job.variance), job.gain];
    assert!(lines.into_iter().flatten().all(|line| line.len() >= panels(cols) * PANEL), "a number for each column");
    isa.run(job);
}

/// 1 / sqrt(variance + ε) of the columns of panel `p`.
#[inline(always)]
fn rates<S: Simd>(s: S, variance: &[f32], p: usize, epsilon: f32) -> S::Row {
    let mut row: S::Row = load_cells(s, &variance[p * PANEL..][..PANEL]);
    for v in row.as_mut() {
        *v = s.div(s.splat(1.0), s.sqrt(s.add(*v, s.splat(epsilon))));
    }
    row
}

impl Kernel for BatchNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let BatchNorm { epsilon, a, rows, mean, variance, gain, shift, mut normal, mut out } = self;
        for p in 0..panels(a.cols()) {
            let (mean, rate) = (load_cells(s, &mean[p * PANEL..][..PANEL]), rates(s, variance, p, epsilon));
            let (gain, shift) = (panel_of(s, gain, p), panel_of(s, shift, p));
            for group in groups(rows) {
                let mut x = group.load(s, a, p);
                for x in &mut x {
                    *x = mul_rows(s, sub_rows(s, *x, mean), rate);
                }
                if let Some(normal) = &mut normal {
                    group.store(s, normal, p, x);
                }
                group.store(s, &mut out, p, scaled(s, x, gain, shift));
            }
        }
    }
}

impl Kernel for BatchNormAdjoint<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let BatchNormAdjoint { epsilon, dn, rows, gain, normal, variance, through, skip, mut out } = self;
        let (mean, slope) = through.unzip();
        for p in 0..panels(dn.cols()) {
            let mut rate = rates(s, variance, p, epsilon);
            if let Some(gain) = panel_of(s, gain, p) {
                rate = mul_rows(s, gain, rate);
            }
            // One of the two is not there without the other.
            let (mean, slope) = (panel_of(s, mean, p), panel_of(s, slope, p));
            for group in groups(rows) {
                let mut t = group.load(s, dn, p);
                if let (Some(mean), Some(slope)) = (mean, slope) {
                    let x = group.load(s, normal, p);
                    for r in 0..Group::ROWS {
                        t[r] = fnma_rows(s, x[r], slope, sub_rows(s, t[r], mean));
                    }
                }
                for t in &mut t {
                    *t = mul_rows(s, *t, rate);
                }
                group.store(s, &mut out, p, with_skip(s, group, t, skip, p));
            }
        }
    }
}
