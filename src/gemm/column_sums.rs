//! Gradients of vectors: column sums of a matrix in panels, or of the products of two.

use super::cells::In;
use super::lanes::{add_rows, fma_rows, load_cells, store_cells};
use super::panels::{PANEL, PanelRef, panels};
use crate::simd::{Isa, Kernel, Simd};

/// Column sums: sums[j] = (... (start + b[0, j]) + b[1, j]) + ..., in row order; or, of products, fma(b[1, j], times[1, j],
/// fma(b[0, j], times[0, j], start)), ...
pub(crate) fn column_sums(isa: Isa, b: PanelRef<'_>, times: Option<PanelRef<'_>>, accumulate: bool, sums: &mut [f32]) {
    assert_eq!(sums.len(), b.cols(), "a sum for each column");
    let factors = |times: PanelRef<'_>| (times.rows(), times.cols()) == (b.rows(), b.cols());
    assert!(times.is_none_or(factors), "a factor for each element");
    isa.run(ColumnSums { b, times, accumulate, sums });
}

struct ColumnSums<'a> {
    b: PanelRef<'a>,
    times: Option<PanelRef<'a>>,
    accumulate: bool,
    sums: &'a mut [f32],
}

/// Panels at a time: additions of one chain wait for each other, those of four do not. Pieces of what goes down columns are cut so.
pub(crate) const WIDE: usize = 4;

impl Kernel for ColumnSums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (cells, rows) = (In::from(self.b), self.b.rows());
        for (group, sums) in self.sums.chunks_mut(WIDE * PANEL).enumerate() {
            let (p0, np) = (group * WIDE, panels(sums.len()));
            let mut acc = [s.row(s.splat(0.0)); WIDE];
            if self.accumulate {
                for (row, cells) in acc.iter_mut().zip(sums.chunks(PANEL)) {
                    *row = load_cells(s, cells);
                }
            }
            if let Some(times) = self.times {
                let times = In::from(times);
                for i in 0..rows {
                    for p in 0..np {
                        acc[p] = fma_rows(s, cells.row(s, i, p0 + p), times.row(s, i, p0 + p), acc[p]);
                    }
                }
            } else {
                let mut done = 0;
                if sums.len() == WIDE * PANEL {
                    const UNROLL: usize = 4;
                    for i in (0..rows / UNROLL).map(|i| i * UNROLL) {
                        let Some(window) = cells.window::<UNROLL, WIDE>(i, p0) else { break };
                        for r in 0..UNROLL {
                            for p in 0..WIDE {
                                acc[p] = add_rows(s, acc[p], window.load(s, r, p));
                            }
                        }
                        done = i + UNROLL;
                    }
                }
                for i in done..rows {
                    for p in 0..np {
                        acc[p] = add_rows(s, acc[p], cells.row(s, i, p0 + p));
                    }
                }
            }
            for (row, cells) in acc.into_iter().zip(sums.chunks_mut(PANEL)) {
                store_cells(s, cells, row);
            }
        }
    }
}
