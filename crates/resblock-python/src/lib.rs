//! What the Python package calls: compiled formulas, on operands of NumPy's or at addresses that a framework gives.

#![allow(
    unsafe_code,
    reason = "operands are memory of other languages: `view` and `xla` say what makes each access right"
)]

mod error;
mod formulas;
mod function;
mod threads;
mod view;
mod xla;

/// The compiled part of the package `resblock`: not to be used by itself.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::error::ResblockError;
    #[pymodule_export]
    use super::formulas::{conventions, named_form, stored};
    #[pymodule_export]
    use super::function::{Function, Packed};
    #[pymodule_export]
    use super::threads::{num_threads, set_num_threads, use_openmp};
    #[pymodule_export]
    use super::xla::xla_targets;

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        use pyo3::types::PyModuleMethods;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
