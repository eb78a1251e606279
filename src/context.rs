//! `Context`: on what and how a call runs.

use crate::error::Error;
use crate::gemm::blocking::Blocking;
use crate::gemm::driver::Par;
use crate::simd::{Isa, IsaList};

/// How calls run: instruction set, threads and block sizes. None of them changes a bit of any result.
///
/// A plain value: copy it, pass it by reference, keep several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    isa: Isa,
    par: Par,
    blocking: Blocking,
}

impl Context {
    /// The fastest instruction set of this CPU (or `RESBLOCK_ISA`), one thread, default block sizes.
    ///
    /// # Errors
    /// [`Error::Isa`] if `RESBLOCK_ISA` names a set that does not exist or that this CPU does not have.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { isa: Isa::detect()?, par: Par::Seq, blocking: Blocking::default() })
    }

    /// The same with another instruction set.
    ///
    /// # Errors
    /// [`Error::Isa`] if this CPU does not have it.
    pub fn with_isa(self, isa: Isa) -> Result<Self, Error> {
        // Kernels rely on this check: a `Context` never holds a set that the CPU lacks.
        if isa.is_available() {
            Ok(Self { isa, ..self })
        } else {
            Err(Error::Isa { source_name: "isa", requested: isa.name().into(), available: IsaList.to_string() })
        }
    }

    /// The same with other threads.
    pub fn with_par(self, par: Par) -> Self {
        Self { par, ..self }
    }

    /// The same with other block sizes.
    pub fn with_blocking(self, blocking: Blocking) -> Self {
        Self { blocking, ..self }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads.
    pub fn par(&self) -> Par {
        self.par
    }

    /// The block sizes.
    pub fn blocking(&self) -> Blocking {
        self.blocking
    }

    /// Length of a k block: a positive multiple of 16.
    pub(crate) fn k_block(&self) -> usize {
        self.blocking.k_block(self.isa)
    }
}
