//! `MatRef` and `MatMut`: matrices seen in caller-owned slices, with strides.
//!
//! Sizes are checked once, here, with overflow-safe arithmetic, so that everything behind a view may index without asking
//! again. Views hold slices, not pointers: this file needs no `unsafe`, and borrows rule out that an output aliases an input.

use crate::error::Error;

/// Elements from the first to one past the last of a strided matrix; 0 if it is empty.
fn span(
    operand: &'static str,
    (rows, cols): (usize, usize),
    strides @ (row_stride, col_stride): (usize, usize),
) -> Result<usize, Error> {
    if rows == 0 || cols == 0 {
        return Ok(0);
    }
    let last = (rows - 1)
        .checked_mul(row_stride)
        .zip((cols - 1).checked_mul(col_stride))
        .and_then(|(r, c)| r.checked_add(c))
        .and_then(|i| i.checked_add(1))
        // A slice never exceeds isize::MAX bytes; more elements than that cannot be addressed.
        .filter(|&n| n <= isize::MAX as usize / size_of::<f32>());
    last.ok_or(Error::Overflow { operand, rows, cols, strides })
}

/// Which way an axis of a matrix is read: from its first line in memory, or from its last.
///
/// Strides stay without a sign, so that all checks of sizes are those of sizes. What is reversed is no fast case of any kernel: it is
/// neither row-major nor rows, and goes element by element.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Reversed {
    rows: bool,
    cols: bool,
}

impl Reversed {
    const NONE: Self = Self { rows: false, cols: false };

    fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows }
    }

    /// Where element (i, j) lies, which is inside.
    fn at(
        self,
        (i, j): (usize, usize),
        (rows, cols): (usize, usize),
        (row_stride, col_stride): (usize, usize),
    ) -> usize {
        let i = if self.rows { rows - 1 - i } else { i };
        let j = if self.cols { cols - 1 - j } else { j };
        i * row_stride + j * col_stride
    }
}

/// A read-only `rows x cols` matrix of f32: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    reversed: Reversed,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix; `data` must hold exactly `rows * cols` elements.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the product overflows, [`Error::Length`] if the slice has another length.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Result<Self, Error> {
        let len = rows.checked_mul(cols).ok_or(Error::Overflow { operand: "data", rows, cols, strides: (cols, 1) })?;
        crate::error::expect_len("data", len, data.len())?;
        Self::with_strides(data, rows, cols, cols, 1)
    }

    /// A row-major matrix of a slice that has been seen to hold it.
    pub(crate) fn dense(data: &'a [f32], rows: usize, cols: usize) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { data, rows, cols, row_stride: cols, col_stride: 1, reversed: Reversed::NONE }
    }

    /// A strided matrix. Strides are in elements; any are allowed, 0 (a repeated row or column) too.
    ///
    /// # Errors
    /// [`Error::Overflow`] or [`Error::TooShort`] if the last element lies outside `data`.
    pub fn with_strides(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Result<Self, Error> {
        let strides = (row_stride, col_stride);
        let needed = span("data", (rows, cols), strides)?;
        if needed > data.len() {
            return Err(Error::TooShort { operand: "data", rows, cols, strides, needed, found: data.len() });
        }
        Ok(Self { data, rows, cols, row_stride, col_stride, reversed: Reversed::NONE })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The transposed view: no data moves.
    pub fn t(self) -> Self {
        let (row_stride, col_stride) = (self.col_stride, self.row_stride);
        Self { rows: self.cols, cols: self.rows, row_stride, col_stride, reversed: self.reversed.t(), ..self }
    }

    /// Element (i, j), or `None` outside the matrix.
    pub fn get(&self, i: usize, j: usize) -> Option<f32> {
        let at = || self.reversed.at((i, j), self.shape(), (self.row_stride, self.col_stride));
        (i < self.rows && j < self.cols).then(|| self.data[at()])
    }

    /// Rows `start..start + count` (both clamped to the matrix).
    pub(crate) fn row_range(self, start: usize, count: usize) -> Self {
        let start = start.min(self.rows);
        let rows = count.min(self.rows - start);
        let first = if self.reversed.rows { self.rows - start - rows } else { start };
        let data = if rows == 0 || self.cols == 0 { &[] } else { &self.data[first * self.row_stride..] };
        Self { data, rows, ..self }
    }

    /// What it lies in and (row stride, column stride): element (i, j) is `data[i * row_stride + j * col_stride]`. None if an axis is
    /// reversed.
    pub(crate) fn strided(&self) -> Option<(&'a [f32], (usize, usize))> {
        (self.reversed == Reversed::NONE).then_some((self.data, (self.row_stride, self.col_stride)))
    }

    /// The same rows from the last to the first: no data moves.
    pub fn reversed_rows(self) -> Self {
        Self { reversed: Reversed { rows: !self.reversed.rows, ..self.reversed }, ..self }
    }

    /// The same columns from the last to the first: no data moves.
    pub fn reversed_cols(self) -> Self {
        self.t().reversed_rows().t()
    }

    /// True where whole rows lie one after the other, each with its columns side by side.
    pub(crate) fn is_row_major(&self) -> bool {
        let dense = (self.col_stride == 1 || self.cols <= 1) && (self.rows <= 1 || self.row_stride >= self.cols);
        dense && self.reversed == Reversed::NONE
    }

    /// The rows, where the columns lie side by side.
    pub(crate) fn as_rows(&self) -> Option<Rows<'a>> {
        (self.col_stride == 1 && self.reversed == Reversed::NONE).then_some(Rows {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
        })
    }
}

/// The rows of a dense row-major slice: as many as it has, of `width` elements each.
///
/// ```
/// let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// assert_eq!(resblock::rows_of(&x, 3)?.shape(), (2, 3));
/// # Ok::<(), resblock::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] if the slice does not end with a row; only an empty slice has rows without width, none of them.
pub fn rows_of(data: &[f32], width: usize) -> Result<MatRef<'_>, Error> {
    MatRef::new(data, whole_rows(data.len(), width)?, width)
}

/// As [`rows_of`], to be written.
///
/// # Errors
/// As [`rows_of`].
pub fn rows_of_mut(data: &mut [f32], width: usize) -> Result<MatMut<'_>, Error> {
    let rows = whole_rows(data.len(), width)?;
    MatMut::new(data, rows, width)
}

/// How many rows of `width` elements `len` elements are.
fn whole_rows(len: usize, width: usize) -> Result<usize, Error> {
    let rows = len.checked_div(width).unwrap_or(0);
    crate::error::expect_len("data", rows * width, len)?;
    Ok(rows)
}

/// Rows of an input whose columns lie side by side: element (i, j) is `data[i * row_stride + j]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
}

/// A writable `rows x cols` matrix of f32 whose elements do not overlap: element (i, j) is
/// `data[i * row_stride + j * col_stride]`. Elements of the slice between the rows are never touched.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    reversed: Reversed,
}

impl<'a> MatMut<'a> {
    /// A row-major matrix; `data` must hold exactly `rows * cols` elements.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the product overflows, [`Error::Length`] if the slice has another length.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Result<Self, Error> {
        MatRef::new(data, rows, cols)?;
        Self::with_strides(data, rows, cols, cols, 1)
    }

    /// A row-major matrix of a slice that has been seen to hold it.
    pub(crate) fn dense(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { data, rows, cols, row_stride: cols, col_stride: 1, reversed: Reversed::NONE }
    }

    /// A strided matrix: rows whole and apart (`col_stride * (cols - 1) < row_stride`), or columns so.
    ///
    /// # Errors
    /// [`Error::Overflow`] or [`Error::TooShort`] if the last element lies outside `data`, [`Error::Overlap`] if two
    /// elements might share a place.
    pub fn with_strides(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Result<Self, Error> {
        MatRef::with_strides(data, rows, cols, row_stride, col_stride)?;
        // n lines of m elements, `stride` from line to line and `other` inside one, do not touch.
        let apart = |n: usize, stride: usize, m: usize, other: usize| {
            (m == 1 || other > 0) && (n == 1 || stride > (m - 1).saturating_mul(other))
        };
        let empty = rows == 0 || cols == 0;
        if !empty && !apart(rows, row_stride, cols, col_stride) && !apart(cols, col_stride, rows, row_stride) {
            return Err(Error::Overlap { operand: "data", rows, cols, strides: (row_stride, col_stride) });
        }
        Ok(Self { data, rows, cols, row_stride, col_stride, reversed: Reversed::NONE })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The transposed view: no data moves.
    pub fn t(self) -> Self {
        let (row_stride, col_stride) = (self.col_stride, self.row_stride);
        Self { rows: self.cols, cols: self.rows, row_stride, col_stride, reversed: self.reversed.t(), ..self }
    }

    /// The same matrix, read-only.
    pub fn as_ref(&self) -> MatRef<'_> {
        MatRef {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
            reversed: self.reversed,
        }
    }

    /// The same rows from the last to the first: no data moves.
    pub fn reversed_rows(self) -> Self {
        Self { reversed: Reversed { rows: !self.reversed.rows, ..self.reversed }, ..self }
    }

    /// The same columns from the last to the first: no data moves.
    pub fn reversed_cols(self) -> Self {
        self.t().reversed_rows().t()
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { data: self.data, ..*self }
    }

    /// Writes element (i, j); returns false outside the matrix.
    pub fn set(&mut self, i: usize, j: usize, value: f32) -> bool {
        let inside = i < self.rows && j < self.cols;
        if inside {
            let at = self.reversed.at((i, j), self.shape(), (self.row_stride, self.col_stride));
            self.data[at] = value;
        }
        inside
    }

    /// As [`MatRef::is_row_major`]: such a matrix can be cut into row blocks and written by vector stores.
    pub(crate) fn is_row_major(&self) -> bool {
        self.as_ref().is_row_major()
    }

    /// The rows from `first` on, where the columns lie side by side.
    pub(crate) fn as_rows_from(&mut self, first: usize) -> Option<RowsMut<'_>> {
        let straight = self.col_stride == 1 && self.reversed == Reversed::NONE;
        let data = if straight { self.data.get_mut(first * self.row_stride..)? } else { return None };
        Some(RowsMut { data, rows: self.rows.saturating_sub(first), cols: self.cols, row_stride: self.row_stride })
    }

    /// The rows of the transpose, where the rows lie side by side: columns, from row `first` on.
    pub(crate) fn as_columns_from(&mut self, first: usize) -> Option<RowsMut<'_>> {
        let straight = self.row_stride == 1 && self.reversed == Reversed::NONE;
        let data = if straight { self.data.get_mut(first..)? } else { return None };
        let cols = self.rows.saturating_sub(first);
        Some(RowsMut { data, rows: self.cols, cols, row_stride: self.col_stride })
    }

    /// Makes every element `value`.
    pub(crate) fn fill(&mut self, value: f32) {
        for i in 0..self.rows {
            for j in 0..self.cols {
                self.data[i * self.row_stride + j * self.col_stride] = value;
            }
        }
    }

    /// Cuts off the first `count` rows of a row-major matrix; the rest stays in `self`.
    pub(crate) fn take_rows(&mut self, count: usize) -> RowsMut<'a> {
        debug_assert!(self.is_row_major());
        let count = count.min(self.rows);
        let data = std::mem::take(&mut self.data);
        // With rows left over, the view spans more than `count * row_stride` elements; a matrix without columns spans none.
        let at = match (self.rows == count, self.cols) {
            (true, _) => data.len(),
            (false, 0) => 0,
            (false, _) => count * self.row_stride,
        };
        let (head, tail) = data.split_at_mut(at);
        self.data = tail;
        self.rows -= count;
        RowsMut { data: head, rows: count, cols: self.cols, row_stride: self.row_stride }
    }
}

/// Some whole rows of a row-major output: element (i, j) is `data[i * row_stride + j]`.
#[derive(Debug)]
pub(crate) struct RowsMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
}
