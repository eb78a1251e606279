//! The caller's memory. All that C vouches for is vouched for here: what is not NULL is an address of what its type says, of as many elements as its sizes
//! say, that nobody else writes to during the call, and nobody else reads where the call writes.

use crate::status::{Failure, Status};
use resblock::{MatMut, MatRef};
use std::ffi::{CStr, c_char};

/// A matrix to read. Strides are in elements; both 0: row-major without gaps.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ConstMatrix {
    /// Its first element; may be NULL where there are no elements.
    pub data: *const f32,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from a row to the next.
    pub row_stride: usize,
    /// Elements from a column to the next.
    pub col_stride: usize,
}

/// A matrix to write. Strides are in elements; both 0: row-major without gaps.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Its first element; may be NULL where there are no elements.
    pub data: *mut f32,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from a row to the next.
    pub row_stride: usize,
    /// Elements from a column to the next.
    pub col_stride: usize,
}

/// A parameter, of the shape that the function's tensor has. Strides are those of weights, as of a matrix; of all else they are 0 or ignored.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its first element.
    pub data: *const f32,
    /// Elements from an output to the next.
    pub row_stride: usize,
    /// Elements from an input to the next.
    pub col_stride: usize,
}

/// Where the gradient of a parameter goes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Gradient {
    /// Its first element; NULL: it is not wanted, and not computed.
    pub data: *mut f32,
    /// Elements from an output to the next.
    pub row_stride: usize,
    /// Elements from an input to the next.
    pub col_stride: usize,
}

pub(crate) fn null(operand: &str) -> Failure {
    Failure::new(Status::NullPointer, format!("{operand}: is NULL"))
}

/// Elements from the first to the last one.
fn span(operand: &str, (rows, cols): (usize, usize), strides: (usize, usize)) -> Result<usize, Failure> {
    if rows == 0 || cols == 0 {
        return Ok(0);
    }
    let span = || (rows - 1).checked_mul(strides.0)?.checked_add((cols - 1).checked_mul(strides.1)?)?.checked_add(1);
    let span = span().filter(|span| *span <= isize::MAX as usize / size_of::<f32>());
    span.ok_or_else(|| {
        let message = format!("{operand}: {rows}x{cols} with strides {strides:?} overflows the address range");
        Failure::new(Status::Overflow, message)
    })
}

/// A list to read.
///
/// # Safety
/// The module's contract.
pub(crate) unsafe fn list<'a, T>(operand: &str, data: *const T, len: usize) -> Result<&'a [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(null(operand));
    }
    // SAFETY: not null; the rest by the caller.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// A list to write.
///
/// # Safety
/// The module's contract.
pub(crate) unsafe fn list_mut<'a, T>(operand: &str, data: *mut T, len: usize) -> Result<&'a mut [T], Failure> {
    if len == 0 {
        return Ok(&mut []);
    }
    if data.is_null() {
        return Err(null(operand));
    }
    // SAFETY: not null; the rest by the caller.
    Ok(unsafe { std::slice::from_raw_parts_mut(data, len) })
}

/// What a pointer is to.
///
/// # Safety
/// The module's contract.
pub(crate) unsafe fn shared<'a, T>(operand: &str, at: *const T) -> Result<&'a T, Failure> {
    // SAFETY: null or of its type, by the caller.
    unsafe { at.as_ref() }.ok_or_else(|| null(operand))
}

/// What a pointer is to, to write.
///
/// # Safety
/// The module's contract.
pub(crate) unsafe fn exclusive<'a, T>(operand: &str, at: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: null or of its type, by the caller.
    unsafe { at.as_mut() }.ok_or_else(|| null(operand))
}

/// A text that ends with a 0.
///
/// # Safety
/// The module's contract.
pub(crate) unsafe fn text<'a>(operand: &str, at: *const c_char) -> Result<&'a str, Failure> {
    if at.is_null() {
        return Err(null(operand));
    }
    // SAFETY: not null, and a text, by the caller.
    let text = unsafe { CStr::from_ptr(at) }.to_str();
    text.map_err(|_| Failure::new(Status::Setting, format!("{operand}: is not UTF-8")))
}

/// Puts a new handle where the caller wants it.
///
/// # Safety
/// The module's contract.
pub(crate) unsafe fn give<T>(out: *mut *mut T, make: impl FnOnce() -> Result<T, Failure>) -> Result<(), Failure> {
    // SAFETY: by the caller.
    let out = unsafe { exclusive("out", out)? };
    *out = Box::into_raw(Box::new(make()?));
    Ok(())
}

/// Frees a handle, unless it is NULL.
///
/// # Safety
/// It is one that [`give`] has given, and nobody uses it any more.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: by the caller.
        drop(unsafe { Box::from_raw(handle) });
    }
}

/// Row-major, where nothing is said.
fn strides(cols: usize, row: usize, col: usize) -> (usize, usize) {
    if row == 0 && col == 0 { (cols, 1) } else { (row, col) }
}

impl ConstMatrix {
    /// # Safety
    /// The module's contract.
    pub(crate) unsafe fn view<'a>(self, operand: &str) -> Result<MatRef<'a>, Failure> {
        let (row, col) = strides(self.cols, self.row_stride, self.col_stride);
        // SAFETY: by the caller.
        let data = unsafe { list(operand, self.data, span(operand, (self.rows, self.cols), (row, col))?)? };
        Ok(MatRef::with_strides(data, self.rows, self.cols, row, col)?)
    }
}

impl Matrix {
    /// # Safety
    /// The module's contract.
    pub(crate) unsafe fn view<'a>(self, operand: &str) -> Result<MatMut<'a>, Failure> {
        let (row, col) = strides(self.cols, self.row_stride, self.col_stride);
        // SAFETY: by the caller.
        let data = unsafe { list_mut(operand, self.data, span(operand, (self.rows, self.cols), (row, col))?)? };
        Ok(MatMut::with_strides(data, self.rows, self.cols, row, col)?)
    }
}

impl Parameter {
    /// As weights of so many outputs and inputs.
    pub(crate) fn matrix(self, (rows, cols): (usize, usize)) -> ConstMatrix {
        ConstMatrix { data: self.data, rows, cols, row_stride: self.row_stride, col_stride: self.col_stride }
    }
}

impl Gradient {
    /// As that of weights of so many outputs and inputs; None: not wanted.
    pub(crate) fn matrix(self, (rows, cols): (usize, usize)) -> Option<Matrix> {
        let Self { data, row_stride, col_stride } = self;
        (!data.is_null()).then_some(Matrix { data, rows, cols, row_stride, col_stride })
    }
}
