//! A caller's weights as the executor reads them: where they are.

use super::source::Source;
use crate::error::Error;
use crate::gemm::buffers::{Buffer, room};
use crate::gemm::factor::Factor;
use crate::params::borrowed::{AffineRef, ParamsRef};
use crate::program::step::Side;
use crate::program::{Program, wide};

/// The biases and vectors of a network, each padded to whole panels. Memory that grows to the largest network it has seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines {
    buffer: Buffer,
    /// Where each starts: the bias of each map, and then each vector.
    starts: Vec<usize>,
}

impl Lines {
    /// Copies the biases of all maps, and all vectors. Lengths have been checked.
    pub(crate) fn copy(&mut self, program: &Program, params: ParamsRef<'_>) -> Result<(), Error> {
        let lens = || program.affines.iter().map(|&(_, outputs)| outputs).chain(program.vectors.iter().copied());
        room(&mut self.starts, program.affines.len() + program.vectors.len())?;
        let mut end = 0usize;
        for len in lens() {
            self.starts.push(end);
            end = end.saturating_add(wide(len));
        }
        self.buffer.grow(end)?;
        let all = self.buffer.as_mut_slice();
        let biases = params.affines.iter().map(|map| map.bias);
        for (line, &start) in biases.chain(params.vectors.iter().map(|line| Some(*line))).zip(&self.starts) {
            let line = line.unwrap_or_default();
            all[start..start + line.len()].copy_from_slice(line);
        }
        Ok(())
    }

    fn line(&self, index: usize, len: usize) -> &[f32] {
        &self.buffer.as_slice()[self.starts[index]..][..wide(len)]
    }
}

/// A caller's weights and a copy of biases and vectors.
pub(crate) struct Borrowed<'a> {
    pub(crate) maps: &'a [AffineRef<'a>],
    pub(crate) lines: &'a Lines,
}

impl Source for Borrowed<'_> {
    fn map(&self, affine: usize, side: Side) -> (Factor<'_>, Option<&[f32]>) {
        let AffineRef { weights, bias } = self.maps[affine];
        match side {
            Side::Forward => (Factor::strided(weights.t()), bias.map(|bias| self.lines.line(affine, bias.len()))),
            Side::Adjoint => (Factor::strided(weights), None),
        }
    }

    fn vector(&self, index: usize) -> &[f32] {
        let at = self.maps.len() + index;
        &self.lines.buffer.as_slice()[self.lines.starts[at]..]
    }

    fn moves(&self) -> bool {
        true
    }
}
