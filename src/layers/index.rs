//! Where the affine maps and vectors of a network of several layers are.

use crate::error::Error;
use crate::gemm::buffers::room;
use crate::program::Program;

/// By its number in the network: in which layer something is, and its number there.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    affines: Vec<(usize, usize)>,
    vectors: Vec<(usize, usize)>,
}

impl Index {
    /// Of layers with so many affine maps and vectors each, of a network whose program this is.
    pub(super) fn new(program: &Program, layers: impl Iterator<Item = (usize, usize)>) -> Result<Self, Error> {
        let mut index = Self::default();
        room(&mut index.affines, program.affines.len())?;
        room(&mut index.vectors, program.vectors.len())?;
        for (layer, (affines, vectors)) in layers.enumerate() {
            index.affines.extend((0..affines).map(|at| (layer, at)));
            index.vectors.extend((0..vectors).map(|at| (layer, at)));
        }
        Ok(index)
    }

    pub(super) fn affine(&self, index: usize) -> Option<(usize, usize)> {
        self.affines.get(index).copied()
    }

    pub(super) fn vector(&self, index: usize) -> Option<(usize, usize)> {
        self.vectors.get(index).copied()
    }
}
