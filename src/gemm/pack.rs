//! The two doors between the caller's matrices and panels. (A norm on the way into a block would go into `pack`.)

use super::cells::{In, Out};
use super::lanes::{load_cells, store_cells};
use super::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::mat::{MatMut, MatRef, Rows, RowsMut};
use crate::simd::{Isa, Kernel, Simd};

/// Copies `m` into panels of the same shape. Any strides; the padding is left as it is.
pub(crate) fn pack(isa: Isa, m: MatRef<'_>, panel_matrix: PanelMut<'_>) {
    debug_assert_eq!((panel_matrix.as_ref().rows(), panel_matrix.as_ref().cols()), m.shape());
    let mut out = Out::from(panel_matrix);
    if m.cols() == 0 || m.rows() == 0 {
        return;
    }
    if let Some(rows) = m.as_rows() {
        isa.run(CopyRows { from: rows.into(), to: out, count: m.rows() });
    } else if let Some(columns) = m.t().as_rows() {
        isa.run(PackColumns { columns, out });
    } else {
        for p in 0..panels(m.cols()) {
            for i in 0..m.rows() {
                for (lane, cell) in out.at(i, p).iter_mut().enumerate() {
                    // Inside the matrix: `at` is cut to the columns there are.
                    *cell = m.get(i, p * PANEL + lane).unwrap_or(0.0);
                }
            }
        }
    }
}

/// Copies panels to the rows of `out` from `first_row` on, all of them inside. Any strides.
pub(crate) fn unpack(isa: Isa, panel_matrix: PanelRef<'_>, out: &mut MatMut<'_>, first_row: usize) {
    let (from, count) = (In::from(panel_matrix), panel_matrix.rows());
    if panel_matrix.cols() == 0 || count == 0 {
        return;
    }
    if let Some(rows) = out.as_rows_from(first_row) {
        isa.run(CopyRows { from, to: rows.into(), count });
    } else if let Some(columns) = out.as_columns_from(first_row) {
        isa.run(UnpackColumns { from: panel_matrix, columns });
    } else {
        for i in 0..count {
            for p in 0..panels(panel_matrix.cols()) {
                for (lane, &v) in from.at(i, p).iter().enumerate() {
                    out.set(first_row + i, p * PANEL + lane, v);
                }
            }
        }
    }
}

/// Into panels or out of them, where columns lie side by side: whole vectors, in groups of rows, so that panels are filled some lines
/// at a time and the source is read as so many streams.
struct CopyRows<'a> {
    from: In<'a>,
    to: Out<'a>,
    count: usize,
}

impl Kernel for CopyRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const GROUP: usize = 8;
        // Windows to ask for ahead: along the rows first, since rows some KiB apart would push each other out of L1.
        const AHEAD: usize = 8;
        let Self { from, mut to, count } = self;
        let whole = (from.cols() / PANEL).max(1);
        let (further_rows, further_panels) = (AHEAD / whole * GROUP, AHEAD % whole);
        for i in (0..count).step_by(GROUP) {
            for p in 0..panels(from.cols()) {
                if i + GROUP <= count
                    && let (Some(source), Some(mut window)) =
                        (from.window::<GROUP, 1>(i, p), to.window_mut::<GROUP, 1>(i, p))
                {
                    let next = p + further_panels;
                    let (row, panel) = if next < whole { (i, next) } else { (i + GROUP, next - whole) };
                    from.ask::<S, GROUP>(s, row + further_rows, panel);
                    for r in 0..GROUP {
                        window.store(s, r, 0, source.load(s, r, 0));
                    }
                } else {
                    for i in i..count.min(i + GROUP) {
                        store_cells(s, to.at(i, p), load_cells(s, from.at(i, p)));
                    }
                }
            }
        }
    }
}

/// Rows and columns of a block that a set transposes in registers.
const BLOCK: usize = PANEL * PANEL;
/// Elements at an edge below which one after the other takes less time than a transposed block.
const FEW: usize = BLOCK / 2;

/// Into panels, where rows lie side by side: `columns` are the rows of the transpose. By transposed blocks of 16 x 16.
struct PackColumns<'a> {
    columns: Rows<'a>,
    out: Out<'a>,
}

impl Kernel for PackColumns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { columns: Rows { data, cols: rows, row_stride: stride, .. }, mut out } = self;
        for p in 0..panels(out.cols()) {
            let width = PANEL.min(out.cols() - p * PANEL);
            for i in (0..rows).step_by(PANEL) {
                let height = PANEL.min(rows - i);
                let from = &data[i + p * PANEL * stride..];
                let whole = if height == PANEL { out.rows_mut(i, PANEL, p) } else { None };
                if let Some(to) = whole.and_then(<[f32]>::first_chunk_mut::<BLOCK>) {
                    s.transpose(from, stride, to);
                    continue;
                }
                if height * width < FEW {
                    for r in 0..height {
                        for (j, to) in out.at(i + r, p).iter_mut().enumerate() {
                            *to = from[j * stride + r];
                        }
                    }
                    continue;
                }
                let (mut lines, mut block) = ([0.0; BLOCK], [0.0; BLOCK]);
                for (j, line) in lines.chunks_exact_mut(PANEL).enumerate().take(width) {
                    copy(&mut line[..height], &from[j * stride..][..height]);
                }
                s.transpose(&lines, PANEL, &mut block);
                for (r, line) in block.chunks_exact(PANEL).enumerate().take(height) {
                    copy(out.at(i + r, p), &line[..width]);
                }
            }
        }
    }
}

/// Out of panels, where rows lie side by side: `columns` are the rows of the transpose, from the first row wanted on.
struct UnpackColumns<'a> {
    from: PanelRef<'a>,
    columns: RowsMut<'a>,
}

impl Kernel for UnpackColumns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from, columns: RowsMut { data, row_stride: stride, .. } } = self;
        for p in 0..panels(from.cols()) {
            let width = PANEL.min(from.cols() - p * PANEL);
            for i in (0..from.rows()).step_by(PANEL) {
                let height = PANEL.min(from.rows() - i);
                // With the padding of a cut panel, which is not kept.
                let source = &from.data()[p * from.stride() + i * PANEL..][..height * PANEL];
                if height * width < FEW {
                    let to = &mut data[i + p * PANEL * stride..];
                    for (r, line) in source.chunks_exact(PANEL).enumerate() {
                        for (j, &v) in line[..width].iter().enumerate() {
                            to[j * stride + r] = v;
                        }
                    }
                    continue;
                }
                let mut block = [0.0; BLOCK];
                if height == PANEL {
                    s.transpose(source, PANEL, &mut block);
                } else {
                    let mut lines = [0.0; BLOCK];
                    lines[..source.len()].copy_from_slice(source);
                    s.transpose(&lines, PANEL, &mut block);
                }
                for (j, line) in block.chunks_exact(PANEL).enumerate().take(width) {
                    copy(&mut data[i + (p * PANEL + j) * stride..][..height], &line[..height]);
                }
            }
        }
    }
}

/// Up to 16 floats, of equal number; a copy of 16 is a few instructions.
#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    match (to.first_chunk_mut::<PANEL>(), from.first_chunk::<PANEL>()) {
        (Some(to), Some(from)) => *to = *from,
        _ => to.copy_from_slice(from),
    }
}
