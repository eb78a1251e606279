//! Cells: where tiles are written to and read from, in panels or in the caller's row-major matrix alike.

use super::lanes::{load_row, store_row};
use super::panels::{PANEL, PanelMut, PanelRef};
use super::prefetch::Ahead;
use crate::mat::{Rows, RowsMut};
use crate::simd::Simd;
use std::marker::PhantomData;

/// Where a kernel writes, or reads an addend: panels, or some rows of the caller's row-major matrix.
///
/// Element (i, j) is `data[i * row + (j / 16) * panel + j % 16]`; both layouts are of this form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cells<D> {
    data: D,
    row: usize,
    panel: usize,
    cols: usize,
}

/// Cells to read.
pub(crate) type In<'a> = Cells<&'a [f32]>;
/// Cells to write.
pub(crate) type Out<'a> = Cells<&'a mut [f32]>;

impl<D> Cells<D> {
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the rows of panel `p` follow each other without a gap.
    #[inline(always)]
    fn in_one_piece(&self, p: usize) -> bool {
        self.row == PANEL && (p + 1) * PANEL <= self.cols
    }

    /// Start and length of the cells of row `i` in panel `p`.
    #[inline(always)]
    fn span(&self, i: usize, p: usize) -> (usize, usize) {
        (i * self.row + p * self.panel, PANEL.min(self.cols - p * PANEL))
    }
}

impl<'a> In<'a> {
    /// Asks for `N` rows of panel `p`, from row `i` on, whether they exist or not.
    #[inline(always)]
    pub(crate) fn ask<S: Simd, const N: usize>(&self, s: S, i: usize, p: usize) {
        for r in i..i + N {
            s.prefetch(self.data.as_ptr().wrapping_add(r.wrapping_mul(self.row) + p * self.panel));
        }
    }

    /// Rows `i .. i + rows` of panel `p`, if the panel is whole and they lie in one piece.
    #[inline(always)]
    pub(crate) fn rows(&self, i: usize, rows: usize, p: usize) -> Option<&'a [f32]> {
        let start = i * self.row + p * self.panel;
        self.in_one_piece(p).then(|| &self.data[start..start + rows * PANEL])
    }

    /// The up to 16 cells of row `i` in panel `p`.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize, p: usize) -> &[f32] {
        let (start, len) = self.span(i, p);
        &self.data[start..start + len]
    }
}

impl Out<'_> {
    /// Rows `i .. i + rows` of panel `p`, if the panel is whole and they lie in one piece.
    #[inline(always)]
    pub(crate) fn rows_mut(&mut self, i: usize, rows: usize, p: usize) -> Option<&mut [f32]> {
        let start = i * self.row + p * self.panel;
        self.in_one_piece(p).then(|| &mut self.data[start..start + rows * PANEL])
    }

    /// The up to 16 cells of row `i` in panel `p`.
    #[inline(always)]
    pub(crate) fn at(&mut self, i: usize, p: usize) -> &mut [f32] {
        let (start, len) = self.span(i, p);
        &mut self.data[start..start + len]
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

impl<D: AsRef<[f32]>> Cells<D> {
    /// Where the window at row `i`, panel `p` starts in the data; None unless all its panels are whole.
    #[inline(always)]
    fn window_start<const MR: usize, const NP: usize>(&self, i: usize, p: usize) -> Option<usize> {
        if (p + NP) * PANEL > self.cols {
            return None;
        }
        let start = i * self.row + p * self.panel;
        let end = start + (MR - 1) * self.row + (NP - 1) * self.panel + PANEL;
        assert!(end <= self.data.as_ref().len(), "tile inside its matrix");
        Some(start)
    }
}

impl<'a> In<'a> {
    /// The window at row `i`, panel `p`, to read; None unless all its panels are whole.
    #[inline(always)]
    pub(crate) fn window<const MR: usize, const NP: usize>(self, i: usize, p: usize) -> Option<Window<'a, MR, NP>> {
        let start = self.data.as_ptr().wrapping_add(self.window_start::<MR, NP>(i, p)?).cast_mut();
        Some(Window { start, row: self.row, panel: self.panel, cells: PhantomData })
    }
}

impl Out<'_> {
    /// The window at row `i`, panel `p`, to read and write; None unless all its panels are whole.
    #[inline(always)]
    pub(crate) fn window_mut<const MR: usize, const NP: usize>(
        &mut self,
        i: usize,
        p: usize,
    ) -> Option<WindowMut<'_, MR, NP>> {
        let start = self.window_start::<MR, NP>(i, p)?;
        let start = self.data.as_mut_ptr().wrapping_add(start);
        Some(WindowMut(Window { start, row: self.row, panel: self.panel, cells: PhantomData }))
    }
}

impl<const MR: usize, const NP: usize> Window<'_, MR, NP> {
    /// The 16 cells of row `i` in panel `p` of the window.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(&self, s: S, i: usize, p: usize) -> S::Row {
        assert!(i < MR && p < NP);
        // SAFETY: `window_start` checked that the cells of row MR - 1 in panel NP - 1 end inside the data, and those of
        // smaller i and p lie before them. The borrow lives as long as the window.
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

impl Out<'_> {
    /// `mr` rows from row `i` of the panels from panel `p` on, to be asked for by so many lines at a time: panel after panel where these
    /// are pieces of memory, and of a caller's rows the first panel alone.
    #[inline(always)]
    pub(super) fn ahead(&self, (i, p): (usize, usize), mr: usize, lines: usize) -> Ahead {
        let at = self.data.as_ptr().wrapping_add(i * self.row + p * self.panel);
        let (piece, stride) = if self.row == PANEL { (mr, self.panel) } else { (1, self.row) };
        Ahead::new(at, piece, stride, lines)
    }

    pub(crate) fn reborrow(&mut self) -> Out<'_> {
        Cells { data: self.data, ..*self }
    }

    /// The same cells, to read.
    #[inline(always)]
    pub(crate) fn as_in(&self) -> In<'_> {
        Cells { data: self.data, row: self.row, panel: self.panel, cols: self.cols }
    }
}

impl<'a> From<PanelRef<'a>> for In<'a> {
    fn from(p: PanelRef<'a>) -> Self {
        Cells { data: p.data(), row: PANEL, panel: p.stride(), cols: p.cols() }
    }
}

impl<'a> From<PanelMut<'a>> for Out<'a> {
    fn from(p: PanelMut<'a>) -> Self {
        let (panel, cols) = (p.as_ref().stride(), p.as_ref().cols());
        Cells { data: p.into_data(), row: PANEL, panel, cols }
    }
}

impl<'a> From<Rows<'a>> for In<'a> {
    fn from(r: Rows<'a>) -> Self {
        Cells { data: r.data, row: r.row_stride, panel: PANEL, cols: r.cols }
    }
}

impl<'a> From<RowsMut<'a>> for Out<'a> {
    fn from(r: RowsMut<'a>) -> Self {
        Cells { data: r.data, row: r.row_stride, panel: PANEL, cols: r.cols }
    }
}
