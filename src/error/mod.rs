//! The one error type: every rejected call names the operand, what was expected and what was found.

#[cfg(feature = "safetensors")]
pub(crate) mod checkpoint;

/// Why a call was refused. It is returned before any output is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A matrix operand has the wrong shape.
    #[error("{operand}: expected shape {expected:?} (rows, columns), found {found:?}")]
    Shape {
        /// Name of the operand, as in the documentation of the call.
        operand: &'static str,
        /// Expected (rows, columns).
        expected: (usize, usize),
        /// Found (rows, columns).
        found: (usize, usize),
    },
    /// A vector operand has the wrong length.
    #[error("{operand}: expected length {expected}, found {found}")]
    Length {
        /// Name of the operand.
        operand: &'static str,
        /// Expected number of elements.
        expected: usize,
        /// Found number of elements.
        found: usize,
    },
    /// A slice is too short for the matrix that is to be seen in it.
    #[error("{operand}: a {rows}x{cols} matrix with strides {strides:?} needs {needed} elements, found {found}")]
    TooShort {
        /// Name of the operand.
        operand: &'static str,
        /// Rows of the view.
        rows: usize,
        /// Columns of the view.
        cols: usize,
        /// (row stride, column stride), in elements.
        strides: (usize, usize),
        /// Elements that the view spans.
        needed: usize,
        /// Elements in the slice.
        found: usize,
    },
    /// Sizes whose product does not fit in memory's address range.
    #[error("{operand}: {rows}x{cols} with strides {strides:?} overflows the address range")]
    Overflow {
        /// Name of the operand.
        operand: &'static str,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// (row stride, column stride), in elements.
        strides: (usize, usize),
    },
    /// Memory that the system does not give.
    #[error("out of memory: {bytes} bytes were asked for")]
    Memory {
        /// Size of the allocation.
        bytes: usize,
    },
    /// A mutable view in which two elements would share one place.
    #[error("{operand}: strides {strides:?} make elements of a {rows}x{cols} output overlap")]
    Overlap {
        /// Name of the operand.
        operand: &'static str,
        /// Rows of the view.
        rows: usize,
        /// Columns of the view.
        cols: usize,
        /// (row stride, column stride), in elements.
        strides: (usize, usize),
    },
    /// A class index outside the range of the logits.
    #[error("{operand}[{index}]: expected a class below {classes}, found {found}")]
    Class {
        /// Name of the operand.
        operand: &'static str,
        /// Position of the offending label.
        index: usize,
        /// Number of classes (columns of the logits).
        classes: usize,
        /// The label found there.
        found: usize,
    },
    /// An element of a matrix or of a vector (row 0) outside its allowed range.
    #[error("{operand}[{row}, {col}]: {reason}, found {found}")]
    Element {
        /// Name of the operand.
        operand: &'static str,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// What is allowed.
        reason: &'static str,
        /// What was found, in decimal.
        found: String,
    },
    /// A setting outside its allowed range.
    #[error("{operand}: {reason}")]
    Setting {
        /// Name of the setting.
        operand: &'static str,
        /// What is allowed.
        reason: &'static str,
    },
    /// A gradient that an optimiser cannot use, where a step was to be checked.
    #[error(
        "gradient of {parameter}: expected magnitudes of at most {limit}, found {found} at element {index}, and {count} such elements in all"
    )]
    Gradient {
        /// Name of the first parameter with such a gradient.
        parameter: String,
        /// Position of the first such element in it, row by row.
        index: usize,
        /// The largest magnitude allowed.
        limit: String,
        /// The value found there.
        found: String,
        /// How many there are in all gradients.
        count: usize,
    },
    /// A measurement of speed on a target without a clock, such as `wasm32-unknown-unknown`.
    #[error("this target has no clock to measure by")]
    NoClock,
    /// An instruction set that does not exist or that this CPU does not have.
    #[error("{source_name}={requested:?}: not an instruction set of this CPU; it has {available}")]
    Isa {
        /// Where the request came from, such as `RESBLOCK_ISA`.
        source_name: &'static str,
        /// What was asked for.
        requested: String,
        /// What there is.
        available: String,
    },
    /// Gradients or optimiser state made for another network.
    #[error("{operand}: made for a network with other tensors; {tensor} differs")]
    Mismatch {
        /// Name of the operand.
        operand: &'static str,
        /// Name of the first tensor that differs, in the order of the parameters.
        tensor: String,
    },
    /// Values of another shape than the parameter or the gradient that they are to replace.
    #[error("{tensor}: expected shape {expected:?} (rows, columns), found {found:?}")]
    TensorShape {
        /// Name of the tensor.
        tensor: String,
        /// Expected (rows, columns).
        expected: (usize, usize),
        /// Found (rows, columns).
        found: (usize, usize),
    },
    /// Memory that does not hold the record of such a forward pass.
    #[error("record: {reason}")]
    Record {
        /// Why not.
        reason: &'static str,
    },
    /// A saved network that cannot be written, read, or put into this one.
    #[cfg(feature = "safetensors")]
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
}

impl Error {
    pub(crate) fn element(operand: &'static str, (row, col): (usize, usize), reason: &'static str, found: f32) -> Self {
        Error::Element { operand, row, col, reason, found: found.to_string() }
    }
}

/// Checks a matrix shape: `Error::Shape` with the operand's name where it differs.
pub(crate) fn expect_shape(
    operand: &'static str,
    expected: (usize, usize),
    found: (usize, usize),
) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Shape { operand, expected, found }) }
}

/// Checks a vector length: `Error::Length` with the operand's name where it differs.
pub(crate) fn expect_len(operand: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { operand, expected, found }) }
}
