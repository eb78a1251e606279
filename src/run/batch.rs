//! The executor by batch: sums over the rows of a slab. B3 dW2 = dYᵀ H, db2 = sums of dY; B4 dW1 = dZᵀ X, db1 = sums of dZ.
//!
//! So are the statistics of a BatchNorm, for which the steps by rows wait.
//!
//! The vector operand is dZ or dY on the slab, the broadcast operand X or H on the record: the same panels that the GEMMs by rows
//! wrote and read.

use super::shares::{Sum, TARGETS};
use super::source::{Slot, Slots, Target as Wanted};
use super::workspace::Scratch;
use crate::context::Context;
use crate::error::Error;
use crate::gemm::blocking::streams_gradient;
use crate::gemm::buffers::room;
use crate::gemm::cells::Out;
use crate::gemm::column_sums::{WIDE, column_sums};
use crate::gemm::macro_kernel::{GradGemm, grad_gemm};
use crate::gemm::moments::moments;
use crate::gemm::norm::dot_rows;
use crate::gemm::panels::{PANEL, PanelMut, PanelRef};
use crate::gemm::start::Start;
use crate::program::memory::{Home, Memory};
use crate::program::step::{BatchStep, Val};
use crate::program::{Program, wide};
use crate::team::Team;
use crate::team::pieces::{Chunks, Part, PartPiece, Parts, Pieces, Target, reuse};

/// Where gradients go, by the numbers of their targets.
pub(super) type Targets<'a> = Vec<Option<Target<'a>>>;

/// Lists the places of all gradients, in the memory of a list. What was declined has none.
pub(super) fn list<'a>(
    memory: Targets<'static>,
    program: &Program,
    grads: &'a mut Slots<'_, '_>,
) -> Result<Targets<'a>, Error> {
    let mut list = reuse(memory);
    let maps = TARGETS * program.affines.len();
    room(&mut list, maps + program.vectors.len())?;
    list.resize_with(maps + program.vectors.len(), || None);
    grads.each(|slot| match slot {
        Slot::Weights(_, Wanted::Panels([])) => {}
        Slot::Weights(affine, Wanted::Panels(data)) => {
            let (inputs, outputs) = program.affines[affine];
            let cells = PanelMut::new(data, inputs, outputs).into();
            list[TARGETS * affine] = Some(Target { cells, swapped: false });
        }
        Slot::Weights(affine, Wanted::Rows { mut m, outputs_first }) => {
            let rows = m.rows();
            list[TARGETS * affine] = Some(Target { cells: m.take_rows(rows).into(), swapped: outputs_first });
        }
        Slot::Bias(affine, line) => list[TARGETS * affine + 1] = target(line),
        Slot::Vector(vector, line) => list[maps + vector] = target(line),
    });
    Ok(list)
}

fn target(line: &mut [f32]) -> Option<Target<'_>> {
    (!line.is_empty()).then(|| Target { cells: Out::line(line), swapped: false })
}

/// Some row blocks, with what forward and backward by rows left of them.
#[derive(Clone, Copy)]
pub(super) struct Slab<'a> {
    pub(super) program: &'a Program,
    pub(super) memory: &'a Memory,
    pub(super) record: &'a [f32],
    pub(super) record_width: usize,
    pub(super) local: &'a [f32],
    pub(super) block_rows: usize,
    pub(super) rows: usize,
}

impl<'a> Slab<'a> {
    /// The row blocks, in order.
    fn blocks(self) -> impl Iterator<Item = Block<'a>> + Clone {
        (0..self.rows).step_by(self.block_rows).map(move |first| Block {
            slab: self,
            first,
            rows: self.block_rows.min(self.rows - first),
        })
    }
}

/// A row block of a slab.
struct Block<'a> {
    slab: Slab<'a>,
    first: usize,
    rows: usize,
}

impl<'a> Block<'a> {
    fn view(&self, val: Val) -> PanelRef<'a> {
        let Self { slab, first, rows } = *self;
        let value = slab.program.value(val);
        let (data, at) = match slab.memory.home(val) {
            Home::Record(at) => (slab.record, first * slab.record_width + at * rows),
            Home::Local(at) => (slab.local, first * slab.memory.local_width + at * rows),
            Home::None | Home::Caller | Home::Chunk(_) | Home::Parameter(_) | Home::Statistic(_) => {
                unreachable!("sums read what is kept")
            }
        };
        PanelRef::new(&data[at..][..value.width() * rows], rows, value.cols)
    }
}

/// Runs a piece of a sum over the row blocks of a slab; `go_on`: from what the gradient holds, else from zero.
fn add(ctx: &Context, slab: Slab<'_>, piece: PartPiece<'_, Sum>, go_on: bool) {
    let PartPiece { what, rows, panels: columns, target: Target { mut cells, swapped } } = piece;
    let isa = ctx.isa();
    for block in slab.blocks() {
        let go_on = go_on || block.first > 0;
        match *what {
            Sum::Product { a, b } => {
                let (a, b) = (block.view(a), block.view(b));
                let stream = streams_gradient(isa, block.rows, a.cols().saturating_mul(b.cols()));
                let a = a.panel_range(rows.start / PANEL, (rows.end - rows.start).div_ceil(PANEL));
                let b = b.panel_range(columns.start, columns.end - columns.start);
                // A product is the same either way round: so rows of the gradient are those of the operand that the caller wants first.
                let (a, b) = if swapped { (b, a) } else { (a, b) };
                let start = if go_on { Start::Continue } else { Start::Zero };
                grad_gemm(isa, &mut GradGemm { a, b, start, stream, out: cells.reborrow() });
            }
            Sum::Columns { b, times } => {
                let mine = |val| block.view(val).panel_range(columns.start, columns.end - columns.start);
                column_sums(isa, mine(b), times.map(mine), go_on, cells.row_mut());
            }
            Sum::All { b, times } => {
                let sum = &mut cells.row_mut()[0];
                let start = if go_on { *sum } else { 0.0 };
                *sum = dot_rows(isa, block.view(b).into(), block.view(times).into(), block.rows, start);
            }
        }
    }
}

/// Runs the chains of some dW and db over the rows of a slab; `go_on`: from what the gradients hold, else from zero.
pub(super) fn sums(
    ctx: &Context,
    team: &mut Team,
    crew: &mut [Scratch],
    parts: &[Part<Sum>],
    slab: Slab<'_>,
    targets: &mut Targets<'_>,
    go_on: bool,
) {
    if team.is_alone() {
        // Each gradient whole, without the machinery of pieces: a step of one row is a few microseconds.
        for Part { target, what, .. } in parts {
            if let Some(Target { cells, swapped }) = &mut targets[*target] {
                let target = Target { cells: cells.reborrow(), swapped: *swapped };
                let all = 0..usize::MAX / PANEL;
                add(ctx, slab, PartPiece { what, rows: all.clone(), panels: all, target }, go_on);
            }
        }
        return;
    }
    let Some(last) = parts.last() else { return };
    team.each(last.before + last.grid.pieces(), Parts::new(targets, parts), crew, |piece, _| {
        if let Some(piece) = piece {
            add(ctx, slab, piece, go_on);
        }
    });
}

/// Takes statistics of the rows of a slab, which is the whole batch.
pub(super) fn statistics(
    ctx: &Context,
    team: &mut Team,
    crew: &mut [Scratch],
    what: &BatchStep<Val>,
    slab: Slab<'_>,
    all: &mut [f32],
) {
    let (BatchStep::Moments { mean: first, variance: second, .. }
    | BatchStep::Slopes { mean: first, slope: second, .. }) = *what;
    let cols = slab.program.value(first).cols;
    // Two lines, one behind the other, as the part that made them left them (`Builder::statistic`).
    let (Home::Statistic(at), Home::Statistic(after)) = (slab.memory.home(first), slab.memory.home(second)) else {
        return;
    };
    let (one, other) = all[at..].split_at_mut(after - at);
    let size = WIDE * PANEL;
    let lines = Chunks::new(&mut one[..cols], size).beside(Chunks::new(&mut other[..cols], size));
    let pieces = lines.map(|index, lines| (index * WIDE, lines));
    team.each(wide(cols).div_ceil(size), pieces, crew, |(panel, (one, other)), _| {
        let isa = ctx.isa();
        match *what {
            BatchStep::Moments { a, .. } => {
                let blocks = slab.blocks().map(|block| block.view(a).panel_range(panel, WIDE));
                moments(isa, blocks, one, other);
            }
            BatchStep::Slopes { dn, normal, .. } => {
                for block in slab.blocks() {
                    let go_on = block.first > 0;
                    let (dn, normal) = (block.view(dn), block.view(normal));
                    let [dn, normal] = [dn, normal].map(|all| all.panel_range(panel, WIDE));
                    column_sums(isa, dn, None, go_on, one);
                    column_sums(isa, dn, Some(normal), go_on, other);
                }
                one.iter_mut().chain(other).for_each(|sum| *sum /= slab.rows as f32);
            }
        }
    });
}
