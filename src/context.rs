//! `Context`: on what and how a call runs. `Workspace`: the memory it reuses.

use crate::error::Error;
use crate::gemm::blocking::Blocking;
use crate::gemm::buffers::Buffer;
use crate::gemm::driver::Par;
use crate::run::borrowed::Biases;
use crate::run::plan::Plans;
use crate::run::record::Record;
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
            Err(Error::Isa { source_name: "isa", requested: isa.name().into(), available: IsaList })
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

/// Scratch memory and the record of a training forward pass. It grows to the largest call it has seen and allocates nothing
/// after that. Any workspace serves any layer, batch and context; a call borrows it whole.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// How calls of each kind were last run.
    pub(crate) plans: Plans,
    /// One for each thread.
    pub(crate) scratch: Vec<Scratch>,
    /// The record of a pass, until it is used or dropped.
    pub(crate) record: Record,
    /// Gradients of activations on their way down.
    pub(crate) slab: Buffer,
    /// Biases of the caller's.
    pub(crate) biases: Biases,
    /// Gradients of a caller's weights whose strides are of no other use, one for each affine map.
    pub(crate) staged_grads: Vec<Buffer>,
    /// Outputs on their way to a matrix that is not row-major.
    pub(crate) staging: Buffer,
    /// Squared norms of single rows, for the gradient-flow probe.
    pub(crate) row_norms: Vec<f64>,
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }
}

/// What one thread has for itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    /// The values of a row block on their way forward.
    pub(crate) local: Buffer,
    /// Weights put straight.
    pub(crate) pack: Buffer,
}

/// A scratch for each of `threads` threads, with room for `pack` floats, and for `local` in the first `with_local` of them.
pub(crate) fn grow_scratch(
    all: &mut Vec<Scratch>,
    threads: usize,
    (with_local, local): (usize, usize),
    pack: usize,
) -> Result<(), Error> {
    if all.len() < threads {
        all.resize_with(threads, Scratch::default);
    }
    all[..threads].iter_mut().try_for_each(|scratch| scratch.pack.grow(pack))?;
    all[..with_local].iter_mut().try_for_each(|scratch| scratch.local.grow(local))
}
