//! Norms of rows, forward and backward, and the other sums along a row.
//!
//! **Order of a row's sum**: 16 chains, one for each column modulo 16, over the panels in order; then a fixed tree over the 16, whose
//! halves are added, lane by lane, until one is left (8, 4, 2, 1). Lanes without a column hold +0 and take part. It depends neither on
//! the instruction set nor on anything else but the row.
//!
//! A group of rows is taken together, so that there are chains enough to hide the latency of an addition, through all passes while it
//! is in L1: a sum, a second one of what is left without the mean, and the result.

use super::cells::{In, Out};
use super::lanes::{add_rows, fma_rows, fnma_rows, load_cells, mul_rows, store_cells, sub_rows};
use super::panels::{PANEL, panels};
use crate::simd::{Isa, Kernel, Simd};

/// x̂ = (x - mean) / sqrt(variance + ε), out = γ x̂ + β, row by row.
///
/// ```text
/// mean = Σ x / d,  variance = Σ fma(x - mean, x - mean, ·) / d         (neither is taken where there is no centre: then Σ fma(x, x, ·) / d)
/// r = 1 / sqrt(variance + ε),  x̂ = (x - mean) r,  out = fma(x̂, γ, β)   (x̂ γ, x̂ + β or x̂ where one or both are not there)
/// ```
pub(crate) struct Norm<'a> {
    /// Whether the mean is subtracted.
    pub(crate) centred: bool,
    pub(crate) epsilon: f32,
    pub(crate) a: In<'a>,
    pub(crate) rows: usize,
    /// γ and β.
    pub(crate) gain: Option<&'a [f32]>,
    pub(crate) shift: Option<&'a [f32]>,
    /// Where x̂ goes, if it is not the result, and r, if backward is to follow.
    pub(crate) normal: Option<Out<'a>>,
    pub(crate) rate: Option<Out<'a>>,
    pub(crate) out: Out<'a>,
}

/// The gradient of a norm's input.
///
/// ```text
/// g = γ dn,  m1 = Σ g / d,  m2 = Σ fma(g, x̂, ·) / d,  t = (g - m1) - x̂ m2  (the second difference by one fma; m1 only where centred)
/// out = r t (+ skip, or fma(factor, skip, r t))
/// ```
pub(crate) struct NormAdjoint<'a> {
    pub(crate) centred: bool,
    pub(crate) dn: In<'a>,
    pub(crate) rows: usize,
    pub(crate) gain: Option<&'a [f32]>,
    pub(crate) normal: In<'a>,
    pub(crate) rate: In<'a>,
    /// What is added, and times what.
    pub(crate) skip: Option<(f32, In<'a>)>,
    pub(crate) out: Out<'a>,
}

/// Runs a norm.
pub(crate) fn norm(isa: Isa, job: Norm<'_>) {
    assert_eq!(job.a.cols(), job.out.cols(), "output columns");
    assert!(job.gain.is_none_or(|gain| gain.len() >= panels(job.a.cols()) * PANEL), "a gain for each column");
    assert!(job.shift.is_none_or(|shift| shift.len() >= panels(job.a.cols()) * PANEL), "a shift for each column");
    isa.run(job);
}

/// Runs the adjoint of a norm.
pub(crate) fn norm_adjoint(isa: Isa, job: NormAdjoint<'_>) {
    assert_eq!(job.dn.cols(), job.out.cols(), "output columns");
    assert!(job.gain.is_none_or(|gain| gain.len() >= panels(job.dn.cols()) * PANEL), "a gain for each column");
    isa.run(job);
}

/// sum = (... (start + s_0) + s_1) + ..., where s_i is the sum of a ⊙ b along row i.
pub(crate) fn dot_rows(isa: Isa, a: In<'_>, b: In<'_>, rows: usize, start: f32) -> f32 {
    isa.run(DotRows { a, b, rows, start })
}

/// Rows that are taken together: with fewer, additions wait for each other; with more, sums leave the registers.
const ROWS: usize = 8;

/// The fixed tree over 16 lanes.
#[inline(always)]
fn tree<S: Simd>(s: S, row: S::Row) -> f32 {
    let mut lanes = [0.0; PANEL];
    store_cells(s, &mut lanes, row);
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// A row without what is in the lanes past `cells` columns.
#[inline(always)]
fn cut<S: Simd>(s: S, row: S::Row, cells: usize) -> S::Row {
    let mut lanes = [0.0; PANEL];
    store_cells(s, &mut lanes[..cells], row);
    load_cells(s, &lanes)
}

/// Columns of panel `p`.
#[inline(always)]
fn columns(cols: usize, p: usize) -> usize {
    PANEL.min(cols - p * PANEL)
}

/// The group of rows at hand.
#[derive(Clone, Copy)]
pub(super) struct Group {
    first: usize,
    count: usize,
}

impl Group {
    /// Rows of a full group.
    pub(super) const ROWS: usize = ROWS;

    /// Panel `p` of the group's rows of a matrix; a row that is not there is 0.
    #[inline(always)]
    pub(super) fn load<S: Simd>(self, s: S, a: In<'_>, p: usize) -> [S::Row; ROWS] {
        let mut rows = [s.row(s.splat(0.0)); ROWS];
        // Checked once, where the group is full and the panel whole: then the loop is unrolled, and all stays in registers.
        if self.count == ROWS
            && let Some(window) = a.window::<ROWS, 1>(self.first, p)
        {
            for r in 0..ROWS {
                rows[r] = window.load(s, r, 0);
            }
        } else {
            for r in 0..self.count {
                rows[r] = a.row(s, self.first + r, p);
            }
        }
        rows
    }

    /// Writes panel `p` of the group's rows.
    #[inline(always)]
    pub(super) fn store<S: Simd>(self, s: S, out: &mut Out<'_>, p: usize, rows: [S::Row; ROWS]) {
        if self.count == ROWS
            && let Some(mut window) = out.window_mut::<ROWS, 1>(self.first, p)
        {
            for r in 0..ROWS {
                window.store(s, r, 0, rows[r]);
            }
        } else {
            for r in 0..self.count {
                out.set_row(s, self.first + r, p, rows[r]);
            }
        }
    }
}

/// The tree over the sums of a group, divided by the number of columns.
#[inline(always)]
fn mean<S: Simd>(s: S, group: Group, sums: [S::Row; ROWS], cols: usize) -> [f32; ROWS] {
    let mut means = [0.0; ROWS];
    for r in 0..group.count {
        means[r] = tree(s, sums[r]) / cols as f32;
    }
    means
}

/// Panel `p` of a vector of parameters.
#[inline(always)]
#[allow(clippy::manual_map, reason = "a closure is not sure to be inlined")]
pub(super) fn panel_of<S: Simd>(s: S, vector: Option<&[f32]>, p: usize) -> Option<S::Row> {
    match vector {
        Some(vector) => Some(load_cells(s, &vector[p * PANEL..])),
        None => None,
    }
}

/// γ x̂ + β, or what there is of it.
#[inline(always)]
pub(super) fn scaled<S: Simd>(
    s: S,
    mut x: [S::Row; ROWS],
    gain: Option<S::Row>,
    shift: Option<S::Row>,
) -> [S::Row; ROWS] {
    for r in 0..ROWS {
        x[r] = match (gain, shift) {
            (Some(gain), Some(shift)) => fma_rows(s, x[r], gain, shift),
            (Some(gain), None) => mul_rows(s, x[r], gain),
            (None, Some(shift)) => add_rows(s, x[r], shift),
            (None, None) => x[r],
        };
    }
    x
}

/// t + skip, or fma(factor, skip, t), of panel `p` of a group.
#[inline(always)]
pub(super) fn with_skip<S: Simd>(
    s: S,
    group: Group,
    mut t: [S::Row; ROWS],
    skip: Option<(f32, In<'_>)>,
    p: usize,
) -> [S::Row; ROWS] {
    if let Some((factor, skip)) = skip {
        let skip = group.load(s, skip, p);
        for r in 0..ROWS {
            t[r] = if factor == 1.0 {
                add_rows(s, t[r], skip[r])
            } else {
                fma_rows(s, skip[r], s.row(s.splat(factor)), t[r])
            };
        }
    }
    t
}

/// The groups of so many rows.
pub(super) fn groups(rows: usize) -> impl Iterator<Item = Group> {
    (0..rows).step_by(ROWS).map(move |first| Group { first, count: ROWS.min(rows - first) })
}

impl Kernel for Norm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Norm { centred, epsilon, a, rows, gain, shift, mut normal, mut rate, mut out } = self;
        let (cols, all, zero) = (a.cols(), panels(a.cols()), s.row(s.splat(0.0)));
        for group in groups(rows) {
            let mut means = [0.0; ROWS];
            if centred {
                let mut sums = [zero; ROWS];
                for p in 0..all {
                    let x = group.load(s, a, p);
                    for r in 0..ROWS {
                        sums[r] = add_rows(s, sums[r], x[r]);
                    }
                }
                means = mean(s, group, sums, cols);
            }
            let mut squares = [zero; ROWS];
            for p in 0..all {
                let mut x = group.load(s, a, p);
                if centred {
                    for r in 0..ROWS {
                        x[r] = sub_rows(s, x[r], s.row(s.splat(means[r])));
                        if columns(cols, p) < PANEL {
                            x[r] = cut(s, x[r], columns(cols, p));
                        }
                    }
                }
                for r in 0..ROWS {
                    squares[r] = fma_rows(s, x[r], x[r], squares[r]);
                }
            }
            let mut rates = mean(s, group, squares, cols);
            for r in 0..group.count {
                rates[r] = 1.0 / (rates[r] + epsilon).sqrt();
                if let Some(rate) = &mut rate {
                    rate.at(group.first + r, 0)[0] = rates[r];
                }
            }
            for p in 0..all {
                let (gain, shift) = (panel_of(s, gain, p), panel_of(s, shift, p));
                let mut x = group.load(s, a, p);
                for r in 0..ROWS {
                    if centred {
                        x[r] = sub_rows(s, x[r], s.row(s.splat(means[r])));
                    }
                    x[r] = mul_rows(s, x[r], s.row(s.splat(rates[r])));
                }
                if let Some(normal) = &mut normal {
                    group.store(s, normal, p, x);
                }
                group.store(s, &mut out, p, scaled(s, x, gain, shift));
            }
        }
    }
}

/// γ dn, whose lanes past the last column are 0, as those of dn and of γ are.
#[inline(always)]
fn weighted<S: Simd>(s: S, mut dn: [S::Row; ROWS], gain: Option<S::Row>) -> [S::Row; ROWS] {
    if let Some(gain) = gain {
        for r in 0..ROWS {
            dn[r] = mul_rows(s, dn[r], gain);
        }
    }
    dn
}

impl Kernel for NormAdjoint<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let NormAdjoint { centred, dn, rows, gain, normal, rate, skip, mut out } = self;
        let (cols, all, zero) = (dn.cols(), panels(dn.cols()), s.row(s.splat(0.0)));
        for group in groups(rows) {
            let (mut sums, mut products) = ([zero; ROWS], [zero; ROWS]);
            for p in 0..all {
                let g = weighted(s, group.load(s, dn, p), panel_of(s, gain, p));
                let x = group.load(s, normal, p);
                for r in 0..ROWS {
                    sums[r] = add_rows(s, sums[r], g[r]);
                    products[r] = fma_rows(s, g[r], x[r], products[r]);
                }
            }
            let means = if centred { mean(s, group, sums, cols) } else { [0.0; ROWS] };
            let slopes = mean(s, group, products, cols);
            let mut rates = [0.0; ROWS];
            for r in 0..group.count {
                rates[r] = rate.at(group.first + r, 0)[0];
            }
            for p in 0..all {
                let mut t = weighted(s, group.load(s, dn, p), panel_of(s, gain, p));
                let x = group.load(s, normal, p);
                for r in 0..ROWS {
                    if centred {
                        t[r] = sub_rows(s, t[r], s.row(s.splat(means[r])));
                    }
                    t[r] = fnma_rows(s, x[r], s.row(s.splat(slopes[r])), t[r]);
                    t[r] = mul_rows(s, t[r], s.row(s.splat(rates[r])));
                }
                group.store(s, &mut out, p, with_skip(s, group, t, skip, p));
            }
        }
    }
}

struct DotRows<'a> {
    a: In<'a>,
    b: In<'a>,
    rows: usize,
    start: f32,
}

impl Kernel for DotRows<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let DotRows { a, b, rows, start } = self;
        let mut sum = start;
        for group in groups(rows) {
            let mut products = [s.row(s.splat(0.0)); ROWS];
            for p in 0..panels(a.cols()) {
                let (a, b) = (group.load(s, a, p), group.load(s, b, p));
                for r in 0..ROWS {
                    products[r] = fma_rows(s, a[r], b[r], products[r]);
                }
            }
            for r in 0..group.count {
                sum += tree(s, products[r]);
            }
        }
        sum
    }
}
