//! The two doors between the caller's matrices and panels. (A norm on the way into a block would go into `pack`.)

use super::cells::{In, Out};
use super::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::mat::{MatMut, MatRef};
use crate::simd::{Isa, Kernel, Simd};

/// Copies `m` into panels of the same shape. Any strides; the padding is left as it is.
pub(crate) fn pack(isa: Isa, m: MatRef<'_>, panel_matrix: PanelMut<'_>) {
    debug_assert_eq!((panel_matrix.as_ref().rows(), panel_matrix.as_ref().cols()), m.shape());
    let mut out = Out::from(panel_matrix);
    if m.cols() == 0 || m.rows() == 0 {
        return;
    }
    if m.row_slice(0).is_some() {
        return isa.run(PackRows { m, out });
    }
    for p in 0..panels(m.cols()) {
        for i in 0..m.rows() {
            for (lane, cell) in out.at(i, p).iter_mut().enumerate() {
                // Inside the matrix: `at` is cut to the columns there are.
                *cell = m.get(i, p * PANEL + lane).unwrap_or(0.0);
            }
        }
    }
}

/// Rows whose columns lie side by side: whole vectors.
struct PackRows<'a> {
    m: MatRef<'a>,
    out: Out<'a>,
}

impl Kernel for PackRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for i in 0..self.m.rows() {
            let Some(row) = self.m.row_slice(i) else { return };
            for (p, line) in row.chunks(PANEL).enumerate() {
                let cells = self.out.at(i, p);
                for (to, from) in cells.chunks_mut(S::LANES).zip(line.chunks(S::LANES)) {
                    s.store(to, s.load(from));
                }
            }
        }
    }
}

/// Copies panels to the rows of `out` from `first_row` on. Any strides.
pub(crate) fn unpack(panel_matrix: PanelRef<'_>, out: &mut MatMut<'_>, first_row: usize) {
    let cells = In::from(panel_matrix);
    for i in 0..panel_matrix.rows() {
        for p in 0..panels(panel_matrix.cols()) {
            for (lane, &v) in cells.at(i, p).iter().enumerate() {
                out.set(first_row + i, p * PANEL + lane, v);
            }
        }
    }
}
