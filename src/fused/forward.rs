//! Forward: F1 Z = X W1ᵀ + b1, H = phi(Z); F2 Y = H W2ᵀ + b2 + X.

use super::{Dest, Plan, RowBlock, RowBlocks, Sink, Stage, Stages, column_pieces, wide};
use crate::Activation;
use crate::context::{Context, Workspace};
use crate::epilogue::Epilogue;
use crate::error::Error;
use crate::gemm::buffers::Buffer;
use crate::gemm::cells::{In, Out};
use crate::gemm::driver::for_each;
use crate::gemm::factor::Factor;
use crate::gemm::macro_kernel::{Gemm, Start, gemm};
use crate::gemm::pack::{pack, unpack};
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panel_len, panels};
use crate::mat::{MatMut, MatRef};
use crate::weights::Affine;

/// Runs `net` on the rows of `x`. With `record`, the workspace's tape holds afterwards what backward needs. Shapes have been
/// checked by the caller.
pub(crate) fn forward(
    ctx: &Context,
    ws: &mut Workspace,
    net: &dyn Stages,
    x: MatRef<'_>,
    skip: Option<MatRef<'_>>,
    mut y: MatMut<'_>,
    record: bool,
) -> Result<Plan, Error> {
    let n = x.rows();
    let plan = Plan::new(ctx, net, n, record);
    // All sizes are known to fit before anything is written.
    let overflow = Error::Overflow { operand: "batch", rows: n, cols: x.cols(), strides: (1, 1) };
    let tape_width = if record { net.tape_width().ok_or(overflow.clone())? } else { 0 };
    let tape_len = panel_len("batch", n, tape_width)?;
    // Rows that leave nothing behind need not be computed: a view of stride 0 may have more of them than anyone could count.
    if tape_len == 0 && y.cols() == 0 {
        return Ok(plan);
    }
    let widths = Scratch::of(net, ctx, plan.column_threads, record);
    let scratch_len = panel_len("batch", plan.rows.min(n), widths.total().ok_or(overflow)?)?;
    let staged = !y.is_row_major() || plan.column_threads > 1;
    let staging_len = if staged { panel_len("output", n, y.cols())? } else { 0 };

    ws.tape.grow(tape_len)?;
    ws.grow_scratch(plan.row_threads, scratch_len)?;
    ws.staging.grow(staging_len)?;
    let Workspace { scratch, tape, staging, .. } = ws;
    let staging = &mut staging.as_mut_slice()[..staging_len];
    let sink = if staged { Sink::Staged(&mut *staging, y.cols()) } else { Sink::Rows(y.reborrow()) };
    let tape = &mut tape.as_mut_slice()[..tape_len];
    let blocks = RowBlocks { input: x, skip, tape, tape_width, sink, rows: plan.rows, next_row: 0 };
    let team = Team { ctx, column_threads: plan.column_threads };
    for_each(blocks, &mut scratch[..plan.row_threads], |block, scratch: &mut Buffer| {
        forward_rows(&team, net, block, scratch, &widths, record);
    });
    if staged {
        unstage(staging, plan.rows, &mut y);
    }
    Ok(plan)
}

/// Copies staged row blocks to a matrix of any strides.
pub(super) fn unstage(staging: &[f32], rows: usize, out: &mut MatMut<'_>) {
    let (n, cols) = out.shape();
    let width = panels(cols) * PANEL;
    for first in (0..n).step_by(rows) {
        let rows = rows.min(n - first);
        unpack(PanelRef::new(&staging[first * width..][..rows * width], rows, cols), out, first);
    }
}

/// On what a row block runs.
struct Team<'a> {
    ctx: &'a Context,
    /// Threads that share the columns of a GEMM: 1 unless there are too few rows for row blocks.
    column_threads: usize,
}

impl Team<'_> {
    /// Nothing but a count of threads: a vector of units takes no memory.
    fn crew(&self) -> Vec<()> {
        vec![(); self.column_threads]
    }
}

/// The scratch of a row block in inference: input, output and hidden chunk of the stage at hand, and a skip from outside.
/// In training, the tape holds all but the last.
struct Scratch {
    /// Widest input or output.
    x: usize,
    /// Widest hidden chunk.
    h: usize,
    /// Output width, for a skip from outside.
    skip: usize,
}

impl Scratch {
    fn of(net: &dyn Stages, ctx: &Context, column_threads: usize, record: bool) -> Self {
        let chunk = if column_threads > 1 { usize::MAX } else { ctx.blocking().hidden_chunk() };
        let (mut x, mut h, mut skip) = (0, 0, 0);
        for stage in net.iter() {
            if !record {
                x = x.max(wide(stage.inputs())).max(wide(stage.outputs()));
                if let Stage::Block { first, .. } = stage {
                    h = h.max(wide(first.outputs()).min(chunk));
                }
            }
            skip = wide(stage.outputs());
        }
        Self { x, h, skip }
    }

    /// Floats a row, or None if that overflows.
    fn total(&self) -> Option<usize> {
        self.x.checked_mul(2)?.checked_add(self.h)?.checked_add(self.skip)
    }
}

/// Takes a block of rows through all stages.
fn forward_rows(
    team: &Team<'_>,
    net: &dyn Stages,
    block: RowBlock<'_>,
    scratch: &mut Buffer,
    widths: &Scratch,
    record: bool,
) {
    let RowBlock { input, skip, mut tape, mut dest, .. } = block;
    let (rows, isa) = (input.rows(), team.ctx.isa());
    let (mut here, rest) = scratch.as_mut_slice().split_at_mut(widths.x * rows);
    let (mut there, rest) = rest.split_at_mut(widths.x * rows);
    let (hidden, rest) = rest.split_at_mut(widths.h * rows);
    let outside = skip.map(|skip| {
        let packed = &mut rest[..panels(skip.cols()) * PANEL * rows];
        pack(isa, skip, PanelMut::new(packed, rows, skip.cols()));
        PanelRef::new(packed, rows, skip.cols())
    });

    for index in 0..net.len() {
        let stage = net.stage(index);
        let (slots, last) = (stage.slots(), index + 1 == net.len());
        let len = |cols: usize| panels(cols) * PANEL * rows;
        // The input of the first stage comes from the caller; that of the others is where the stage before put its output.
        let (cut, next_x);
        if record {
            let (this, next) = tape.split_at_mut(slots.total() * rows);
            cut = Some(slots.cut(this, rows));
            tape = next;
            next_x = if last { &mut [][..] } else { &mut tape[..len(stage.outputs())] };
        } else {
            cut = None;
            next_x = if last { &mut [][..] } else { &mut there[..len(stage.outputs())] };
        }
        let (x, slope, h) = match cut {
            Some(cut) => (cut.x, (!cut.slope.is_empty()).then_some(cut.slope), cut.h),
            None => (&mut here[..len(stage.inputs())], None, &mut *hidden),
        };
        if index == 0 {
            pack(isa, input, PanelMut::new(x, rows, stage.inputs()));
        }
        let x = PanelRef::new(x, rows, stage.inputs());
        let out = if last { dest.reborrow() } else { Dest::Panels(PanelMut::new(next_x, rows, stage.outputs())) };
        match stage {
            Stage::Linear { affine, phi, skip } => {
                let slope = slope.map(|slope| PanelMut::new(slope, rows, affine.outputs()));
                let skip = if skip { Some(x) } else { outside };
                affine_forward(team, x, affine, phi, slope, out, skip);
            }
            Stage::Block { first, second, phi, skip } => {
                let slope = slope.map(|slope| PanelMut::new(slope, rows, first.outputs()));
                let hidden = Hidden { slope, h, whole: record || team.column_threads > 1 };
                block_forward(team, x, (first, second), phi, hidden, out, skip.then_some(x));
            }
        }
        if !record {
            std::mem::swap(&mut here, &mut there);
        }
    }
}

/// Where a block keeps its hidden activations.
struct Hidden<'a> {
    slope: Option<PanelMut<'a>>,
    h: &'a mut [f32],
    /// True if `h` holds all of them, false if it holds one chunk.
    whole: bool,
}

/// out = phi(x Wᵀ + b) + skip for a block of rows.
fn affine_forward(
    team: &Team<'_>,
    x: PanelRef<'_>,
    affine: &Affine,
    phi: Activation,
    slope: Option<PanelMut<'_>>,
    out: Dest<'_>,
    skip: Option<PanelRef<'_>>,
) {
    let (w, bias) = (Factor::stored(affine.weights.view()), affine.padded_bias());
    split_columns(&mut team.crew(), w.cols(), out, slope, |first, count, out, slope, ()| {
        let job = Columns { x, w: w.panel_range(first, count), start: start(bias, first) };
        let skip = skip.map(|s| In::from(s.panel_range(first, count)));
        job.run(team, phi, slope, out, skip);
    });
}

/// The columns of one forward GEMM that one thread computes.
struct Columns<'a> {
    x: PanelRef<'a>,
    w: Factor<'a>,
    start: Start<'a>,
}

impl Columns<'_> {
    fn run(self, team: &Team<'_>, phi: Activation, slope: Option<Out<'_>>, out: Out<'_>, skip: Option<In<'_>>) {
        let (isa, depth) = (team.ctx.isa(), team.ctx.k_block());
        let Self { x: a, w: b, start } = self;
        let epilogue = Epilogue::Activate { phi, slope, out, skip };
        gemm(isa, Gemm { a, b, start, depth, pack: &mut [], epilogue });
    }
}

/// y = phi(x W1ᵀ + b1) W2ᵀ + b2 (+ skip) for a block of rows: chunk by chunk of the hidden columns, so that a chunk is consumed
/// by the second GEMM while it is in cache; between chunks the chains of y wait in the output.
fn block_forward(
    team: &Team<'_>,
    x: PanelRef<'_>,
    (first, second): (&Affine, &Affine),
    phi: Activation,
    hidden: Hidden<'_>,
    mut out: Dest<'_>,
    skip: Option<PanelRef<'_>>,
) {
    let (rows, width) = (x.rows(), first.outputs());
    let (w1, w2) = (Factor::stored(first.weights.view()), Factor::stored(second.weights.view()));
    let (isa, depth) = (team.ctx.isa(), team.ctx.k_block());
    let Hidden { mut slope, h, whole } = hidden;
    if team.column_threads > 1 {
        let mut h = PanelMut::new(&mut h[..panels(width) * PANEL * rows], rows, width);
        affine_forward(team, x, first, phi, slope, Dest::Panels(h.reborrow()), None);
        return affine_forward(team, h.as_ref(), second, Activation::Identity, None, out, skip);
    }
    let chunk = team.ctx.blocking().hidden_chunk();
    let mut c0 = 0;
    loop {
        let cols = chunk.min(width - c0);
        let (p0, count) = (c0 / PANEL, panels(cols));
        let len = count * PANEL * rows;
        let at = if whole { p0 * PANEL * rows } else { 0 };
        let mut h = PanelMut::new(&mut h[at..at + len], rows, cols);
        let slope = slope.as_mut().map(|slope| slope.panel_range(p0, count).into());
        let job = Columns { x, w: w1.panel_range(p0, count), start: start(first.padded_bias(), p0) };
        job.run(team, phi, slope, h.reborrow().into(), None);

        let (a, b) = (h.as_ref(), w2.rows_from(c0));
        let start = if c0 == 0 { start(second.padded_bias(), 0) } else { Start::Continue };
        c0 += cols;
        let out = Out::from(out.reborrow());
        let epilogue = match skip {
            Some(skip) if c0 == width => Epilogue::AddSkip { out, skip: skip.into() },
            _ => Epilogue::Store { out },
        };
        gemm(isa, Gemm { a, b, start, depth, pack: &mut [], epilogue });
        if c0 == width {
            break;
        }
    }
}

/// Chains start from the bias of their columns, panel `first` and on.
fn start(bias: Option<&[f32]>, first: usize) -> Start<'_> {
    bias.map_or(Start::Zero, |bias| Start::Bias(&bias[first * PANEL..]))
}

/// Runs `work(first panel, panels, out, aux, scratch)` over the columns of an output, whole or in pieces on the threads of a
/// crew, each with a scratch of its own. Pieces of panels are disjoint memory; `aux` is cut like `out`.
pub(super) fn split_columns<T: Send>(
    crew: &mut [T],
    columns: usize,
    out: Dest<'_>,
    aux: Option<PanelMut<'_>>,
    work: impl Fn(usize, usize, Out<'_>, Option<Out<'_>>, &mut T) + Sync,
) {
    let threads = crew.len();
    let out = match (crew.first_mut(), out) {
        // Rows of the caller's matrix cannot be cut by columns: outputs are staged when columns are shared.
        (Some(mine), Dest::Rows(out)) => return work(0, panels(columns), out.into(), aux.map(Into::into), mine),
        (Some(mine), Dest::Panels(out)) if threads == 1 => {
            return work(0, panels(columns), out.into(), aux.map(Into::into), mine);
        }
        (_, Dest::Panels(out)) => out,
        (None, Dest::Rows(_)) => return,
    };
    let rows = out.as_ref().rows();
    let (mut out, mut aux) = (out.into_data(), aux.map(PanelMut::into_data));
    let pieces = column_pieces(columns, threads).map(move |(first, count)| {
        let cols = (count * PANEL).min(columns - first * PANEL);
        let len = count * PANEL * rows;
        let (head, tail) = std::mem::take(&mut out).split_at_mut(len);
        out = tail;
        let aux = aux.as_mut().map(|aux| {
            let (head, tail) = std::mem::take(aux).split_at_mut(len);
            *aux = tail;
            PanelMut::new(head, rows, cols)
        });
        (first, count, PanelMut::new(head, rows, cols), aux)
    });
    for_each(pieces, crew, |(first, count, out, aux), scratch| {
        work(first, count, out.into(), aux.map(Into::into), scratch);
    });
}
