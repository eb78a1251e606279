//! What can be wrong with a saved network: each error names the tensor, what was expected and what was found.

use std::io;
use std::path::{Path, PathBuf};

/// Why a network was not saved or loaded. It is returned before a parameter, an optimiser or (but for [`CheckpointError::Unsynced`]) a
/// file is changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// No safetensors file at all, of which the first bytes are told, and the format where they show it; or a header whose tensors
    /// overlap, leave gaps or have sizes that do not fit their shapes.
    #[error("header: {reason}")]
    Header {
        /// What is wrong with it.
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
    /// A tensor that the index of a network in several files promises.
    #[error("tensor {tensor:?}: expected in the file {file:?} by the index, not found")]
    NotInFile {
        /// Name of the tensor.
        tensor: String,
        /// Name of the file.
        file: String,
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
    /// A tensor of another element type: integers, bits, or floats of 8 bits and less.
    #[error("tensor {tensor:?}: expected elements of type {expected}, found {found}")]
    Dtype {
        /// Name of the tensor.
        tensor: String,
        /// `F32`, in whose place F16, BF16 and F64 are read too, or `I64` for a count of steps.
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
    /// A network that would compute something else with the same parameters. See [`crate::Snapshot`] for how a file tells.
    #[error("{layer}: expected {expected:?} after it, the file's network has {found:?}")]
    Architecture {
        /// The first affine map, in the order that a row meets them, that differs in what comes after it.
        layer: String,
        /// The network's: `gelu`, or `identity + x` where the input of its layer is then added.
        expected: String,
        /// The file's.
        found: String,
    },
    /// A fused tensor of a [`crate::Convention`] of which the network has some pieces, but not all.
    #[error("tensor {tensor:?}: expected {expected} pieces, the network has {found}")]
    Pieces {
        /// Name of the tensor.
        tensor: String,
        /// As many as the convention says.
        expected: usize,
        /// As many as are parameters of the network.
        found: usize,
    },
    /// A parameter for which a [`crate::Convention`] has no name.
    #[error("tensor {tensor:?}: expected a name of the convention, found none")]
    Unnamed {
        /// Name of the tensor.
        tensor: String,
    },
    /// No index of a network in several files.
    #[error("index: {reason}")]
    Index {
        /// What is wrong with it.
        reason: String,
    },
    /// A text of an optimiser's groups that is not as a [`crate::Snapshot`] writes it.
    #[error("groups of the optimiser: not to be understood: {found:?}")]
    Groups {
        /// The text.
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
    /// A file that was written, synced and put in its place, whose folder then failed to be synced: whoever opens the path finds the new
    /// file, but after a loss of power may find the old one.
    #[error(
        "{path:?}: the new file is in its place, but may not survive a loss of power, since its folder was not synced: {reason}"
    )]
    Unsynced {
        /// Its path.
        path: PathBuf,
        /// For the caller to act on.
        kind: io::ErrorKind,
        /// What the system says.
        reason: String,
    },
}

impl CheckpointError {
    pub(crate) fn file(path: &Path, error: &io::Error) -> Self {
        Self::File { path: path.into(), kind: error.kind(), reason: error.to_string() }
    }

    #[cfg(any(unix, windows))]
    pub(crate) fn unsynced(path: &Path, error: &io::Error) -> Self {
        Self::Unsynced { path: path.into(), kind: error.kind(), reason: error.to_string() }
    }
}
