//! Blocks of rows: how a batch, its record and its results are cut.

use crate::gemm::cells::Out;
use crate::gemm::pack::unpack;
use crate::gemm::panels::{PanelMut, PanelRef};
use crate::mat::{MatMut, MatRef, RowsMut};
use crate::program::{Port, wide};
use crate::simd::Isa;

/// Where the rows of a result go.
pub(super) enum Sink<'a> {
    /// To the caller's row-major matrix, by the kernels themselves.
    Rows(MatMut<'a>),
    /// To panels of so many columns, row block after row block; the caller's matrix has other strides and is filled afterwards.
    Staged(&'a mut [f32], usize),
}

impl<'a> Sink<'a> {
    /// Cuts off the next `rows` rows.
    fn take(&mut self, rows: usize) -> Dest<'a> {
        match self {
            Sink::Rows(m) => Dest::Rows(m.take_rows(rows)),
            Sink::Staged(data, cols) => {
                let (head, tail) = std::mem::take(data).split_at_mut(wide(*cols) * rows);
                *data = tail;
                Dest::Panels(PanelMut::new(head, rows, *cols))
            }
        }
    }
}

/// Copies staged row blocks to a matrix of any strides.
pub(super) fn unstage(isa: Isa, staging: &[f32], rows: usize, out: &mut MatMut<'_>) {
    let (n, cols) = out.shape();
    let width = wide(cols);
    for first in (0..n).step_by(rows) {
        let rows = rows.min(n - first);
        unpack(isa, PanelRef::new(&staging[first * width..][..rows * width], rows, cols), out, first);
    }
}

/// The part of a result that belongs to one row block.
pub(super) enum Dest<'a> {
    Rows(RowsMut<'a>),
    Panels(PanelMut<'a>),
}

impl<'a> From<Dest<'a>> for Out<'a> {
    fn from(dest: Dest<'a>) -> Self {
        match dest {
            Dest::Rows(rows) => rows.into(),
            Dest::Panels(panels) => panels.into(),
        }
    }
}

impl Dest<'_> {
    pub(super) fn reborrow(&mut self) -> Dest<'_> {
        match self {
            Dest::Rows(r) => Dest::Rows(r.reborrow()),
            Dest::Panels(p) => Dest::Panels(p.reborrow()),
        }
    }
}

/// The record of some rows: written by forward, read by backward.
pub(super) enum Record<'a> {
    Write(&'a mut [f32]),
    Read(&'a [f32]),
}

impl<'a> Record<'a> {
    /// Cuts off the first `len` floats.
    fn take(&mut self, len: usize) -> Record<'a> {
        match self {
            Record::Write(data) => {
                let (head, tail) = std::mem::take(data).split_at_mut(len);
                *data = tail;
                Record::Write(head)
            }
            Record::Read(data) => {
                let (head, tail) = data.split_at(len);
                *data = tail;
                Record::Read(head)
            }
        }
    }
}

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

/// Some rows of the batch, with all that belongs to them.
pub(super) struct RowBlock<'a> {
    /// Row of the batch that is its first.
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) record: Record<'a>,
    /// Its part of the slab, backward.
    pub(super) slab: &'a mut [f32],
    pub(super) dest: Option<Dest<'a>>,
    /// Squared norms of the rows of each part's dy, part by part; empty unless asked for.
    pub(super) norms: &'a mut [f64],
}

/// Cuts a batch, or a slab of it, into blocks of rows.
pub(super) struct RowBlocks<'a, 's> {
    pub(super) record: Record<'a>,
    pub(super) slab: &'a mut [f32],
    pub(super) sink: Option<&'a mut Sink<'s>>,
    pub(super) norms: &'a mut [f64],
    /// For each row: floats of record, floats of slab, norms.
    pub(super) widths: (usize, usize, usize),
    pub(super) block_rows: usize,
    pub(super) next_row: usize,
    /// Rows left.
    pub(super) rows: usize,
}

impl<'a, 's: 'a> Iterator for RowBlocks<'a, 's> {
    type Item = RowBlock<'a>;

    fn next(&mut self) -> Option<RowBlock<'a>> {
        let rows = self.block_rows.min(self.rows);
        if rows == 0 {
            return None;
        }
        let (record_width, slab_width, norms_width) = self.widths;
        let (slab, slab_left) = std::mem::take(&mut self.slab).split_at_mut(rows * slab_width);
        let (norms, norms_left) = std::mem::take(&mut self.norms).split_at_mut(rows * norms_width);
        (self.slab, self.norms) = (slab_left, norms_left);
        let block = RowBlock {
            first_row: self.next_row,
            rows,
            record: self.record.take(rows * record_width),
            slab,
            dest: self.sink.as_mut().map(|sink| sink.take(rows)),
            norms,
        };
        self.next_row += rows;
        self.rows -= rows;
        Some(block)
    }
}
