//! The memory that calls reuse.

use super::borrowed::Lines;
use super::plan::Plans;
use super::record::Record;
use crate::error::Error;
use crate::gemm::buffers::Buffer;
use crate::team::pieces::Target;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};

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
    /// Statistics of the batch, and of its gradients, in a backward pass.
    pub(crate) statistics: Buffer,
    /// Biases and vectors of the caller's.
    pub(crate) lines: Lines,
    /// Gradients of a caller's weights whose strides are of no other use, one for each affine map.
    pub(crate) staged_grads: Vec<Buffer>,
    /// Where the gradients of a backward pass go.
    pub(crate) targets: TargetMemory,
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

    /// The record of the latest pass, by [`crate::Layer::forward`].
    pub fn record(&self) -> &Record {
        &self.record
    }
}

/// The memory of a list of targets, empty between calls.
#[derive(Default)]
pub(crate) struct TargetMemory(pub(crate) Vec<Option<Target<'static>>>);

impl Clone for TargetMemory {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for TargetMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TargetMemory")
    }
}

// It is empty: a call that panics leaves nothing in it.
impl UnwindSafe for TargetMemory {}
impl RefUnwindSafe for TargetMemory {}

/// What one thread has for itself: on cache lines of its own (two, since they are fetched in pairs), for it is written with each row block.
#[derive(Debug, Clone, Default)]
#[repr(align(128))]
pub(crate) struct Scratch {
    /// The values of a row block on their way forward.
    pub(crate) local: Buffer,
    /// Weights put straight.
    pub(crate) pack: Buffer,
}

/// A scratch for each of `threads` threads, with room for so many floats.
pub(crate) fn grow_scratch(all: &mut Vec<Scratch>, threads: usize, local: usize, pack: usize) -> Result<(), Error> {
    if all.len() < threads {
        all.resize_with(threads, Scratch::default);
    }
    all[..threads].iter_mut().try_for_each(|scratch| scratch.pack.grow(pack).and_then(|()| scratch.local.grow(local)))
}
