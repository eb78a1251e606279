//! Weight gradients of a group of stages over a slab of rows: B3 dW2 = dYᵀ H, db2 = sums of dY; B4 dW1 = dZᵀ X, db1 = sums of dZ.
//!
//! The vector operand is dZ or dY on the slab, the broadcast operand X or H on the tape: the same panels that the GEMMs by rows
//! wrote and read.

use super::backward::{Group, Layout};
use super::{Stage, Stages, wide};
use crate::Activation;
use crate::context::Context;
use crate::gemm::blocking::{streams_gradient, useful_threads};
use crate::gemm::column_sums::column_sums;
use crate::gemm::driver::for_each;
use crate::gemm::macro_kernel::{GradGemm, Start, grad_gemm};
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::params::gradients::Gradients;
use crate::simd::Isa;

/// Some row blocks, with what forward and backward by rows left of them.
#[derive(Clone, Copy)]
pub(super) struct Slab<'a> {
    pub(super) tape: &'a [f32],
    pub(super) tape_width: usize,
    pub(super) slab: &'a [f32],
    pub(super) layout: Layout,
    pub(super) block_rows: usize,
    pub(super) rows: usize,
}

/// A matrix in each row block of a slab.
#[derive(Clone, Copy)]
struct Operand {
    /// Where it starts in its row block, in floats a row.
    offset: usize,
    cols: usize,
}

impl Operand {
    fn view<'t>(&self, block: &'t [f32], rows: usize) -> PanelRef<'t> {
        PanelRef::new(&block[self.offset * rows..][..wide(self.cols) * rows], rows, self.cols)
    }
}

/// dW = aᵀ b, db = column sums of b: a is X or H on the tape, b is dZ or dY on the slab.
#[derive(Clone, Copy)]
struct Operands {
    a: Operand,
    b: Operand,
}

/// The operands of the affine maps of the stages of a group, from the last stage down.
fn operands(net: &dyn Stages, group: Group, layout: Layout) -> impl Iterator<Item = [Option<Operands>; 2]> {
    let (mut tape, mut slot) = (group.tape_end, layout.slots());
    let mut dy_offset = layout.entry(group);
    (group.low..group.high).rev().map(move |index| {
        let stage = net.stage(index);
        let slots = stage.slots();
        tape -= slots.total();
        let x = Operand { offset: tape, cols: stage.inputs() };
        let dy = Operand { offset: dy_offset, cols: stage.outputs() };
        let dz = slot;
        dy_offset = dz + stage.dz_width();
        slot = dy_offset + wide(stage.inputs());
        match stage {
            Stage::Linear { phi: Activation::Identity, .. } => [None, Some(Operands { a: x, b: dy })],
            Stage::Linear { .. } => [None, Some(Operands { a: x, b: Operand { offset: dz, ..dy } })],
            Stage::Block { first, .. } => {
                let cols = first.outputs();
                let h = Operand { offset: tape + slots.x + slots.slope, cols };
                [Some(Operands { a: x, b: Operand { offset: dz, cols } }), Some(Operands { a: h, b: dy })]
            }
        }
    })
}

/// The work of one thread at a time: some panels of one weight gradient, or some columns of one bias gradient.
enum Piece<'a> {
    Weights { operands: Operands, first: usize, out: PanelMut<'a> },
    Bias { b: Operand, first: usize, out: &'a mut [f32] },
}

/// Panels in a piece of a weight gradient, where threads share: a multiple of what tiles take side by side on any instruction
/// set (3 and 1), and still several pieces for each thread in a 256-wide layer.
const PIECE_PANELS: usize = 6;
/// Panels in a piece of a bias gradient: the four that `column_sums` runs side by side.
const PIECE_BIAS_PANELS: usize = 4;

/// Cuts the gradients of one affine map into pieces. What was declined has none.
fn pieces<'a>([dw, db]: [&'a mut [f32]; 2], operands: Operands, alone: bool) -> impl Iterator<Item = Piece<'a>> {
    let (inputs, outputs) = (operands.a.cols, operands.b.cols);
    let all = panels(outputs).max(1);
    let (count, bias_count) = if alone { (all, all) } else { (PIECE_PANELS, PIECE_BIAS_PANELS) };
    let weights = dw.chunks_mut((count * PANEL * inputs).max(1)).enumerate().map(move |(i, out)| {
        let first = i * count;
        let cols = (count * PANEL).min(outputs - first * PANEL);
        Piece::Weights { operands, first, out: PanelMut::new(out, inputs, cols) }
    });
    let bias = db.chunks_mut(bias_count * PANEL).enumerate().map(move |(i, out)| Piece::Bias {
        b: operands.b,
        first: i * bias_count,
        out,
    });
    weights.chain(bias)
}

impl Piece<'_> {
    /// Runs the chains over one more row block; `go_on`: from what the gradient holds, else from zero.
    fn add(&mut self, isa: Isa, tape: &[f32], slab: &[f32], rows: usize, go_on: bool) {
        match self {
            Piece::Weights { operands: Operands { a, b }, first, out } => {
                let count = panels(out.as_ref().cols());
                let stream = streams_gradient(isa, rows, a.cols.saturating_mul(b.cols));
                let b = b.view(slab, rows).panel_range(*first, count);
                let start = if go_on { Start::Continue } else { Start::Zero };
                let a = a.view(tape, rows);
                grad_gemm(isa, GradGemm { a, b, start, stream, epilogue: out.reborrow().into() });
            }
            Piece::Bias { b, first, out } => {
                let b = b.view(slab, rows).panel_range(*first, panels(out.len()));
                column_sums(isa, b, go_on, out);
            }
        }
    }
}

/// Runs the chains of dW and db of every stage of the group over the rows of a slab; `go_on`: from what the gradients hold, else
/// from zero.
pub(super) fn weight_gradients(
    ctx: &Context,
    net: &dyn Stages,
    group: Group,
    slab: Slab<'_>,
    grads: &mut Gradients,
    go_on: bool,
) {
    let Slab { tape, tape_width, slab, layout, block_rows, rows } = slab;
    let work: usize = (group.low..group.high).map(|i| net.stage(i).work()).fold(0, usize::saturating_add);
    let threads = ctx.par().threads_for(useful_threads(rows.saturating_mul(work)));
    let affines = grads.affines_rev_mut(group.affine_end);
    let operands = operands(net, group, layout).flat_map(|[first, second]| second.into_iter().chain(first));
    let all = affines.zip(operands).flat_map(|(grad, operands)| pieces(grad, operands, threads == 1));
    // Nothing but a count of threads: a vector of units takes no memory.
    let mut crew = vec![(); threads];
    for_each(all, &mut crew, |mut piece, ()| {
        for first_row in (0..rows).step_by(block_rows) {
            let block = block_rows.min(rows - first_row);
            let (tape, slab) = (&tape[first_row * tape_width..], &slab[first_row * layout.width..]);
            piece.add(ctx.isa(), tape, slab, block, go_on || first_row > 0);
        }
    });
}
