//! Blocks of rows: how a batch, its record and its results are cut.

use super::batch::Slab;
use crate::gemm::cells::Out;
use crate::mat::MatRef;
use crate::program::Program;
use crate::program::lower::Cuts;
use crate::program::memory::Memory;
use crate::program::step::Port;
use crate::team::pieces::{Chunks, Columns, Cut, Grid, Pieces, Rectangles};
use std::ops::Range;

/// What the caller gives.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    /// What enters the pass: x forward, dy backward.
    pub(super) entry: MatRef<'a>,
    pub(super) skip: Option<MatRef<'a>>,
}

impl<'a> Given<'a> {
    pub(super) fn at(&self, port: Port) -> Option<MatRef<'a>> {
        match port {
            Port::X | Port::Dy => Some(self.entry),
            Port::Skip => self.skip,
        }
    }
}

/// The record of some rows: written by forward, read by backward.
pub(super) enum Record<'a> {
    Write(&'a mut [f32]),
    Read(&'a [f32]),
}

impl Record<'_> {
    fn as_slice(&self) -> &[f32] {
        match self {
            Record::Write(data) => data,
            Record::Read(data) => data,
        }
    }
}

/// Some rows of the batch, with all that belongs to them.
pub(super) struct Rows<'a> {
    /// The first of them in the batch, and how many.
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) record: Record<'a>,
    /// Their local memory: none forward, where each thread has one of its own, unless columns are shared.
    pub(super) local: &'a mut [f32],
    /// Where the result goes.
    pub(super) out: Option<Out<'a>>,
    /// Squared norms of the rows of each part's dy, part by part; empty unless asked for.
    pub(super) norms: &'a mut [f64],
    /// For each row: floats of record, floats of local memory, norms.
    pub(super) widths: (usize, usize, usize),
}

/// A row block.
pub(super) struct Block<'a> {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) record: Record<'a>,
    pub(super) local: &'a mut [f32],
    pub(super) out: Option<Out<'a>>,
    pub(super) norms: &'a mut [f64],
}

/// Some panels of a row block while a step runs.
pub(super) struct Tile<'a> {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) panels: Range<usize>,
    pub(super) record: Cut<'a>,
    pub(super) local: Cut<'a>,
    pub(super) out: Option<Out<'a>>,
    pub(super) norms: &'a mut [f64],
}

impl<'a> Rows<'a> {
    pub(super) fn reborrow(&mut self) -> Rows<'_> {
        Rows {
            record: match &mut self.record {
                Record::Write(data) => Record::Write(data),
                Record::Read(data) => Record::Read(data),
            },
            local: self.local,
            out: self.out.as_mut().map(Out::reborrow),
            norms: self.norms,
            ..*self
        }
    }

    /// The same rows, to be summed over: all that steps by rows have left of them.
    pub(super) fn slab<'s>(&'s self, program: &'s Program, memory: &'s Memory, block_rows: usize) -> Slab<'s> {
        let (record, (record_width, ..)) = (self.record.as_slice(), self.widths);
        Slab { program, memory, record, record_width, local: self.local, block_rows, rows: self.count }
    }

    /// All rows as one block.
    pub(super) fn into_block(self) -> Block<'a> {
        let Rows { first, count: rows, record, local, out, norms, .. } = self;
        Block { first, rows, record, local, out, norms }
    }

    /// The blocks, each whole.
    pub(super) fn blocks(self, size: usize) -> impl Pieces<Item = Block<'a>> {
        let Rows { first, count, record, local, out, norms, widths } = self;
        let (record, read) = match record {
            Record::Write(data) => (Some(Chunks::new(data, size.saturating_mul(widths.0))), &[][..]),
            Record::Read(data) => (None, data),
        };
        let grid = Grid::of_rows(count.div_ceil(size), size);
        let local = Chunks::new(local, size.saturating_mul(widths.1));
        let norms = Chunks::new(norms, size.saturating_mul(widths.2));
        let all = record.beside(local).beside(out.map(|out| Rectangles::new(out, grid))).beside(norms);
        all.map(move |index, (((record, local), out), norms)| {
            let at = index * size;
            let rows = size.min(count - at);
            let record = record.map_or_else(|| Record::Read(&read[at * widths.0..][..rows * widths.0]), Record::Write);
            Block { first: first + at, rows, record, local, out, norms }
        })
    }

    /// The blocks, in pieces of their columns, for a step that writes some places of the record and of local memory.
    pub(super) fn tiles(
        self,
        grid: Grid,
        (record_places, local_places): (&'a Cuts, &'a Cuts),
    ) -> impl Pieces<Item = Tile<'a>> {
        let Rows { first, count, record, local, out, norms, widths } = self;
        let size = grid.rows;
        let (record, read) = match record {
            Record::Write(data) => (Some(Columns::new(data, widths.0, record_places.as_slice(), grid)), &[][..]),
            Record::Read(data) => (None, data),
        };
        let local = Columns::new(local, widths.1, local_places.as_slice(), grid);
        // Norms go with whole rows: steps that take them are not cut.
        let norms = (grid.across == 1).then(|| Chunks::new(norms, size.saturating_mul(widths.2)));
        let all = record.beside(local).beside(out.map(|out| Rectangles::new(out, grid))).beside(norms);
        all.map(move |index, (((record, local), out), norms)| {
            let (block, panels) = grid.at(index);
            let at = block * size;
            let rows = size.min(count - at);
            let record = record.unwrap_or_else(|| Cut::read(&read[at * widths.0..][..rows * widths.0]));
            Tile { first: first + at, rows, panels, record, local, out, norms: norms.unwrap_or_default() }
        })
    }
}
