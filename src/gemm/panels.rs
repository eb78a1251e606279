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

use crate::error::Error;

/// Columns of a panel: one cache line of f32, one AVX-512 vector, two of AVX2, four of NEON. The same on every instruction set,
/// so that packed weights are too.
pub(crate) const PANEL: usize = 16;

/// Panels that `cols` columns take.
pub(crate) const fn panels(cols: usize) -> usize {
    cols.div_ceil(PANEL)
}

/// Floats that a `rows x cols` matrix takes in panels, or an error if that overflows. A matrix without rows or columns takes none,
/// but one row and one panel of it must be within limits: so neither the distance of its panels nor a padded width overflows.
pub(crate) fn panel_len(operand: &'static str, rows: usize, cols: usize) -> Result<usize, Error> {
    let fits = cols
        .max(1)
        .checked_next_multiple_of(PANEL)
        .and_then(|padded| padded.checked_mul(rows.max(1)))
        .is_some_and(|n| n <= isize::MAX as usize / size_of::<f32>());
    if fits {
        Ok(panels(cols) * PANEL * rows)
    } else {
        Err(Error::Overflow { operand, rows, cols, strides: (PANEL, 1) })
    }
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

    /// Element (i, j), or `None` outside the matrix.
    pub(crate) fn get(&self, i: usize, j: usize) -> Option<f32> {
        (i < self.rows && j < self.cols).then(|| self.data[(j / PANEL * self.rows + i) * PANEL + j % PANEL])
    }

    /// The rows of each panel, in the order of storage, without the padding (which a caller may have filled).
    pub(crate) fn lines(self) -> impl Iterator<Item = &'a [f32]> {
        let cells = move |p: usize| PANEL.min(self.cols - p * PANEL);
        let panels = self.data.chunks(self.stride().max(1)).enumerate();
        panels.flat_map(move |(p, panel)| panel.chunks(PANEL).map(move |line| &line[..cells(p)]))
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

    pub(crate) fn reborrow(&mut self) -> PanelMut<'_> {
        PanelMut { data: self.data, ..*self }
    }

    pub(crate) fn into_data(self) -> &'a mut [f32] {
        self.data
    }
}
