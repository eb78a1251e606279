//! An owned matrix, row by row.

use crate::error::{Error, expect_len};
use crate::gemm::buffers::zeros;
use crate::mat::{MatMut, MatRef};

/// A dense row-major matrix that owns its elements: what calls read and write by [`Matrix::view`] and [`Matrix::view_mut`].
///
/// ```
/// use resblock::Matrix;
/// let x = Matrix::from_fn(2, 3, |i, j| (10 * i + j) as f32)?;
/// assert_eq!((x.shape(), x.row(1)), ((2, 3), Some(&[10.0, 11.0, 12.0][..])));
/// # Ok::<(), resblock::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Matrix {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Matrix {
    /// All zero.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn zeros(rows: usize, cols: usize) -> Result<Self, Error> {
        let overflow = Error::Overflow { operand: "matrix", rows, cols, strides: (cols, 1) };
        Ok(Self { data: zeros(rows.checked_mul(cols).ok_or(overflow)?)?, rows, cols })
    }

    /// Of elements row by row.
    ///
    /// # Errors
    /// [`Error::Overflow`] if `rows * cols` overflows, [`Error::Length`] if there are not so many elements.
    pub fn from_vec(data: Vec<f32>, rows: usize, cols: usize) -> Result<Self, Error> {
        let overflow = Error::Overflow { operand: "matrix", rows, cols, strides: (cols, 1) };
        expect_len("data", rows.checked_mul(cols).ok_or(overflow)?, data.len())?;
        Ok(Self { data, rows, cols })
    }

    /// Element (i, j) is `f(i, j)`, made row by row.
    ///
    /// # Errors
    /// As [`Matrix::zeros`].
    pub fn from_fn(rows: usize, cols: usize, mut f: impl FnMut(usize, usize) -> f32) -> Result<Self, Error> {
        let mut matrix = Self::zeros(rows, cols)?;
        for (i, row) in matrix.data.chunks_exact_mut(cols.max(1)).enumerate() {
            row.iter_mut().enumerate().for_each(|(j, value)| *value = f(i, j));
        }
        Ok(matrix)
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// To read.
    pub fn view(&self) -> MatRef<'_> {
        MatRef::dense(&self.data, self.rows, self.cols)
    }

    /// To write.
    pub fn view_mut(&mut self) -> MatMut<'_> {
        MatMut::dense(&mut self.data, self.rows, self.cols)
    }

    /// Row `i`, or `None` outside.
    pub fn row(&self, i: usize) -> Option<&[f32]> {
        (i < self.rows).then(|| &self.data[i * self.cols..][..self.cols])
    }

    /// Row `i`, to be changed, or `None` outside.
    pub fn row_mut(&mut self, i: usize) -> Option<&mut [f32]> {
        (i < self.rows).then(|| &mut self.data[i * self.cols..][..self.cols])
    }

    /// Element (i, j), or `None` outside.
    pub fn get(&self, i: usize, j: usize) -> Option<f32> {
        self.row(i)?.get(j).copied()
    }

    /// Every element, row by row.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// Every element, row by row, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The elements, row by row.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }
}
