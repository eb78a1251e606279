//! Operands: arrays of NumPy's, or addresses with strides.

use crate::error::{raised, refused};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods, dtype};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use resblock::{MatMut, MatRef};

/// A matrix of f32 somewhere in memory. Strides are in elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    address: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl View {
    /// Of an array of one or two dimensions, or of a tuple (address, rows, columns, row stride, column stride), which is trusted: the package makes these of
    /// tensors that it has checked, and which it holds during the call.
    pub(crate) fn of(operand: &'static str, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(tuple) = object.cast::<PyTuple>() {
            let (address, rows, cols, row_stride, col_stride) = tuple.extract()?;
            return Ok(Self { address, rows, cols, row_stride, col_stride });
        }
        let array = object.cast::<PyUntypedArray>().map_err(|_| {
            let found = object.get_type();
            PyTypeError::new_err(format!("{operand}: expected an array, found {found}"))
        })?;
        if !array.dtype().is_equiv_to(&dtype::<f32>(object.py())) {
            return Err(PyTypeError::new_err(format!("{operand}: expected float32, found {}", array.dtype())));
        }
        let element = size_of::<f32>() as isize;
        let stride = |bytes: isize| {
            let stride = usize::try_from(bytes / element).ok().filter(|_| bytes % element == 0);
            stride.ok_or_else(|| refused(operand, "strides are negative, or no multiples of 4 bytes"))
        };
        let (rows, cols, row_stride, col_stride) = match (array.shape(), array.strides()) {
            (&[], _) => (1, 1, 1, 1),
            (&[cols], &[by]) => (1, cols, cols, if cols > 1 { stride(by)? } else { 1 }),
            (&[rows, cols], &[down, across]) => {
                let only = |n: usize, by| if n > 1 { stride(by) } else { Ok(1) };
                (rows, cols, only(rows, down)?, only(cols, across)?)
            }
            (shape, _) => {
                return Err(refused(operand, format_args!("expected at most 2 dimensions, found {}", shape.len())));
            }
        };
        // SAFETY: the object is an array, by the cast above.
        let address = unsafe { (*array.as_array_ptr()).fields.data } as usize;
        if !address.is_multiple_of(align_of::<f32>()) {
            return Err(refused(operand, "an address that is no multiple of 4"));
        }
        Ok(Self { address, rows, cols, row_stride, col_stride })
    }

    /// From an address: `rows` lines of `cols` one after the other.
    pub(crate) fn dense(address: *mut f32, rows: usize, cols: usize) -> Self {
        Self { address: address as usize, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Elements from the first to the last one, if that can be counted.
    fn span(&self) -> Option<usize> {
        if self.rows == 0 || self.cols == 0 || self.address == 0 {
            return Some(0);
        }
        let down = (self.rows - 1).checked_mul(self.row_stride)?;
        let across = (self.cols - 1).checked_mul(self.col_stride)?;
        let span = down.checked_add(across)?.checked_add(1)?;
        (span <= isize::MAX as usize / size_of::<f32>()).then_some(span)
    }

    fn checked_span(&self, operand: &'static str) -> PyResult<usize> {
        self.span().ok_or_else(|| refused(operand, "sizes overflow the address range"))
    }

    /// To read.
    ///
    /// # Safety
    /// All elements lie in memory that stays as it is for `'a`.
    pub(crate) unsafe fn matrix<'a>(self, operand: &'static str) -> PyResult<MatRef<'a>> {
        let span = self.checked_span(operand)?;
        // SAFETY: by the caller; the span was counted above, and an empty one has an address of its own.
        let data =
            unsafe { if span == 0 { &[] } else { std::slice::from_raw_parts(self.address as *const f32, span) } };
        MatRef::with_strides(data, self.rows, self.cols, self.row_stride, self.col_stride).map_err(raised)
    }

    /// To write.
    ///
    /// # Safety
    /// All elements lie in memory that nobody else has a view of for `'a`.
    pub(crate) unsafe fn matrix_mut<'a>(self, operand: &'static str) -> PyResult<MatMut<'a>> {
        let span = self.checked_span(operand)?;
        // SAFETY: as above.
        let data =
            unsafe { if span == 0 { &mut [] } else { std::slice::from_raw_parts_mut(self.address as *mut f32, span) } };
        MatMut::with_strides(data, self.rows, self.cols, self.row_stride, self.col_stride).map_err(raised)
    }

    /// A vector to read.
    ///
    /// # Safety
    /// As [`View::matrix`].
    pub(crate) unsafe fn line<'a>(self, operand: &'static str) -> PyResult<&'a [f32]> {
        let len = self.line_len(operand)?;
        // SAFETY: by the caller; it is contiguous, by the check.
        Ok(unsafe { if len == 0 { &[] } else { std::slice::from_raw_parts(self.address as *const f32, len) } })
    }

    /// A vector to write.
    ///
    /// # Safety
    /// As [`View::matrix_mut`].
    pub(crate) unsafe fn line_mut<'a>(self, operand: &'static str) -> PyResult<&'a mut [f32]> {
        let len = self.line_len(operand)?;
        // SAFETY: as above.
        Ok(unsafe { if len == 0 { &mut [] } else { std::slice::from_raw_parts_mut(self.address as *mut f32, len) } })
    }

    /// Three whole numbers.
    ///
    /// # Safety
    /// As [`View::matrix`], of u32.
    pub(crate) unsafe fn words(self) -> Option<[u32; 3]> {
        if self.span() != Some(3) {
            return None;
        }
        // SAFETY: by the caller; there are three of them, by the check.
        unsafe { std::slice::from_raw_parts(self.address as *const u32, 3) }.try_into().ok()
    }

    fn line_len(&self, operand: &'static str) -> PyResult<usize> {
        let rows_follow = self.rows <= 1 || self.row_stride == self.cols;
        if self.cols > 1 && self.col_stride != 1 || !rows_follow {
            return Err(refused(operand, "expected a contiguous vector"));
        }
        self.checked_span(operand)
    }
}
