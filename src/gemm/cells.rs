//! Cells: where tiles are written to and read from, in panels or in the caller's row-major matrix alike.

use super::lanes::{load_cells, load_row, store_cells, store_row};
use super::panels::{PANEL, PanelMut, PanelRef};
use super::prefetch::Ahead;
use crate::mat::{Rows, RowsMut};
use crate::simd::Simd;
use std::marker::PhantomData;
use std::ops::Range;

/// Where a kernel writes, or reads an addend: panels, some rows of the caller's row-major matrix, or a rectangle of either.
///
/// Element (i, j) is `start[i * row + (j / 16) * panel + j % 16]`; both layouts are of this form. It is a pointer with strides, not a
/// slice: between the lines of a rectangle lie cells of others, which other threads may be writing.
#[derive(Debug, Clone, Copy)]
struct Cells {
    start: *mut f32,
    row: usize,
    panel: usize,
    rows: usize,
    cols: usize,
}

/// Cells to read. All of them, `rows` x `cols`, are there and are read alone as long as the borrow lasts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct In<'a> {
    cells: Cells,
    borrow: PhantomData<&'a [f32]>,
}

/// Cells to write. All of them, `rows` x `cols`, are there and belong to whoever has this, as long as the borrow lasts.
#[derive(Debug)]
pub(crate) struct Out<'a> {
    cells: Cells,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: as a shared slice, which may be sent and shared: cells are read alone.
unsafe impl Send for In<'_> {}
// SAFETY: as above.
unsafe impl Sync for In<'_> {}
// SAFETY: as a slice to write, which may be sent: its cells are its own.
unsafe impl Send for Out<'_> {}
// SAFETY: as a slice to write, which may be shared: then it is only read.
unsafe impl Sync for Out<'_> {}

impl Cells {
    /// Whether the rows of panel `p` follow each other without a gap.
    #[inline(always)]
    fn in_one_piece(&self, p: usize) -> bool {
        self.row == PANEL && (p + 1) * PANEL <= self.cols
    }

    /// Rows `i .. i + rows` of panel `p`: where they start, if the panel is whole and they lie in one piece.
    #[inline(always)]
    fn rows(&self, i: usize, rows: usize, p: usize) -> Option<*mut f32> {
        assert!(i <= self.rows && rows <= self.rows - i, "rows inside their matrix");
        self.in_one_piece(p).then(|| self.start.wrapping_add(i * self.row + p * self.panel))
    }

    /// Start and length of the cells of row `i` in panel `p`.
    #[inline(always)]
    fn span(&self, i: usize, p: usize) -> (*mut f32, usize) {
        assert!(i < self.rows && p * PANEL < self.cols, "cells inside their matrix");
        (self.start.wrapping_add(i * self.row + p * self.panel), PANEL.min(self.cols - p * PANEL))
    }

    /// Where the window of `MR` rows and `NP` panels at row `i`, panel `p` starts; None unless all its panels are whole.
    #[inline(always)]
    fn window<const MR: usize, const NP: usize>(&self, i: usize, p: usize) -> Option<*mut f32> {
        if (p + NP) * PANEL > self.cols {
            return None;
        }
        assert!(i + MR <= self.rows, "tile inside its matrix");
        Some(self.start.wrapping_add(i * self.row + p * self.panel))
    }
}

impl Cells {
    /// Rows whose columns lie side by side, `row` floats apart, in `len` floats from `start` on.
    fn of_rows(start: *mut f32, len: usize, (rows, cols): (usize, usize), row: usize) -> Self {
        let inside = rows == 0 || (rows - 1).checked_mul(row).is_some_and(|last| last <= len && cols <= len - last);
        assert!(inside || cols == 0, "rows inside their slice");
        Self { start, row, panel: PANEL, rows, cols }
    }
}

impl<'a> In<'a> {
    pub(crate) fn cols(&self) -> usize {
        self.cells.cols
    }

    /// Asks for `N` rows of panel `p`, from row `i` on, whether they exist or not.
    #[inline(always)]
    pub(crate) fn ask<S: Simd, const N: usize>(&self, s: S, i: usize, p: usize) {
        let Cells { start, row, panel, .. } = self.cells;
        for r in i..i + N {
            s.prefetch(start.wrapping_add(r.wrapping_mul(row) + p * panel));
        }
    }

    /// Rows `i .. i + rows` of panel `p`, if the panel is whole and they lie in one piece.
    #[inline(always)]
    pub(crate) fn rows(&self, i: usize, rows: usize, p: usize) -> Option<&'a [f32]> {
        let start = self.cells.rows(i, rows, p)?;
        // SAFETY: `Cells::rows` has seen that these rows of a whole panel are inside and without a gap; all cells are there.
        Some(unsafe { std::slice::from_raw_parts(start, rows * PANEL) })
    }

    /// The up to 16 cells of row `i` in panel `p`.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize, p: usize) -> &[f32] {
        let (start, len) = self.cells.span(i, p);
        // SAFETY: `span` has seen that they are inside; all cells are there.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Row `i` of panel `p`; lanes past the last column are 0.
    #[inline(always)]
    pub(crate) fn row<S: Simd>(&self, s: S, i: usize, p: usize) -> S::Row {
        match self.window::<1, 1>(i, p) {
            Some(window) => window.load(s, 0, 0),
            None => load_cells(s, self.at(i, p)),
        }
    }

    /// A row that all rows of a matrix share: its panels follow each other.
    pub(crate) fn repeated(line: &'a [f32], rows: usize, cols: usize) -> Self {
        assert!(cols <= line.len(), "a row of so many columns");
        let cells = Cells { start: line.as_ptr().cast_mut(), row: 0, panel: PANEL, rows, cols };
        Self { cells, borrow: PhantomData }
    }

    /// The window at row `i`, panel `p`, to read; None unless all its panels are whole.
    #[inline(always)]
    pub(crate) fn window<const MR: usize, const NP: usize>(self, i: usize, p: usize) -> Option<Window<'a, MR, NP>> {
        let start = self.cells.window::<MR, NP>(i, p)?;
        Some(Window { start, row: self.cells.row, panel: self.cells.panel, cells: PhantomData })
    }
}

impl<'a> Out<'a> {
    /// One row.
    pub(crate) fn line(line: &'a mut [f32]) -> Self {
        let cells = Cells { rows: 1, cols: line.len(), start: line.as_mut_ptr(), row: PANEL, panel: PANEL };
        Self { cells, borrow: PhantomData }
    }

    /// The cells, where they are one row whose panels follow each other.
    pub(crate) fn row_mut(&mut self) -> &mut [f32] {
        assert!(self.cells.rows == 1 && self.cells.panel == PANEL, "one row");
        // SAFETY: a row of so many cells, without a gap; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.cells.start, self.cells.cols) }
    }
}

impl Out<'_> {
    pub(crate) fn cols(&self) -> usize {
        self.cells.cols
    }

    /// Rows `i .. i + rows` of panel `p`, if the panel is whole and they lie in one piece.
    #[inline(always)]
    pub(crate) fn rows_mut(&mut self, i: usize, rows: usize, p: usize) -> Option<&mut [f32]> {
        let start = self.cells.rows(i, rows, p)?;
        // SAFETY: as in `In::rows`, and `self` is borrowed mutably.
        Some(unsafe { std::slice::from_raw_parts_mut(start, rows * PANEL) })
    }

    /// The up to 16 cells of row `i` in panel `p`.
    #[inline(always)]
    pub(crate) fn at(&mut self, i: usize, p: usize) -> &mut [f32] {
        let (start, len) = self.cells.span(i, p);
        // SAFETY: as in `In::at`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Row `i` of panel `p`; lanes past the last column are 0.
    #[inline(always)]
    pub(crate) fn row<S: Simd>(&self, s: S, i: usize, p: usize) -> S::Row {
        self.as_in().row(s, i, p)
    }

    /// Writes row `i` of panel `p`, as many columns as it has.
    #[inline(always)]
    pub(crate) fn set_row<S: Simd>(&mut self, s: S, i: usize, p: usize, row: S::Row) {
        match self.window_mut::<1, 1>(i, p) {
            Some(mut window) => window.store(s, 0, 0, row),
            None => store_cells(s, self.at(i, p), row),
        }
    }

    /// The window at row `i`, panel `p`, to read and write; None unless all its panels are whole.
    #[inline(always)]
    pub(crate) fn window_mut<const MR: usize, const NP: usize>(
        &mut self,
        i: usize,
        p: usize,
    ) -> Option<WindowMut<'_, MR, NP>> {
        let start = self.cells.window::<MR, NP>(i, p)?;
        Some(WindowMut(Window { start, row: self.cells.row, panel: self.cells.panel, cells: PhantomData }))
    }

    /// The rectangle of some rows and some panels, clamped to the cells.
    ///
    /// # Safety
    /// No two rectangles that are in use at a time may have a cell in common, and the cells that they were cut from are not
    /// used meanwhile.
    pub(crate) unsafe fn rectangle(&self, rows: Range<usize>, panels: Range<usize>) -> Self {
        let Cells { start, row, panel, rows: all_rows, cols: all_cols } = self.cells;
        let (i, p) = (rows.start.min(all_rows), panels.start.min(all_cols.div_ceil(PANEL)));
        let cells = Cells {
            start: start.wrapping_add(i * row + p * panel),
            rows: rows.end.min(all_rows).saturating_sub(i),
            cols: (panels.end * PANEL).min(all_cols).saturating_sub(p * PANEL),
            ..self.cells
        };
        Self { cells, ..*self }
    }

    /// `mr` rows from row `i` of the panels from panel `p` on, to be asked for by so many lines at a time: panel after panel where these
    /// are pieces of memory, and of a caller's rows the first panel alone.
    #[inline(always)]
    pub(super) fn ahead(&self, (i, p): (usize, usize), mr: usize, lines: usize) -> Ahead {
        let Cells { start, row, panel, .. } = self.cells;
        let at = start.wrapping_add(i * row + p * panel);
        let (piece, stride) = if row == PANEL { (mr, panel) } else { (1, row) };
        Ahead::new(at, piece, stride, lines)
    }

    /// The rows from `first` on.
    pub(crate) fn rows_from(&mut self, first: usize) -> Out<'_> {
        // SAFETY: `self` is borrowed mutably by this one rectangle.
        unsafe { self.rectangle(first..usize::MAX, 0..usize::MAX / PANEL) }
    }

    pub(crate) fn reborrow(&mut self) -> Out<'_> {
        Out { ..*self }
    }

    /// The same cells, to read.
    #[inline(always)]
    pub(crate) fn as_in(&self) -> In<'_> {
        In { cells: self.cells, borrow: PhantomData }
    }
}

/// `MR` rows of `NP` whole panels of some cells: what a tile covers. Checked when made, so that reading and writing it inside a
/// tile costs one instruction; a loop body that small is unrolled, and accumulators stay in registers.
pub(crate) struct Window<'a, const MR: usize, const NP: usize> {
    start: *mut f32,
    row: usize,
    panel: usize,
    cells: PhantomData<&'a mut [f32]>,
}

impl<const MR: usize, const NP: usize> Window<'_, MR, NP> {
    /// The 16 cells of row `i` in panel `p` of the window.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(&self, s: S, i: usize, p: usize) -> S::Row {
        assert!(i < MR && p < NP);
        // SAFETY: `Cells::window` has seen that rows and panels of the window are inside, and all cells are there. The borrow lives as long as the window.
        unsafe { load_row(s, self.start.add(i * self.row + p * self.panel)) }
    }
}

/// A [`Window`] that may be written.
pub(crate) struct WindowMut<'a, const MR: usize, const NP: usize>(Window<'a, MR, NP>);

impl<const MR: usize, const NP: usize> WindowMut<'_, MR, NP> {
    /// The 16 cells of row `i` in panel `p` of the window.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(&self, s: S, i: usize, p: usize) -> S::Row {
        self.0.load(s, i, p)
    }

    /// Whether the window starts at a cache line and its cells may be streamed.
    #[inline(always)]
    pub(crate) fn is_aligned(&self) -> bool {
        self.0.start.addr().is_multiple_of(PANEL * size_of::<f32>())
            && self.0.row.is_multiple_of(PANEL)
            && self.0.panel.is_multiple_of(PANEL)
    }

    /// As [`WindowMut::store`], past the caches.
    ///
    /// # Safety
    /// The window is aligned, and `s.fence()` follows before its cells are used.
    #[inline(always)]
    pub(crate) unsafe fn stream<S: Simd>(&mut self, s: S, i: usize, p: usize, row: S::Row) {
        assert!(i < MR && p < NP && PANEL.is_multiple_of(S::LANES));
        for v in 0..const { PANEL.div_ceil(S::LANES) } {
            // SAFETY: as in `Window::load`; the data were borrowed mutably for this window. The caller promises the alignment
            // of the window, so that of each vector in it, and the fence.
            unsafe {
                s.stream_ptr(self.0.start.add(i * self.0.row + p * self.0.panel + v * S::LANES), row.as_ref()[v])
            };
        }
    }

    /// Writes the 16 cells of row `i` in panel `p` of the window.
    #[inline(always)]
    pub(crate) fn store<S: Simd>(&mut self, s: S, i: usize, p: usize, row: S::Row) {
        assert!(i < MR && p < NP);
        // SAFETY: as in `Window::load`; the data were borrowed mutably for this window.
        unsafe { store_row(s, self.0.start.add(i * self.0.row + p * self.0.panel), row) }
    }
}

impl<'a> From<PanelRef<'a>> for In<'a> {
    fn from(m: PanelRef<'a>) -> Self {
        // All cells are there: `PanelRef` holds whole panels of so many rows. Nothing is written through a pointer of `In`.
        let start = m.data().as_ptr().cast_mut();
        let cells = Cells { start, row: PANEL, panel: m.stride(), rows: m.rows(), cols: m.cols() };
        Self { cells, borrow: PhantomData }
    }
}

impl<'a> From<PanelMut<'a>> for Out<'a> {
    fn from(m: PanelMut<'a>) -> Self {
        let (rows, panel, cols) = (m.as_ref().rows(), m.as_ref().stride(), m.as_ref().cols());
        let cells = Cells { start: m.into_data().as_mut_ptr(), row: PANEL, panel, rows, cols };
        Self { cells, borrow: PhantomData }
    }
}

impl<'a> From<Rows<'a>> for In<'a> {
    fn from(r: Rows<'a>) -> Self {
        let start = r.data.as_ptr().cast_mut();
        let cells = Cells::of_rows(start, r.data.len(), (r.rows, r.cols), r.row_stride);
        Self { cells, borrow: PhantomData }
    }
}

impl<'a> From<RowsMut<'a>> for Out<'a> {
    fn from(r: RowsMut<'a>) -> Self {
        let len = r.data.len();
        let cells = Cells::of_rows(r.data.as_mut_ptr(), len, (r.rows, r.cols), r.row_stride);
        Self { cells, borrow: PhantomData }
    }
}
