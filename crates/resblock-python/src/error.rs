//! Errors of the core as exceptions of Python's.

use pyo3::PyErr;
use pyo3::exceptions::{PyMemoryError, PyValueError};

pyo3::create_exception!(
    resblock,
    ResblockError,
    PyValueError,
    "A call that was refused: the message names the operand, what was expected and what was found. Nothing has been written."
);

/// Of memory: MemoryError; of all else: `resblock.ResblockError`, which is a ValueError.
pub(crate) fn raised(error: resblock::Error) -> PyErr {
    match error {
        resblock::Error::Memory { .. } => PyMemoryError::new_err(error.to_string()),
        _ => ResblockError::new_err(error.to_string()),
    }
}

/// An operand that is none.
pub(crate) fn refused(operand: &str, reason: impl std::fmt::Display) -> PyErr {
    ResblockError::new_err(format!("{operand}: {reason}"))
}
