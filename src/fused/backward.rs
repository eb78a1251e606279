//! Backward. B1 dZ = (dY W2) * phi'(Z); B2 dX = dZ W1 + dY; B3 dW2 = dYᵀ H, db2 = sums of dY; B4 dW1 = dZᵀ X, db1 = sums of dZ.
//!
//! B1 and B2 go by blocks of rows, B3 and B4 by panels of each weight gradient, whose chains run over the batch in row order,
//! block after block, whichever thread has the panel; so a batch cut into micro-batches continues exactly the same chains. The
//! batch is taken in *slabs* of row blocks and the network in *groups* of stages, from the last down, and for each of them the
//! two phases follow each other while dZ and dY, in panels as the GEMMs wrote them, are still in cache:
//!
//! ```text
//! for each slab: for each group of stages:    one thread: a slab is one row block, a group one stage
//!     B1, B2 for each row block                           threads share row blocks
//!     B3, B4 for all row blocks of the slab               threads share panels of dW
//! ```
//!
//! On several threads, slabs and groups are as small as parallel regions worth their barrier allow.

use super::forward::{split_columns, unstage};
use super::weight_gradients::{Slab, weight_gradients};
use super::{Dest, Plan, Sink, Stage, Stages, wide};
use crate::Activation;
use crate::context::{Context, Workspace};
use crate::epilogue::{Epilogue, scale_panels};
use crate::error::Error;
use crate::gemm::blocking::REGION_WORK;
use crate::gemm::buffers::Buffer;
use crate::gemm::cells::In;
use crate::gemm::driver::for_each;
use crate::gemm::factor::Factor;
use crate::gemm::macro_kernel::{Gemm, PACK, Start, gemm};
use crate::gemm::pack::pack;
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panel_len, panels};
use crate::mat::{MatMut, MatRef};
use crate::params::gradients::Gradients;
use crate::weights::Affine;
use std::slice;

/// What backward is asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) dx: Option<MatMut<'a>>,
    pub(crate) grads: &'a mut Gradients,
    pub(crate) accumulate: bool,
    /// Norm of the gradient of each stage's output.
    pub(crate) norms: Option<&'a mut [f64]>,
}

/// Stages `low .. high`, taken together.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub(super) low: usize,
    pub(super) high: usize,
    /// Where stage `high` starts on the tape, in floats a row.
    pub(super) tape_end: usize,
    /// Number of the first affine map of stage `high`.
    pub(super) affine_end: usize,
    /// Which of the two carries holds the gradient that enters the group; the one that leaves it goes to the other.
    odd: bool,
}

/// How a slab's buffer is laid out: for each row block `carry, carry, (dz, dy below) for each stage of the group, from above`.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Floats a row of a carry: the widest input or output of a stage.
    carry: usize,
    /// Floats a row in all, for the largest group.
    pub(super) width: usize,
}

impl Layout {
    /// Where the dy that enters a group starts, in floats a row.
    pub(super) fn entry(&self, group: Group) -> usize {
        if group.odd { self.carry } else { 0 }
    }

    /// Where the slots of the group's stages start.
    pub(super) fn slots(&self) -> usize {
        2 * self.carry
    }
}

/// How the batch and the network are cut.
struct Schedule {
    /// Rows of a slab: a multiple of those of a row block.
    slab_rows: usize,
    threads: usize,
}

impl Schedule {
    fn new(net: &dyn Stages, plan: Plan) -> Self {
        let threads = plan.row_threads;
        // One row block for each thread, and so often as many as make the whole network worth a region.
        let enough = REGION_WORK.div_ceil(plan.rows.saturating_mul(net.work()).max(1));
        let blocks = if threads == 1 { 1 } else { threads.saturating_mul(enough) };
        Self { slab_rows: plan.rows.saturating_mul(blocks), threads }
    }

    /// The groups, from the last stage down.
    fn groups<'n>(&self, net: &'n dyn Stages) -> impl Iterator<Item = Group> + use<'n> {
        let affines = net.iter().map(|s| s.affines().count()).sum();
        let (slab_rows, enough) = (self.slab_rows, self.threads.saturating_mul(REGION_WORK));
        let alone = self.threads == 1;
        let next = Group {
            low: net.len(),
            high: net.len(),
            tape_end: net.tape_width().unwrap_or(0),
            affine_end: affines,
            odd: true,
        };
        std::iter::successors(Some(next), move |above| {
            let high = above.low;
            let passed = (above.low..above.high).map(|i| net.stage(i));
            let (tape, affines) = passed.fold((0, 0), |(t, a), s| (t + s.slots().total(), a + s.affines().count()));
            let (mut low, mut work) = (high.checked_sub(1)?, 0usize);
            loop {
                work = work.saturating_add(slab_rows.saturating_mul(net.stage(low).work()));
                if alone || work >= enough || low == 0 {
                    break;
                }
                low -= 1;
            }
            let (tape_end, affine_end) = (above.tape_end - tape, above.affine_end - affines);
            Some(Group { low, high, tape_end, affine_end, odd: !above.odd })
        })
        .skip(1)
    }

    /// The layout that holds every group, or None if its size overflows.
    fn layout(&self, net: &dyn Stages) -> Option<Layout> {
        let carry = net.iter().map(|s| wide(s.inputs()).max(wide(s.outputs()))).max().unwrap_or(0);
        let mut most = 0usize;
        for group in self.groups(net) {
            let inside = (group.low..group.high)
                .map(|i| net.stage(i))
                .try_fold(0usize, |sum, stage| sum.checked_add(stage.dz_width())?.checked_add(wide(stage.inputs())))?;
            most = most.max(inside);
        }
        Some(Layout { carry, width: carry.checked_mul(2)?.checked_add(most)? })
    }
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
    let stages = net.len();
    let overflow = Error::Overflow { operand: "batch", rows: dy.rows(), cols: dy.cols(), strides: (1, 1) };
    let tape_width = net.tape_width().ok_or(overflow.clone())?;
    // A network without any width: its rows, of which forward took as many as there were, hold nothing.
    let n = if tape_width == 0 && dy.cols() == 0 { 0 } else { dy.rows() };
    let tape_len = panel_len("batch", n, tape_width)?;
    let schedule = Schedule::new(net, plan);
    let layout = schedule.layout(net).ok_or(overflow.clone())?;
    let slab_len = panel_len("batch", schedule.slab_rows.min(n), layout.width)?;
    let staged = dx.as_ref().is_some_and(|dx| !dx.is_row_major() || plan.column_threads > 1);
    let dx_cols = dx.as_ref().map_or(0, MatMut::cols);
    let staging_len = if staged { panel_len("dx", n, dx_cols)? } else { 0 };
    let norm_stages = if norms.is_some() { stages } else { 0 };
    let norms_len = n.checked_mul(norm_stages).ok_or(overflow)?;

    let packs = plan.row_threads.max(plan.column_threads);
    ws.staging.grow(staging_len)?;
    ws.slab.grow(slab_len)?;
    ws.grow_scratch(packs, PACK)?;
    let missing = norms_len.saturating_sub(ws.row_norms.len());
    ws.row_norms.try_reserve_exact(missing).map_err(|_| Error::Memory { bytes: missing.saturating_mul(8) })?;
    ws.row_norms.resize(norms_len.max(ws.row_norms.len()), 0.0);
    let Workspace { scratch, tape, slab, staging, row_norms } = ws;
    let (tape, packs) = (&tape.as_slice()[..tape_len], &mut scratch[..packs]);
    let staging = &mut staging.as_mut_slice()[..staging_len];
    let row_norms = &mut row_norms[..norms_len];
    let mut sink =
        dx.as_mut().map(|dx| if staged { Sink::Staged(&mut *staging, dx_cols) } else { Sink::Rows(dx.reborrow()) });

    if n == 0 && !accumulate {
        grads.clear();
    }
    for first_row in (0..n).step_by(schedule.slab_rows) {
        let rows = schedule.slab_rows.min(n - first_row);
        let slab = &mut slab.as_mut_slice()[..rows * layout.width];
        let tape = &tape[first_row * tape_width..][..rows * tape_width];
        let norms = &mut row_norms[first_row * norm_stages..][..rows * norm_stages];
        for group in schedule.groups(net) {
            let blocks = BackwardBlocks {
                dy: (group.high == stages).then(|| dy.row_range(first_row, rows)),
                tape,
                tape_width,
                slab: &mut *slab,
                layout,
                sink: if group.low == 0 { sink.as_mut() } else { None },
                norms: &mut *norms,
                norm_stages,
                block_rows: plan.rows,
                rows,
            };
            if plan.column_threads > 1 {
                blocks.for_each(|block| backward_rows(ctx, net, group, block, packs));
            } else {
                for_each(blocks, &mut packs[..plan.row_threads], |block, pack| {
                    backward_rows(ctx, net, group, block, slice::from_mut(pack));
                });
            }
            let slab = Slab { tape, tape_width, slab, layout, block_rows: plan.rows, rows };
            weight_gradients(ctx, net, group, slab, grads, accumulate || first_row > 0);
        }
    }
    if let (true, Some(dx)) = (staged, &mut dx) {
        unstage(staging, plan.rows, dx);
    }
    if let Some(norms) = norms {
        sum_norms(row_norms, plan.rows, n, norms);
    }
    Ok(())
}

/// One block of rows on its way down through a group of stages.
struct BackwardBlock<'a> {
    /// What enters the last stage of the network, for the group that has it.
    dy: Option<MatRef<'a>>,
    tape: &'a [f32],
    slab: &'a mut [f32],
    layout: Layout,
    /// Where dx goes: with the group that has the first stage, if it is wanted.
    dest: Option<Dest<'a>>,
    /// Squared norms of the rows of each stage's dy, stage by stage; empty unless asked for.
    norms: &'a mut [f64],
    rows: usize,
}

/// Cuts a slab into blocks of rows.
struct BackwardBlocks<'a, 's> {
    dy: Option<MatRef<'a>>,
    tape: &'a [f32],
    tape_width: usize,
    slab: &'a mut [f32],
    layout: Layout,
    sink: Option<&'a mut Sink<'s>>,
    norms: &'a mut [f64],
    norm_stages: usize,
    block_rows: usize,
    /// Rows left.
    rows: usize,
}

impl<'a, 's: 'a> Iterator for BackwardBlocks<'a, 's> {
    type Item = BackwardBlock<'a>;

    fn next(&mut self) -> Option<BackwardBlock<'a>> {
        let rows = self.block_rows.min(self.rows);
        if rows == 0 {
            return None;
        }
        self.rows -= rows;
        let (tape, tape_left) = self.tape.split_at(rows * self.tape_width);
        let (slab, slab_left) = std::mem::take(&mut self.slab).split_at_mut(rows * self.layout.width);
        let (norms, norms_left) = std::mem::take(&mut self.norms).split_at_mut(rows * self.norm_stages);
        (self.tape, self.slab, self.norms) = (tape_left, slab_left, norms_left);
        let dy = self.dy.map(|dy| dy.row_range(0, rows));
        self.dy = self.dy.map(|dy| dy.row_range(rows, dy.rows() - rows));
        let dest = self.sink.as_mut().map(|sink| sink.take(rows));
        Some(BackwardBlock { dy, tape, slab, layout: self.layout, dest, norms, rows })
    }
}

/// Takes a block of rows down through a group: dz and dy of every stage, and what leaves the group.
fn backward_rows(ctx: &Context, net: &dyn Stages, group: Group, block: BackwardBlock<'_>, crew: &mut [Buffer]) {
    let BackwardBlock { dy: from_caller, tape, slab, layout, dest, norms, rows } = block;
    let isa = ctx.isa();
    let (carries, mut slots) = slab.split_at_mut(layout.slots() * rows);
    let (even, odd) = carries.split_at_mut(layout.carry * rows);
    let (mut entry, mut exit) = if group.odd { (odd, even) } else { (even, odd) };
    let mut dest = dest;
    let mut tape = &tape[..group.tape_end * rows];
    for index in (group.low..group.high).rev() {
        let stage = net.stage(index);
        let (inputs, outputs) = (stage.inputs(), stage.outputs());
        let cut = stage.slots();
        let (rest, this) = tape.split_at(tape.len() - cut.total() * rows);
        let (slope, h) = this[cut.x * rows..].split_at(cut.slope * rows);
        let (dz, left) = std::mem::take(&mut slots).split_at_mut(stage.dz_width() * rows);
        // The gradient of the input is dy of the stage below; the first stage's is dx, the group's goes to the next group.
        let (below, left) = if index > group.low {
            left.split_at_mut(wide(inputs) * rows)
        } else {
            (&mut std::mem::take(&mut exit)[..wide(inputs) * rows], left)
        };
        let dy = &mut entry[..wide(outputs) * rows];
        if let (true, Some(given)) = (index + 1 == net.len(), from_caller) {
            pack(isa, given, PanelMut::new(dy, rows, outputs));
        }
        let dy = PanelRef::new(dy, rows, outputs);
        if let Some(norms) = norms.chunks_exact_mut(rows).nth(index) {
            row_norms(dy, norms);
        }
        let out = match (index, dest.as_mut()) {
            (0, Some(dest)) => Some(dest.reborrow()),
            (0, None) => None,
            _ => Some(Dest::Panels(PanelMut::new(&mut *below, rows, inputs))),
        };
        match stage {
            Stage::Linear { affine, phi, skip } => {
                let dz = if let Activation::Identity = phi {
                    dy
                } else {
                    dz.copy_from_slice(dy.data());
                    let mut dz = PanelMut::new(dz, rows, outputs);
                    scale_panels(isa, PanelRef::new(slope, rows, outputs), dz.reborrow());
                    PanelRef::new(dz.into_data(), rows, outputs)
                };
                if let Some(out) = out {
                    input_gradient(ctx, crew, dz, affine, out, skip.then_some(dy));
                }
            }
            Stage::Block { first, second, phi, skip } => {
                let known = if phi.differentiates_from_output() { h } else { slope };
                let known = PanelRef::new(known, rows, first.outputs());
                let mut dz = PanelMut::new(dz, rows, first.outputs());
                let operands = BlockGradient { dy, first, second, phi, known, skip };
                operands.run(ctx, crew, dz.reborrow(), out);
            }
        }
        (tape, entry, slots) = (rest, below, left);
    }
}

/// dX = dZ W (+ dY) for a block of rows.
fn input_gradient(
    ctx: &Context,
    crew: &mut [Buffer],
    a: PanelRef<'_>,
    affine: &Affine,
    out: Dest<'_>,
    skip: Option<PanelRef<'_>>,
) {
    let (isa, depth, start) = (ctx.isa(), ctx.k_block(), Start::Zero);
    let w = Factor::transposed(affine.weights().view());
    split_columns(crew, w.cols(), out, None, |first, count, out, _, pack| {
        let (b, pack) = (w.panel_range(first, count), pack.as_mut_slice());
        let epilogue = match skip {
            Some(skip) => Epilogue::AddSkip { out, skip: skip.panel_range(first, count).into() },
            None => Epilogue::Store { out },
        };
        gemm(isa, Gemm { a, b, start, depth, pack, epilogue });
    });
}

/// dZ = (dY W2) * phi'(Z), dX = dZ W1 (+ dY) for a block of rows.
struct BlockGradient<'a> {
    dy: PanelRef<'a>,
    first: &'a Affine,
    second: &'a Affine,
    phi: Activation,
    /// phi'(Z), or H for activations whose derivative H tells.
    known: PanelRef<'a>,
    skip: bool,
}

impl BlockGradient<'_> {
    /// Chunk by chunk of the hidden columns, as forward; or, with several threads, the columns of one GEMM after the other.
    fn run(self, ctx: &Context, crew: &mut [Buffer], mut dz: PanelMut<'_>, out: Option<Dest<'_>>) {
        let Self { dy, first, second, phi, known, skip } = self;
        let (isa, depth, width) = (ctx.isa(), ctx.k_block(), known.cols());
        let (w1, w2) = (Factor::transposed(first.weights().view()), Factor::transposed(second.weights().view()));
        let [alone] = crew else {
            split_columns(crew, width, Dest::Panels(dz.reborrow()), None, |first, count, out, _, pack| {
                let (b, pack) = (w2.panel_range(first, count), pack.as_mut_slice());
                let epilogue = Epilogue::Derive { phi, known: In::from(known.panel_range(first, count)), out };
                gemm(isa, Gemm { a: dy, b, start: Start::Zero, depth, pack, epilogue });
            });
            if let Some(out) = out {
                input_gradient(ctx, crew, dz.as_ref(), first, out, skip.then_some(dy));
            }
            return;
        };
        let pack = alone.as_mut_slice();
        let chunk = ctx.blocking().hidden_chunk();
        let (mut c0, mut out) = (0, out);
        loop {
            let cols = chunk.min(width - c0);
            let (p0, count) = (c0 / PANEL, panels(cols));
            let known = known.panel_range(p0, count).into();
            let epilogue = Epilogue::Derive { phi, known, out: dz.panel_range(p0, count).into() };
            gemm(isa, Gemm { a: dy, b: w2.panel_range(p0, count), start: Start::Zero, depth, pack, epilogue });
            let (b, start) = (w1.rows_from(c0), if c0 == 0 { Start::Zero } else { Start::Continue });
            c0 += cols;
            if let Some(out) = &mut out {
                let a = dz.as_ref().panel_range(p0, count);
                let out = out.reborrow().into();
                let epilogue = if skip && c0 == width {
                    Epilogue::AddSkip { out, skip: dy.into() }
                } else {
                    Epilogue::Store { out }
                };
                gemm(isa, Gemm { a, b, start, depth, pack, epilogue });
            }
            if c0 == width {
                break;
            }
        }
    }
}

/// Squared norms of the rows of `dy`.
fn row_norms(dy: PanelRef<'_>, norms: &mut [f64]) {
    let cells = In::from(dy);
    for (i, norm) in norms.iter_mut().enumerate() {
        let row = (0..panels(dy.cols())).flat_map(|p| cells.at(i, p));
        *norm = row.map(|&g| f64::from(g) * f64::from(g)).sum();
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
