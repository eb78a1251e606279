//! The two doors between the caller's matrices and panels. (A norm on the way into a block would go into `pack`.)

use super::cells::{In, Out};
use super::lanes::{load_cells, store_cells};
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
    if let Some(rows) = m.as_rows() {
        return isa.run(PackRows { rows: rows.into(), out, count: m.rows() });
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

/// Rows whose columns lie side by side: whole vectors, in groups of rows, so that panels are filled some lines at a time and the
/// source is read as so many streams.
struct PackRows<'a> {
    rows: In<'a>,
    out: Out<'a>,
    count: usize,
}

impl Kernel for PackRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const GROUP: usize = 8;
        // Windows to ask for ahead: along the rows first, since rows some KiB apart would push each other out of L1.
        const AHEAD: usize = 8;
        let Self { rows, mut out, count } = self;
        let whole = (rows.cols() / PANEL).max(1);
        let (further_rows, further_panels) = (AHEAD / whole * GROUP, AHEAD % whole);
        for i in (0..count).step_by(GROUP) {
            for p in 0..panels(rows.cols()) {
                if i + GROUP <= count
                    && let (Some(from), Some(mut to)) =
                        (rows.window::<GROUP, 1>(i, p), out.window_mut::<GROUP, 1>(i, p))
                {
                    let next = p + further_panels;
                    let (row, panel) = if next < whole { (i, next) } else { (i + GROUP, next - whole) };
                    rows.ask::<S, GROUP>(s, row + further_rows, panel);
                    for r in 0..GROUP {
                        to.store(s, r, 0, from.load(s, r, 0));
                    }
                } else {
                    for i in i..count.min(i + GROUP) {
                        store_cells(s, out.at(i, p), load_cells(s, rows.at(i, p)));
                    }
                }
            }
        }
    }
}

/// Copies panels to the rows of `out` from `first_row` on. Any strides.
pub(crate) fn unpack(panel_matrix: PanelRef<'_>, out: &mut MatMut<'_>, first_row: usize) {
    let cells = In::from(panel_matrix);
    if panel_matrix.cols() == 0 {
        return;
    }
    for i in 0..panel_matrix.rows() {
        for p in 0..panels(panel_matrix.cols()) {
            for (lane, &v) in cells.at(i, p).iter().enumerate() {
                out.set(first_row + i, p * PANEL + lane, v);
            }
        }
    }
}
