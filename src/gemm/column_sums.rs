//! Gradients of vectors: column sums of a matrix in panels, or of the products of two.

use super::cells::In;
use super::lanes::{load_cells, store_cells};
use super::panels::{PANEL, PanelRef, panels};
use crate::simd::{Isa, Kernel, Simd};

/// Column sums: sums[j] = (... (start + b[0, j]) + b[1, j]) + ..., in row order; or, of products, fma(b[1, j], times[1, j],
/// fma(b[0, j], times[0, j], start)), ...
pub(crate) fn column_sums(isa: Isa, b: PanelRef<'_>, times: Option<PanelRef<'_>>, accumulate: bool, sums: &mut [f32]) {
    assert_eq!(sums.len(), b.cols(), "a sum for each column");
    match times {
        None => isa.run(ColumnSums { b, accumulate, sums }),
        Some(times) => {
            assert_eq!((b.rows(), b.cols()), (times.rows(), times.cols()), "a factor for each element");
            isa.run(ProductSums { b, times, accumulate, sums });
        }
    }
}

struct ProductSums<'a> {
    b: PanelRef<'a>,
    times: PanelRef<'a>,
    accumulate: bool,
    sums: &'a mut [f32],
}

impl Kernel for ProductSums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Chains side by side.
        const WIDE: usize = 4;
        let (b, times) = (In::from(self.b), In::from(self.times));
        for (group, sums) in self.sums.chunks_mut(WIDE * PANEL).enumerate() {
            let (p0, np) = (group * WIDE, panels(sums.len()));
            let mut acc = [s.row(s.splat(0.0)); WIDE];
            if self.accumulate {
                for (row, cells) in acc.iter_mut().zip(sums.chunks(PANEL)) {
                    *row = load_cells(s, cells);
                }
            }
            for i in 0..self.b.rows() {
                for p in 0..np {
                    let (b, times) = (b.row(s, i, p0 + p), times.row(s, i, p0 + p));
                    for v in 0..const { PANEL.div_ceil(S::LANES) } {
                        acc[p].as_mut()[v] = s.fma(b.as_ref()[v], times.as_ref()[v], acc[p].as_ref()[v]);
                    }
                }
            }
            for (row, cells) in acc.into_iter().zip(sums.chunks_mut(PANEL)) {
                store_cells(s, cells, row);
            }
        }
    }
}

struct ColumnSums<'a> {
    b: PanelRef<'a>,
    accumulate: bool,
    sums: &'a mut [f32],
}

impl Kernel for ColumnSums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Four panels at a time: additions of one chain wait for each other, those of four do not.
        let cells = In::from(self.b);
        for (group, sums) in self.sums.chunks_mut(4 * PANEL).enumerate() {
            let (p0, np) = (group * 4, panels(sums.len()));
            let mut acc = [s.row(s.splat(0.0)); 4];
            if self.accumulate {
                for (row, cells) in acc.iter_mut().zip(sums.chunks(PANEL)) {
                    *row = load_cells(s, cells);
                }
            }
            let rows = self.b.rows();
            let mut done = 0;
            if sums.len() == 4 * PANEL {
                const UNROLL: usize = 4;
                for i in (0..rows / UNROLL).map(|i| i * UNROLL) {
                    let Some(window) = cells.window::<UNROLL, 4>(i, p0) else { break };
                    for r in 0..UNROLL {
                        for p in 0..4 {
                            acc[p] = add(s, acc[p], window.load(s, r, p));
                        }
                    }
                    done = i + UNROLL;
                }
            }
            for i in done..rows {
                for p in 0..np {
                    acc[p] = add(s, acc[p], load_cells(s, cells.at(i, p0 + p)));
                }
            }
            for (row, cells) in acc.into_iter().zip(sums.chunks_mut(PANEL)) {
                store_cells(s, cells, row);
            }
        }
    }
}

#[inline(always)]
fn add<S: Simd>(s: S, mut sums: S::Row, line: S::Row) -> S::Row {
    for v in 0..const { PANEL.div_ceil(S::LANES) } {
        sums.as_mut()[v] = s.add(sums.as_ref()[v], line.as_ref()[v]);
    }
    sums
}
