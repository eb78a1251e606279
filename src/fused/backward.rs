//! Backward. Phase 1, by blocks of rows: B1 dZ = (dY W2) * phi'(Z); B2 dX = dZ W1 + dY. Phase 2, by panels of each weight
//! gradient: B3 dW2 = dYᵀ H, db2 = sums of dY; B4 dW1 = dZᵀ X, db1 = sums of dZ.
//!
//! Phase 1 leaves every dZ and dY on the tape, in panels, as the GEMMs wrote them; phase 2 reads the same bytes as the vector
//! operand, and X and H as the broadcast operand. Its chains run over the batch in row order, block after block, whichever
//! thread has the panel, so a batch cut into micro-batches continues exactly the same chains.

use super::forward::{Team, split_columns, unstage};
use super::{Cut, Dest, Plan, RowBlock, RowBlocks, Sink, Stage, Stages};
use crate::Activation;
use crate::context::{Context, Workspace};
use crate::epilogue::{Epilogue, derive_panels};
use crate::error::Error;
use crate::gemm::blocking::useful_threads;
use crate::gemm::buffers::Buffer;
use crate::gemm::cells::In;
use crate::gemm::column_sums::column_sums;
use crate::gemm::driver::for_each;
use crate::gemm::macro_kernel::{Gemm, GradGemm, Start, gemm, grad_gemm};
use crate::gemm::pack::pack;
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panel_len, panels};
use crate::layers::gradients::{AffineGrad, Gradients};
use crate::mat::{MatMut, MatRef};
use crate::simd::Isa;

/// Squared norms of the rows of dL/dy_t in one row block: stage t has `data[t * rows ..][.. rows]`.
pub(crate) struct NormRows<'a> {
    pub(crate) data: &'a mut [f64],
}

/// What backward is asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) dx: Option<MatMut<'a>>,
    pub(crate) grads: &'a mut Gradients,
    pub(crate) accumulate: bool,
    /// Norm of the gradient of each stage's output.
    pub(crate) norms: Option<&'a mut [f64]>,
}

/// Runs `net` backward from dy, after a recorded forward with `plan` in the same workspace. Shapes have been checked.
pub(crate) fn backward(
    ctx: &Context,
    ws: &mut Workspace,
    net: &dyn Stages,
    plan: Plan,
    dy: MatRef<'_>,
    wanted: Wanted<'_>,
) -> Result<(), Error> {
    let Wanted { mut dx, grads, accumulate, norms } = wanted;
    let n = dy.rows();
    let overflow = Error::Overflow { operand: "batch", rows: n, cols: dy.cols(), strides: (1, 1) };
    let tape_width = net.tape_width().ok_or(overflow.clone())?;
    let tape_len = panel_len("batch", n, tape_width)?;
    let staged = dx.as_ref().is_some_and(|dx| !dx.is_row_major() || plan.column_threads > 1);
    let dx_cols = dx.as_ref().map_or(0, MatMut::cols);
    let staging_len = if staged { panel_len("dx", n, dx_cols)? } else { 0 };
    let norm_stages = if norms.is_some() { net.len() } else { 0 };
    let norms_len = n.checked_mul(norm_stages).ok_or(overflow)?;

    ws.staging.grow(staging_len)?;
    ws.grow_scratch(plan.row_threads, 0)?;
    let missing = norms_len.saturating_sub(ws.row_norms.len());
    ws.row_norms.try_reserve_exact(missing).map_err(|_| Error::Memory { bytes: missing.saturating_mul(8) })?;
    ws.row_norms.resize(norms_len.max(ws.row_norms.len()), 0.0);
    let Workspace { scratch, tape, staging, row_norms } = ws;
    let tape = &mut tape.as_mut_slice()[..tape_len];
    let staging = &mut staging.as_mut_slice()[..staging_len];
    let row_norms = &mut row_norms[..norms_len];
    let sink =
        dx.as_mut().map(|dx| if staged { Sink::Staged(&mut *staging, dx_cols) } else { Sink::Rows(dx.reborrow()) });
    let blocks = RowBlocks {
        input: dy,
        skip: None,
        tape: &mut *tape,
        tape_width,
        sink,
        norms: norms.is_some().then_some((&mut *row_norms, norm_stages)),
        rows: plan.rows,
        next_row: 0,
    };
    let team = Team { ctx, column_threads: plan.column_threads };
    for_each(blocks, &mut scratch[..plan.row_threads], |block, _: &mut Buffer| backward_rows(&team, net, block));
    if let (true, Some(dx)) = (staged, &mut dx) {
        unstage(staging, plan.rows, dx);
    }
    if let Some(norms) = norms {
        sum_norms(row_norms, plan.rows, n, norms);
    }
    weight_gradients(ctx, net, tape, plan.rows, n, grads, accumulate);
    Ok(())
}

/// Takes a block of rows backward through all stages: dz and dy of every stage, and dx.
fn backward_rows(team: &Team<'_>, net: &dyn Stages, block: RowBlock<'_>) {
    let RowBlock { input: dy, mut tape, mut dest, mut norms, .. } = block;
    let (rows, isa) = (dy.rows(), team.ctx.isa());
    for index in (0..net.len()).rev() {
        let stage = net.stage(index);
        let slots = stage.slots();
        let (before, this) = tape.split_at_mut(tape.len() - slots.total() * rows);
        let Cut { x: _, z, h, dz, dy: dy_slot } = slots.cut(this, rows);
        if index + 1 == net.len() {
            pack(isa, dy, PanelMut::new(dy_slot, rows, stage.outputs()));
        }
        let dy = PanelRef::new(dy_slot, rows, stage.outputs());
        if let Some(norms) = &mut norms {
            norms.fill(index, dy);
        }
        // The gradient of the input is the next stage's dy, at the end of what lies before; the first stage's is dx.
        let inputs = stage.inputs();
        let at = before.len().saturating_sub(panels(inputs) * PANEL * rows);
        let out = match (index, dest.as_mut()) {
            (0, Some(dest)) => Some(dest.reborrow()),
            (0, None) => None,
            _ => Some(Dest::Panels(PanelMut::new(&mut before[at..], rows, inputs))),
        };
        match stage {
            Stage::Linear { affine, phi, skip } => {
                let dz = match phi {
                    Activation::Identity => dy,
                    _ => {
                        dz.copy_from_slice(dy_slot);
                        let mut dz = PanelMut::new(dz, rows, stage.outputs());
                        derive_panels(isa, phi, PanelRef::new(z, rows, stage.outputs()), dz.reborrow());
                        PanelRef::new(dz.into_data(), rows, stage.outputs())
                    }
                };
                let (Some(out), Some(w)) = (out, affine.weights.backward()) else { break };
                input_gradient(team, dz, w, out, skip.then_some(dy));
            }
            Stage::Block { first, second, phi, skip } => {
                let (Some(w2), Some(w1)) = (second.weights.backward(), first.weights.backward()) else { break };
                let z = PanelRef::new(if phi.differentiates_from_output() { h } else { z }, rows, first.outputs());
                let mut dz = PanelMut::new(dz, rows, first.outputs());
                block_gradient(team, dy, (w2, w1), phi, z, dz.reborrow(), out, skip);
            }
        }
        tape = before;
    }
}

/// dX = dZ W (+ dY) for a block of rows.
fn input_gradient(team: &Team<'_>, a: PanelRef<'_>, w: PanelRef<'_>, out: Dest<'_>, skip: Option<PanelRef<'_>>) {
    let (isa, depth, start) = (team.ctx.isa(), team.ctx.blocking().k_block(), Start::Zero);
    split_columns(team, w.cols(), out, None, |first, count, out, _| {
        let b = w.panel_range(first, count);
        let epilogue = match skip {
            Some(skip) => Epilogue::AddSkip { out, skip: skip.panel_range(first, count).into() },
            None => Epilogue::Store { out },
        };
        gemm(isa, Gemm { a, b, b_row: 0, start, depth, epilogue });
    });
}

/// dZ = (dY W2) * phi'(Z), dX = dZ W1 (+ dY) for a block of rows; chunk by chunk of the hidden columns, as forward.
#[allow(clippy::too_many_arguments, reason = "the operands of two GEMMs")]
fn block_gradient(
    team: &Team<'_>,
    dy: PanelRef<'_>,
    (w2, w1): (PanelRef<'_>, PanelRef<'_>),
    phi: Activation,
    z: PanelRef<'_>,
    mut dz: PanelMut<'_>,
    out: Option<Dest<'_>>,
    skip: bool,
) {
    let (isa, depth, width) = (team.ctx.isa(), team.ctx.blocking().k_block(), z.cols());
    if team.column_threads > 1 {
        split_columns(team, width, Dest::Panels(dz.reborrow()), None, |first, count, out, _| {
            let (b, z) = (w2.panel_range(first, count), In::from(z.panel_range(first, count)));
            let epilogue = Epilogue::Derive { phi, z, out };
            gemm(isa, Gemm { a: dy, b, b_row: 0, start: Start::Zero, depth, epilogue });
        });
        if let Some(out) = out {
            input_gradient(team, dz.as_ref(), w1, out, skip.then_some(dy));
        }
        return;
    }
    let chunk = team.ctx.blocking().hidden_chunk();
    let (mut c0, mut out) = (0, out);
    loop {
        let cols = chunk.min(width - c0);
        let (p0, count) = (c0 / PANEL, panels(cols));
        let z = z.panel_range(p0, count).into();
        let epilogue = Epilogue::Derive { phi, z, out: dz.panel_range(p0, count).into() };
        gemm(isa, Gemm { a: dy, b: w2.panel_range(p0, count), b_row: 0, start: Start::Zero, depth, epilogue });
        let (b_row, start) = (c0, if c0 == 0 { Start::Zero } else { Start::Continue });
        c0 += cols;
        if let Some(out) = &mut out {
            let (a, b) = (dz.as_ref().panel_range(p0, count), w1);
            let out = out.reborrow().into();
            let epilogue =
                if skip && c0 == width { Epilogue::AddSkip { out, skip: dy.into() } } else { Epilogue::Store { out } };
            gemm(isa, Gemm { a, b, b_row, start, depth, epilogue });
        }
        if c0 == width {
            break;
        }
    }
}

/// An operand of a weight gradient: a slot of the tape.
#[derive(Clone, Copy)]
struct Operand {
    /// Where the slot starts in a row block, in floats a row.
    offset: usize,
    cols: usize,
}

impl Operand {
    fn view<'t>(&self, block: &'t [f32], rows: usize) -> PanelRef<'t> {
        let len = panels(self.cols) * PANEL * rows;
        PanelRef::new(&block[self.offset * rows..][..len], rows, self.cols)
    }
}

/// dW = aᵀ b, db = column sums of b: a is X or H, b is dZ or dY.
#[derive(Clone, Copy)]
struct Operands {
    a: Operand,
    b: Operand,
}

/// The operands of a stage's weight gradients, in the order of its affine maps; the stage's tape starts at `x`.
fn operands(stage: Stage<'_>, x: usize) -> impl Iterator<Item = Operands> {
    let slots = stage.slots();
    let h = x + slots.x + slots.z;
    let dz = h + slots.h;
    let dy = Operand { offset: dz + slots.dz, cols: stage.outputs() };
    let x = Operand { offset: x, cols: stage.inputs() };
    let (first, second) = match stage {
        Stage::Linear { phi: Activation::Identity, .. } => (Operands { a: x, b: dy }, None),
        Stage::Linear { .. } => (Operands { a: x, b: Operand { offset: dz, ..dy } }, None),
        Stage::Block { first, .. } => {
            let cols = first.outputs();
            let second = Operands { a: Operand { offset: h, cols }, b: dy };
            (Operands { a: x, b: Operand { offset: dz, cols } }, Some(second))
        }
    };
    std::iter::once(first).chain(second)
}

/// A piece of phase 2, the work of one thread: some panels of one weight gradient, or some columns of one bias gradient.
enum Piece<'a> {
    Weights { operands: Operands, first: usize, out: PanelMut<'a> },
    Bias { b: Operand, first: usize, out: &'a mut [f32] },
}

/// Panels in a piece of a weight gradient: a multiple of what tiles take side by side on any instruction set (3 and 1), and
/// still several pieces for each thread in a 256-wide layer.
const PIECE_PANELS: usize = 6;
/// Panels in a piece of a bias gradient: the four that `column_sums` runs side by side.
const PIECE_BIAS_PANELS: usize = 4;

/// Cuts the gradients of one affine map into pieces. What was declined has none.
fn pieces<'a>(grad: &'a mut AffineGrad, operands: Operands) -> impl Iterator<Item = Piece<'a>> {
    let (inputs, outputs) = (operands.a.cols, operands.b.cols);
    let dw = grad.dw.as_mut().map_or(&mut [][..], |dw| dw.as_mut_slice());
    let db = grad.db.as_mut().map_or(&mut [][..], |db| &mut db[..]);
    let weights = dw.chunks_mut((PIECE_PANELS * PANEL * inputs).max(1)).enumerate().map(move |(i, out)| {
        let first = i * PIECE_PANELS;
        let cols = (PIECE_PANELS * PANEL).min(outputs - first * PANEL);
        Piece::Weights { operands, first, out: PanelMut::new(out, inputs, cols) }
    });
    let bias = db.chunks_mut(PIECE_BIAS_PANELS * PANEL).enumerate().map(move |(i, out)| Piece::Bias {
        b: operands.b,
        first: i * PIECE_BIAS_PANELS,
        out,
    });
    weights.chain(bias)
}

impl Piece<'_> {
    /// Runs the chains over one more row block; `go_on`: from what the gradient holds, else from zero.
    fn add(&mut self, isa: Isa, block: &[f32], rows: usize, go_on: bool) {
        match self {
            Piece::Weights { operands: Operands { a, b }, first, out } => {
                let b = b.view(block, rows).panel_range(*first, PIECE_PANELS);
                let start = if go_on { Start::Continue } else { Start::Zero };
                grad_gemm(isa, GradGemm { a: a.view(block, rows), b, start, epilogue: out.reborrow().into() });
            }
            Piece::Bias { b, first, out } => {
                let b = b.view(block, rows).panel_range(*first, PIECE_BIAS_PANELS);
                column_sums(isa, b, go_on, out);
            }
        }
    }

    /// The gradient of an empty batch.
    fn clear(&mut self) {
        match self {
            Piece::Weights { out, .. } => out.reborrow().into_data().fill(0.0),
            Piece::Bias { out, .. } => out.fill(0.0),
        }
    }
}

/// Phase 2: dW and db of every stage, from the tape.
fn weight_gradients(
    ctx: &Context,
    net: &dyn Stages,
    tape: &[f32],
    block_rows: usize,
    n: usize,
    grads: &mut Gradients,
    accumulate: bool,
) {
    let width = tape.len().checked_div(n).unwrap_or(0);
    let threads = useful_threads(ctx.par().threads().max(1), n.saturating_mul(net.work()));
    let operands = (0..net.len()).scan(0, |offset, index| {
        let x = *offset;
        *offset += net.stage(index).slots().total();
        Some(operands(net.stage(index), x))
    });
    let all = grads.affines.iter_mut().zip(operands.flatten()).flat_map(|(grad, operands)| pieces(grad, operands));
    // Nothing but a count of threads: a vector of units takes no memory.
    let mut crew = vec![(); threads];
    for_each(all, &mut crew, |mut piece, ()| {
        if n == 0 && !accumulate {
            piece.clear();
        }
        for first_row in (0..n).step_by(block_rows) {
            let rows = block_rows.min(n - first_row);
            let block = &tape[first_row * width..][..rows * width];
            piece.add(ctx.isa(), block, rows, accumulate || first_row > 0);
        }
    });
}

impl NormRows<'_> {
    /// Squared norms of the rows of `dy`, the gradient of stage `index`'s output.
    fn fill(&mut self, index: usize, dy: PanelRef<'_>) {
        let rows = dy.rows();
        let cells = In::from(dy);
        for (i, norm) in self.data[index * rows..][..rows].iter_mut().enumerate() {
            let row = (0..panels(dy.cols())).flat_map(|p| cells.at(i, p));
            *norm = row.map(|&g| f64::from(g) * f64::from(g)).sum();
        }
    }
}

/// norms[t] = sqrt of the sum over rows, in order: the same bits however the batch was cut.
fn sum_norms(row_norms: &[f64], block_rows: usize, n: usize, norms: &mut [f64]) {
    let stages = norms.len();
    norms.fill(0.0);
    for first_row in (0..n).step_by(block_rows) {
        let rows = block_rows.min(n - first_row);
        let block = &row_norms[first_row * stages..][..rows * stages];
        for (norm, rows) in norms.iter_mut().zip(block.chunks_exact(rows)) {
            *norm = rows.iter().fold(*norm, |sum, r| sum + r);
        }
    }
    norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
}
