//! The executor by batch: sums over the rows of a slab. B3 dW2 = dYᵀ H, db2 = sums of dY; B4 dW1 = dZᵀ X, db1 = sums of dZ.
//!
//! The vector operand is dZ or dY on the slab, the broadcast operand X or H on the record: the same panels that the GEMMs by rows
//! wrote and read.

use super::source::{Slot, Slots, Target};
use crate::context::Context;
use crate::gemm::blocking::{streams_gradient, useful_threads};
use crate::gemm::column_sums::column_sums;
use crate::gemm::driver::for_each;
use crate::gemm::macro_kernel::{GradGemm, grad_gemm};
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::gemm::start::Start;
use crate::mat::RowsMut;
use crate::program::memory::{Home, Memory};
use crate::program::{Grad, Program, Val};
use std::ops::Range;

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
    fn blocks(self) -> impl Iterator<Item = Block<'a>> {
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
            Home::None | Home::Caller | Home::Chunk(_) => unreachable!("sums read what is kept"),
        };
        PanelRef::new(&data[at..][..value.width() * rows], rows, value.cols)
    }
}

/// The work of one thread at a time: some panels or rows of one weight gradient, or some columns of one bias gradient.
enum Piece<'a> {
    Panels { of: Grad, first: usize, out: PanelMut<'a> },
    Rows { of: Grad, outputs_first: bool, at: Range<usize>, out: RowsMut<'a> },
    Bias { of: Grad, first: usize, out: &'a mut [f32] },
}

/// Panels in a piece of a weight gradient, where threads share: a multiple of what tiles take side by side on any instruction
/// set (3 and 1), and still several pieces for each thread in a 256-wide layer.
const PIECE_PANELS: usize = 6;
/// Panels in a piece of a bias gradient: the four that `column_sums` runs side by side.
const PIECE_BIAS_PANELS: usize = 4;

/// Does `run` with the gradients of one affine map, each in one piece. What was declined has none.
fn whole(slot: Slot<'_>, of: Grad, (inputs, outputs): (usize, usize), run: impl Fn(&mut Piece<'_>)) {
    match slot.dw {
        Some(Target::Panels(out)) if !out.is_empty() => {
            run(&mut Piece::Panels { of, first: 0, out: PanelMut::new(out, inputs, outputs) });
        }
        Some(Target::Rows { mut m, outputs_first }) => {
            let rows = m.rows();
            run(&mut Piece::Rows { of, outputs_first, at: 0..panels(rows), out: m.take_rows(rows) });
        }
        _ => {}
    }
    if let Some(out) = slot.db.filter(|out| !out.is_empty()) {
        run(&mut Piece::Bias { of, first: 0, out });
    }
}

/// The same cut into pieces for threads to share.
fn pieces(slot: Slot<'_>, of: Grad, (inputs, outputs): (usize, usize)) -> impl Iterator<Item = Piece<'_>> {
    let (panel_data, rows) = match slot.dw {
        None => (&mut [][..], None),
        Some(Target::Panels(data)) => (data, None),
        Some(Target::Rows { m, outputs_first }) => (&mut [][..], Some((m, outputs_first))),
    };
    let by_panels = panel_data.chunks_mut((PIECE_PANELS * PANEL * inputs).max(1)).enumerate().map(move |(i, out)| {
        let first = i * PIECE_PANELS;
        let cols = (PIECE_PANELS * PANEL).min(outputs - first * PANEL);
        Piece::Panels { of, first, out: PanelMut::new(out, inputs, cols) }
    });
    let by_rows = rows.into_iter().flat_map(move |(mut m, outputs_first)| {
        let total = panels(m.rows());
        (0..total).step_by(PIECE_PANELS).map(move |first| {
            let at = first..total.min(first + PIECE_PANELS);
            Piece::Rows { of, outputs_first, out: m.take_rows(at.len() * PANEL), at }
        })
    });
    let bias = slot.db.unwrap_or_default().chunks_mut(PIECE_BIAS_PANELS * PANEL).enumerate();
    let bias = bias.map(move |(i, out)| Piece::Bias { of, first: i * PIECE_BIAS_PANELS, out });
    by_panels.chain(by_rows).chain(bias)
}

impl Piece<'_> {
    /// Runs the chains over one more row block; `go_on`: from what the gradient holds, else from zero.
    fn add(&mut self, ctx: &Context, block: &Block<'_>, go_on: bool) {
        let isa = ctx.isa();
        let start = if go_on { Start::Continue } else { Start::Zero };
        match self {
            Piece::Panels { of, first, out } => {
                let count = panels(out.as_ref().cols());
                let (a, b) = (block.view(of.a), block.view(of.b));
                let stream = streams_gradient(isa, block.rows, a.cols().saturating_mul(b.cols()));
                let b = b.panel_range(*first, count);
                grad_gemm(isa, &mut GradGemm { a, b, start, stream, out: out.reborrow().into() });
            }
            Piece::Rows { of, outputs_first, at, out } => {
                // A product is the same either way round: so rows of the gradient are those of the operand that the caller wants first.
                let (rows, cols) = if *outputs_first { (of.b, of.a) } else { (of.a, of.b) };
                let (a, b) = (block.view(rows), block.view(cols));
                let stream = streams_gradient(isa, block.rows, a.cols().saturating_mul(b.cols()));
                let a = a.panel_range(at.start, at.len());
                grad_gemm(isa, &mut GradGemm { a, b, start, stream, out: out.reborrow().into() });
            }
            Piece::Bias { of, first, out } => {
                let b = block.view(of.b).panel_range(*first, panels(out.len()));
                column_sums(isa, b, go_on, out);
            }
        }
    }
}

/// Runs the chains of dW and db of some parts over the rows of a slab; `go_on`: from what the gradients hold, else from zero.
pub(super) fn sums(
    ctx: &Context,
    parts: Range<usize>,
    slab: Slab<'_>,
    threads: usize,
    grads: &mut Slots<'_, '_>,
    go_on: bool,
) {
    let parts = &slab.program.parts[parts];
    let work = parts.iter().map(|part| part.work).fold(0, usize::saturating_add);
    let threads = threads.min(useful_threads(slab.rows.saturating_mul(work)));
    let shapes = &slab.program.affines;
    let of = parts.iter().rev().flat_map(|part| &part.grads);
    let run = |piece: &mut Piece<'_>| slab.blocks().for_each(|block| piece.add(ctx, &block, go_on || block.first > 0));
    if threads == 1 {
        // Without the machinery of sharing, which costs a step of one row 3 %.
        for &of in of {
            whole(grads.of(of.affine), of, shapes[of.affine], run);
        }
        return;
    }
    // Affine maps are numbered as a row meets them; so those of the parts are one range, whose last is met first on the way down.
    let numbers = || of.clone().map(|of| of.affine);
    let (Some(low), Some(high)) = (numbers().min(), numbers().max()) else { return };
    let all =
        grads.downwards(low..high + 1).zip(of.clone()).flat_map(|(slot, &of)| pieces(slot, of, shapes[of.affine]));
    // Nothing but a count of threads: a vector of units takes no memory.
    let mut crew = vec![(); threads];
    for_each(all, &mut crew, |mut piece, ()| run(&mut piece));
}
