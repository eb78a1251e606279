//! Bias gradients: column sums of a matrix in panels.

use super::cells::In;
use super::lanes::{load_cells, store_cells};
use super::panels::{PANEL, PanelRef, panels};
use crate::simd::{Isa, Kernel, Simd};

/// Column sums: sums[j] = (... (start + b[0, j]) + b[1, j]) + ..., in row order.
pub(crate) fn column_sums(isa: Isa, b: PanelRef<'_>, accumulate: bool, sums: &mut [f32]) {
    assert_eq!(sums.len(), b.cols(), "a sum for each column");
    isa.run(ColumnSums { b, accumulate, sums });
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
