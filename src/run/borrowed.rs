//! A caller's weights as the executor reads them: where they are.

use super::source::Source;
use crate::error::Error;
use crate::gemm::buffers::{Buffer, room};
use crate::gemm::factor::Factor;
use crate::params::borrowed::AffineRef;
use crate::program::{Program, Side, wide};

/// The biases of a network, each padded to whole panels. Memory that grows to the largest network it has seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Biases {
    buffer: Buffer,
    /// Where each starts.
    starts: Vec<usize>,
}

impl Biases {
    /// Copies the biases of all maps. Lengths have been checked.
    pub(crate) fn copy(&mut self, program: &Program, maps: &[AffineRef<'_>]) -> Result<(), Error> {
        room(&mut self.starts, maps.len())?;
        let mut end = 0usize;
        for &(_, outputs) in &program.affines {
            self.starts.push(end);
            end = end.saturating_add(wide(outputs));
        }
        self.buffer.grow(end)?;
        let all = self.buffer.as_mut_slice();
        for (map, &start) in maps.iter().zip(&self.starts) {
            if let Some(bias) = map.bias {
                all[start..start + bias.len()].copy_from_slice(bias);
            }
        }
        Ok(())
    }
}

/// A caller's weights and a copy of the biases.
pub(crate) struct Borrowed<'a> {
    pub(crate) maps: &'a [AffineRef<'a>],
    pub(crate) biases: &'a Biases,
}

impl Source for Borrowed<'_> {
    fn map(&self, affine: usize, side: Side) -> (Factor<'_>, Option<&[f32]>) {
        let AffineRef { weights, bias } = self.maps[affine];
        let padded = |bias: &[f32]| &self.biases.buffer.as_slice()[self.biases.starts[affine]..][..wide(bias.len())];
        match side {
            Side::Forward => (Factor::strided(weights.t()), bias.map(padded)),
            Side::Adjoint => (Factor::strided(weights), None),
        }
    }

    fn moves(&self) -> bool {
        true
    }
}
