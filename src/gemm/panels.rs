//! Panels: the one layout that every operand inside the crate has.
//!
//! A matrix of R rows and C columns is cut into column panels of 16; a panel is R rows of 16 floats, one cache line each, one
//! after the other; columns past C in the last panel are padding:
//!
//! ```text
//!            columns 0..16            columns 16..32                 element (i, j) lies at
//!   row 0   | a00 a01 .. a0f |  +--> | a0,16  ..      |              (j / 16) * (R * 16) + i * 16 + j % 16
//!   row 1   | a10 a11 .. a1f |  |    | a1,16  ..      |
//!     :     |       :        |  |    |       :        |
//!   row R-1 |       :        | -+    |       :        |
//! ```
//!
//! The same bytes serve in three ways, without a transpose: row k of a panel is the vector operand of a GEMM over k rows
//! (weights); column k of rows i, i+1, ... is the broadcast operand of a GEMM over k columns (activations: 16 columns, then on
//! to the next panel); and 8 or so columns of row k are the broadcast operand of a weight gradient (a GEMM over k rows).
//! No stride is a large power of two, whatever the matrix, so rows do not fight for the sets of a cache.
//!
//! Padding never reaches a result: chains run over exactly the columns there are, and stores to the caller are cut to length.

use super::buffers::Buffer;
use super::transpose;
use crate::error::Error;
use crate::mat::{MatMut, MatRef, RowsMut};
use crate::simd::{Isa, Simd};
use std::marker::PhantomData;

/// Columns of a panel: one cache line of f32, one AVX-512 vector, two of AVX2, four of NEON. The same on every instruction set,
/// so that packed weights are too.
pub(crate) const PANEL: usize = 16;

/// Panels that `cols` columns take.
pub(crate) const fn panels(cols: usize) -> usize {
    cols.div_ceil(PANEL)
}

/// Floats that a `rows x cols` matrix takes in panels, or an error if that overflows.
pub(crate) fn panel_len(operand: &'static str, rows: usize, cols: usize) -> Result<usize, Error> {
    cols.checked_next_multiple_of(PANEL)
        .and_then(|padded| padded.checked_mul(rows))
        .filter(|&n| n <= isize::MAX as usize / size_of::<f32>())
        .ok_or(Error::Overflow { operand, rows, cols, strides: (PANEL, 1) })
}

/// A matrix in panels, borrowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
}

impl<'a> PanelRef<'a> {
    /// Sees `data` as a `rows x cols` matrix in panels.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * panels(cols) * PANEL, "panel storage");
        Self { data, rows, cols }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Floats from one panel to the next.
    pub(crate) fn stride(&self) -> usize {
        self.rows * PANEL
    }

    /// Columns `first * 16 ..`, `count` panels of them, clamped to the matrix.
    pub(crate) fn panel_range(self, first: usize, count: usize) -> Self {
        let cols = self.cols.saturating_sub(first * PANEL).min(count * PANEL);
        let stride = self.stride();
        Self { data: &self.data[first * stride..(first + panels(cols)) * stride], cols, ..self }
    }
}

/// A matrix in panels, borrowed for writing.
#[derive(Debug)]
pub(crate) struct PanelMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
}

impl<'a> PanelMut<'a> {
    /// Sees `data` as a `rows x cols` matrix in panels.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * panels(cols) * PANEL, "panel storage");
        Self { data, rows, cols }
    }

    pub(crate) fn as_ref(&self) -> PanelRef<'_> {
        PanelRef { data: self.data, rows: self.rows, cols: self.cols }
    }

    /// Columns `first * 16 ..`, `count` panels of them, clamped to the matrix.
    pub(crate) fn panel_range(&mut self, first: usize, count: usize) -> PanelMut<'_> {
        let cols = self.cols.saturating_sub(first * PANEL).min(count * PANEL);
        let stride = self.rows * PANEL;
        PanelMut { data: &mut self.data[first * stride..(first + panels(cols)) * stride], rows: self.rows, cols }
    }

    pub(crate) fn reborrow(&mut self) -> PanelMut<'_> {
        PanelMut { data: self.data, ..*self }
    }

    pub(crate) fn into_data(self) -> &'a mut [f32] {
        self.data
    }
}

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

    /// Start and length of the cells of row `i` in panel `p`.
    #[inline(always)]
    fn span(&self, i: usize, p: usize) -> (usize, usize) {
        (i * self.row + p * self.panel, PANEL.min(self.cols - p * PANEL))
    }
}

impl In<'_> {
    /// The up to 16 cells of row `i` in panel `p`.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize, p: usize) -> &[f32] {
        let (start, len) = self.span(i, p);
        &self.data[start..start + len]
    }
}

impl Out<'_> {
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
        unsafe { super::micro::load_row(s, self.start.add(i * self.row + p * self.panel)) }
    }
}

/// A [`Window`] that may be written.
pub(crate) struct WindowMut<'a, const MR: usize, const NP: usize>(Window<'a, MR, NP>);

impl<const MR: usize, const NP: usize> WindowMut<'_, MR, NP> {
    /// Writes the 16 cells of row `i` in panel `p` of the window.
    #[inline(always)]
    pub(crate) fn store<S: Simd>(&mut self, s: S, i: usize, p: usize, row: S::Row) {
        assert!(i < MR && p < NP);
        // SAFETY: as in `Window::load`; the data were borrowed mutably for this window.
        unsafe { super::micro::store_row(s, self.0.start.add(i * self.0.row + p * self.0.panel), row) }
    }
}

impl Out<'_> {
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
        Cells { data: p.data, row: PANEL, panel: p.stride(), cols: p.cols }
    }
}

impl<'a> From<PanelMut<'a>> for Out<'a> {
    fn from(p: PanelMut<'a>) -> Self {
        Cells { data: p.data, row: PANEL, panel: p.rows * PANEL, cols: p.cols }
    }
}

impl<'a> From<RowsMut<'a>> for Out<'a> {
    fn from(r: RowsMut<'a>) -> Self {
        Cells { data: r.data, row: r.row_stride, panel: PANEL, cols: r.cols }
    }
}

/// An owned matrix in panels, 64-byte aligned, padding all zero: how weights, weight gradients and optimiser state are stored.
#[derive(Debug, Clone)]
pub struct PanelMat {
    buffer: Buffer,
    rows: usize,
    cols: usize,
}

impl PanelMat {
    /// A matrix of zeros.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn zeros(rows: usize, cols: usize) -> Result<Self, Error> {
        let len = panel_len("matrix", rows, cols)?;
        let mut buffer = Buffer::default();
        buffer.grow(len)?;
        Ok(Self { buffer, rows, cols })
    }

    /// A copy of `m`.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the size overflows (a view with stride 0 can be larger than its slice).
    pub fn from_mat(m: MatRef<'_>) -> Result<Self, Error> {
        let mut mat = Self::zeros(m.rows(), m.cols())?;
        super::pack::pack(Isa::Scalar, m, mat.view_mut());
        Ok(mat)
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Element (i, j), or `None` outside the matrix.
    pub fn get(&self, i: usize, j: usize) -> Option<f32> {
        (i < self.rows && j < self.cols).then(|| self.view().data[(j / PANEL * self.rows + i) * PANEL + j % PANEL])
    }

    /// Overwrites the matrix with `m`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn read_from(&mut self, m: MatRef<'_>) -> Result<(), Error> {
        crate::error::expect_shape("matrix", self.shape(), m.shape())?;
        super::pack::pack(Isa::Scalar, m, self.view_mut());
        Ok(())
    }

    /// Copies the matrix to `out`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn write_to(&self, mut out: MatMut<'_>) -> Result<(), Error> {
        crate::error::expect_shape("output", self.shape(), out.shape())?;
        super::pack::unpack(self.view(), &mut out, 0);
        Ok(())
    }

    /// Everything as stored, padding included: for elementwise work such as an optimiser's, on matrices of equal shape.
    pub fn as_slice(&self) -> &[f32] {
        &self.buffer.as_slice()[..self.rows * panels(self.cols) * PANEL]
    }

    /// As [`PanelMat::as_slice`], for writing. Elementwise functions that keep zeros keep the padding zero; nothing but the
    /// padding itself depends on that.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        let len = self.rows * panels(self.cols) * PANEL;
        &mut self.buffer.as_mut_slice()[..len]
    }

    /// Every element, in the order of storage, without the padding (which a caller may have filled).
    pub(crate) fn elements(&self) -> impl Iterator<Item = &f32> {
        let cells = |p: usize| PANEL.min(self.cols - p * PANEL);
        let panels = self.as_slice().chunks((PANEL * self.rows).max(1)).enumerate();
        panels.flat_map(move |(p, panel)| panel.chunks(PANEL).flat_map(move |line| &line[..cells(p)]))
    }

    pub(crate) fn view(&self) -> PanelRef<'_> {
        PanelRef::new(self.as_slice(), self.rows, self.cols)
    }

    pub(crate) fn view_mut(&mut self) -> PanelMut<'_> {
        let (rows, cols) = self.shape();
        PanelMut::new(self.as_mut_slice(), rows, cols)
    }

    /// Overwrites this matrix with the transpose of `m`, block by block of 16 x 16.
    pub(crate) fn transpose_from(&mut self, isa: Isa, m: &PanelMat) {
        assert_eq!(self.shape(), (m.cols, m.rows), "shape of the transpose");
        transpose::transpose(isa, m.view(), self.view_mut());
    }
}
