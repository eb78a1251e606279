//! A caller's weights in panels: put there once a call, in one region of all threads that it is worth.

use super::source::Source;
use crate::context::Context;
use crate::error::Error;
use crate::gemm::buffers::Buffer;
use crate::gemm::driver::for_each;
use crate::gemm::factor::Factor;
use crate::gemm::pack::pack;
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panel_len, panels};
use crate::layers::functional::AffineRef;
use crate::mat::MatRef;
use crate::program::{Program, Side};

/// Weights that make one more thread worth its job: some 10 microseconds of packing.
const WEIGHTS_PER_THREAD: usize = 1 << 16;
/// Panels that a thread packs at a time.
const PIECE_PANELS: usize = 4;

/// Memory for a network's weights and biases in panels. It grows to the largest network it has seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packed {
    buffer: Buffer,
    maps: Vec<Map>,
}

/// An affine map in the buffer.
#[derive(Debug, Clone, Copy)]
struct Map {
    /// Where its weights start; the bias, if there is one, follows.
    start: usize,
    rows: usize,
    cols: usize,
    bias: bool,
}

impl Map {
    fn weights(&self) -> usize {
        panels(self.cols) * PANEL * self.rows
    }
}

impl Packed {
    /// Packs all maps as the GEMMs of one side read them: Wᵀ and biases forward, W backward. Shapes have been checked.
    pub(crate) fn pack(
        &mut self,
        ctx: &Context,
        program: &Program,
        maps: &[AffineRef<'_>],
        side: Side,
    ) -> Result<PackedSource<'_>, Error> {
        let forward = side == Side::Forward;
        self.maps.clear();
        self.maps.try_reserve(maps.len()).map_err(|_| Error::Memory { bytes: maps.len() * size_of::<Map>() })?;
        let (mut start, mut weights) = (0usize, 0usize);
        for (map, &(inputs, outputs)) in maps.iter().zip(&program.affines) {
            let (rows, cols) = if forward { (inputs, outputs) } else { (outputs, inputs) };
            let bias = forward && map.bias.is_some();
            let len = panel_len("weights", rows, cols)?;
            self.maps.push(Map { start, rows, cols, bias });
            weights = weights.saturating_add(len);
            let overflow = Error::Overflow { operand: "weights", rows, cols, strides: (PANEL, 1) };
            let bias_len = if bias { panels(cols) * PANEL } else { 0 };
            start = start.checked_add(len).and_then(|at| at.checked_add(bias_len)).ok_or(overflow)?;
        }
        self.buffer.grow(start)?;
        let isa = ctx.isa();
        let mut left = &mut self.buffer.as_mut_slice()[..start];
        let pieces = maps.iter().zip(&self.maps).flat_map(|(from, map)| {
            let (data, rest) = std::mem::take(&mut left).split_at_mut(map.weights());
            let (bias, rest) = rest.split_at_mut(if map.bias { panels(map.cols) * PANEL } else { 0 });
            left = rest;
            if let Some(from) = from.bias.filter(|_| map.bias) {
                bias[..from.len()].copy_from_slice(from);
            }
            let source = if forward { from.weights.t() } else { from.weights };
            cut(source, data, *map)
        });
        let mut crew = vec![(); ctx.par().threads_for(1 + weights / WEIGHTS_PER_THREAD)];
        for_each(pieces, &mut crew, |(from, to), ()| pack(isa, from, to));
        Ok(PackedSource { data: self.buffer.as_slice(), maps: &self.maps })
    }
}

/// Cuts a matrix and its panels into pieces of some columns.
fn cut<'a>(
    source: MatRef<'a>,
    data: &'a mut [f32],
    Map { rows, cols, .. }: Map,
) -> impl Iterator<Item = (MatRef<'a>, PanelMut<'a>)> {
    data.chunks_mut((PIECE_PANELS * PANEL * rows).max(1)).enumerate().map(move |(i, data)| {
        let first = i * PIECE_PANELS * PANEL;
        let from = source.t().row_range(first, PIECE_PANELS * PANEL).t();
        (from, PanelMut::new(data, rows, (cols - first).min(PIECE_PANELS * PANEL)))
    })
}

/// A caller's weights as the executor reads them, for one side.
pub(crate) struct PackedSource<'a> {
    data: &'a [f32],
    maps: &'a [Map],
}

impl Source for PackedSource<'_> {
    fn factor(&self, affine: usize, _: Side) -> Factor<'_> {
        let map = self.maps[affine];
        Factor::stored(PanelRef::new(&self.data[map.start..][..map.weights()], map.rows, map.cols))
    }

    fn bias(&self, affine: usize) -> Option<&[f32]> {
        let map = self.maps[affine];
        map.bias.then(|| &self.data[map.start + map.weights()..][..panels(map.cols) * PANEL])
    }
}
