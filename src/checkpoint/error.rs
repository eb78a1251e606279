//! What can be wrong with a saved network: each error names the tensor, what was expected and what was found.

use std::io;
use std::path::{Path, PathBuf};

/// Why a network was not saved or loaded. It is returned before a parameter or an optimiser is changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A header that is no header of the safetensors format, or whose tensors overlap, leave gaps or have sizes that do not fit
    /// their shapes.
    #[error("header: {reason}")]
    Header {
        /// What the parser says.
        reason: String,
    },
    /// Fewer or more bytes than the header says: a truncated file, say.
    #[error("file: expected {expected} bytes by its header, found {found}")]
    Length {
        /// Bytes that the header asks for.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// Two tensors of one name.
    #[error("tensor {tensor:?}: expected once, found twice")]
    Duplicate {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor that the network or the optimiser needs.
    #[error("tensor {tensor:?}: expected in the file, not found")]
    Missing {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor that neither the network nor the optimiser has.
    #[error("tensor {tensor:?}: found in the file, not expected")]
    Unexpected {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor of another shape.
    #[error("tensor {tensor:?}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// (outputs, inputs) of weights, (outputs) of a bias, () of a number.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor of another element type. Nothing is converted: that would round.
    #[error("tensor {tensor:?}: expected elements of type {expected}, found {found}")]
    Dtype {
        /// Name of the tensor.
        tensor: String,
        /// `F32`, or `I64` for a count of steps.
        expected: String,
        /// The type in the file.
        found: String,
    },
    /// NaN or ∞, where [`crate::Checkpoint::require_finite`] forbids them.
    #[error("tensor {tensor:?}: expected finite values, found {found} at element {index}")]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
        /// Position of the first such element, row-major.
        index: usize,
        /// The value.
        found: String,
    },
    /// A count of steps below 0.
    #[error("tensor {tensor:?}: expected a count of steps, found {found}")]
    Count {
        /// Name of the tensor.
        tensor: String,
        /// The number.
        found: i64,
    },
    /// A file that cannot be read or written.
    #[error("{path:?}: {reason}")]
    File {
        /// Its path.
        path: PathBuf,
        /// For the caller to act on.
        kind: io::ErrorKind,
        /// What the system says.
        reason: String,
    },
}

impl CheckpointError {
    pub(super) fn file(path: &Path, error: &io::Error) -> Self {
        Self::File { path: path.into(), kind: error.kind(), reason: error.to_string() }
    }
}
