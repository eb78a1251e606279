//! Arrays of the `ndarray` crate as matrices (feature `ndarray`).
//!
//! Strides may be negative (an axis is reversed) or 0 (it is broadcast), and axes in any order. What is refused are gaps, as a slice of some
//! columns has them: a matrix here is seen in one slice of memory, and elsewhere in the program what lies in the gaps may be lent for
//! writing. Copy such an array, to another one or to a [`Matrix`].

use crate::error::Error;
use crate::mat::{MatMut, MatRef};
use crate::matrix::Matrix;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis};

const GAPS: Error = Error::Setting { operand: "array", reason: "its elements do not fill a piece of memory: copy it" };

impl<'a> TryFrom<ArrayView2<'a, f32>> for MatRef<'a> {
    type Error = Error;

    /// The same elements, where they are.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are gaps between them.
    fn try_from(mut array: ArrayView2<'a, f32>) -> Result<Self, Error> {
        let (rows, cols) = array.dim();
        if rows == 0 || cols == 0 {
            return MatRef::with_strides(&[], rows, cols, 0, 0);
        }
        // A repeated row or column is seen once, with stride 0.
        let repeated = [0, 1].map(|axis| array.len_of(Axis(axis)) > 1 && array.stride_of(Axis(axis)) == 0);
        for (axis, _) in repeated.into_iter().enumerate().filter(|(_, repeated)| *repeated) {
            array.slice_axis_inplace(Axis(axis), ndarray::Slice::from(0..1));
        }
        let reversed = [0, 1].map(|axis| array.len_of(Axis(axis)) > 1 && array.stride_of(Axis(axis)) < 0);
        for (axis, _) in reversed.into_iter().enumerate().filter(|(_, reversed)| *reversed) {
            array.invert_axis(Axis(axis));
        }
        let strides = [0, 1].map(|axis| stride(array.len_of(Axis(axis)), array.stride_of(Axis(axis))));
        let matrix =
            MatRef::with_strides(array.to_slice_memory_order().ok_or(GAPS)?, rows, cols, strides[0], strides[1])?;
        let matrix = if reversed[0] { matrix.reversed_rows() } else { matrix };
        Ok(if reversed[1] { matrix.reversed_cols() } else { matrix })
    }
}

/// An axis of one line has any stride, and needs none.
fn stride(len: usize, stride: isize) -> usize {
    if len > 1 { stride.unsigned_abs() } else { 0 }
}

impl<'a> TryFrom<ArrayView1<'a, f32>> for MatRef<'a> {
    type Error = Error;

    /// One row.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are gaps between its elements.
    fn try_from(array: ArrayView1<'a, f32>) -> Result<Self, Error> {
        array.insert_axis(Axis(0)).try_into()
    }
}

impl<'a> TryFrom<ArrayViewMut2<'a, f32>> for MatMut<'a> {
    type Error = Error;

    /// The same elements, where they are.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are gaps between them.
    fn try_from(mut array: ArrayViewMut2<'a, f32>) -> Result<Self, Error> {
        let (rows, cols) = array.dim();
        if rows == 0 || cols == 0 {
            return MatMut::with_strides(&mut [], rows, cols, cols, 1);
        }
        let reversed = [0, 1].map(|axis| array.len_of(Axis(axis)) > 1 && array.stride_of(Axis(axis)) < 0);
        for (axis, _) in reversed.into_iter().enumerate().filter(|(_, reversed)| *reversed) {
            array.invert_axis(Axis(axis));
        }
        // An axis of one line is as far from the next as all of the other.
        let strides = [0, 1].map(|axis| stride(array.len_of(Axis(axis)), array.stride_of(Axis(axis))));
        let strides = match strides {
            [0, 0] => [1, 1],
            [0, cols_apart] => [cols.saturating_mul(cols_apart), cols_apart],
            [rows_apart, 0] => [rows_apart, rows.saturating_mul(rows_apart)],
            both => both,
        };
        let slice = array.into_slice_memory_order().ok_or(GAPS)?;
        let matrix = MatMut::with_strides(slice, rows, cols, strides[0], strides[1])?;
        let matrix = if reversed[0] { matrix.reversed_rows() } else { matrix };
        Ok(if reversed[1] { matrix.reversed_cols() } else { matrix })
    }
}

impl TryFrom<ArrayView2<'_, f32>> for Matrix {
    type Error = Error;

    /// A copy, gaps or not.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not so much memory.
    fn try_from(array: ArrayView2<'_, f32>) -> Result<Self, Error> {
        let (rows, cols) = array.dim();
        Matrix::from_fn(rows, cols, |i, j| array[(i, j)])
    }
}
