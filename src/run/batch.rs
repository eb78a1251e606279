//! The executor by batch: sums over the rows of a slab. B3 dW2 = dYᵀ H, db2 = sums of dY; B4 dW1 = dZᵀ X, db1 = sums of dZ.
//!
//! The vector operand is dZ or dY on the slab, the broadcast operand X or H on the record: the same panels that the GEMMs by rows
//! wrote and read.

use crate::context::Context;
use crate::gemm::blocking::{streams_gradient, useful_threads};
use crate::gemm::column_sums::column_sums;
use crate::gemm::driver::for_each;
use crate::gemm::macro_kernel::{GradGemm, grad_gemm};
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::gemm::start::Start;
use crate::layers::gradients::{AffineGrad, Gradients};
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

/// The work of one thread at a time: some panels of one weight gradient, or some columns of one bias gradient.
enum Piece<'a> {
    Weights { of: Grad, first: usize, out: PanelMut<'a> },
    Bias { of: Grad, first: usize, out: &'a mut [f32] },
}

/// Panels in a piece of a weight gradient, where threads share: a multiple of what tiles take side by side on any instruction
/// set (3 and 1), and still several pieces for each thread in a 256-wide layer.
const PIECE_PANELS: usize = 6;
/// Panels in a piece of a bias gradient: the four that `column_sums` runs side by side.
const PIECE_BIAS_PANELS: usize = 4;

/// Cuts the gradients of one affine map into pieces. What was declined has none.
fn pieces<'a>(
    grad: &'a mut AffineGrad,
    of: Grad,
    (inputs, outputs): (usize, usize),
    alone: bool,
) -> impl Iterator<Item = Piece<'a>> {
    let dw = grad.dw.as_mut().map_or(&mut [][..], |dw| dw.as_mut_slice());
    let db = grad.db.as_mut().map_or(&mut [][..], |db| &mut db[..]);
    let all = panels(outputs).max(1);
    let (count, bias_count) = if alone { (all, all) } else { (PIECE_PANELS, PIECE_BIAS_PANELS) };
    let weights = dw.chunks_mut((count * PANEL * inputs).max(1)).enumerate().map(move |(i, out)| {
        let first = i * count;
        let cols = (count * PANEL).min(outputs - first * PANEL);
        Piece::Weights { of, first, out: PanelMut::new(out, inputs, cols) }
    });
    let bias = db.chunks_mut(bias_count * PANEL).enumerate().map(move |(i, out)| Piece::Bias {
        of,
        first: i * bias_count,
        out,
    });
    weights.chain(bias)
}

impl Piece<'_> {
    /// Runs the chains over one more row block; `go_on`: from what the gradient holds, else from zero.
    fn add(&mut self, ctx: &Context, block: &Block<'_>, go_on: bool) {
        let isa = ctx.isa();
        match self {
            Piece::Weights { of, first, out } => {
                let count = panels(out.as_ref().cols());
                let (a, b) = (block.view(of.a), block.view(of.b));
                let stream = streams_gradient(isa, block.rows, a.cols().saturating_mul(b.cols()));
                let b = b.panel_range(*first, count);
                let start = if go_on { Start::Continue } else { Start::Zero };
                grad_gemm(isa, GradGemm { a, b, start, stream, epilogue: out.reborrow().into() });
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
    grads: &mut Gradients,
    go_on: bool,
) {
    let parts = &slab.program.parts[parts];
    let work = parts.iter().map(|part| part.work).fold(0, usize::saturating_add);
    let threads = threads.min(useful_threads(slab.rows.saturating_mul(work)));
    // Affine maps are numbered as a row meets them; so those of the parts are one range, whose last is met first on the way down.
    let numbers = || parts.iter().flat_map(|part| part.grads.iter().map(|grad| grad.affine));
    let (Some(low), Some(high)) = (numbers().min(), numbers().max()) else { return };
    let of = parts.iter().rev().flat_map(|part| &part.grads);
    let affines = grads.affines[low..=high].iter_mut().rev();
    let shapes = &slab.program.affines;
    let all = affines.zip(of).flat_map(|(grad, &of)| pieces(grad, of, shapes[of.affine], threads == 1));
    // Nothing but a count of threads: a vector of units takes no memory.
    let mut crew = vec![(); threads];
    for_each(all, &mut crew, |mut piece, ()| {
        for block in slab.blocks() {
            piece.add(ctx, &block, go_on || block.first > 0);
        }
    });
}
