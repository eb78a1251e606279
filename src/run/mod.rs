//! The executor: runs any program, forward and backward, on any number of threads.
//!
//! Forward and B1, B2 go by blocks of rows: rows of a batch are independent, so a block goes through all parts, one after the other,
//! while it is in L2, and blocks are what threads share (`rows`). B3 and B4 are sums over the batch: they go by panels of each
//! weight gradient, whose chains run over the rows in order, block after block, whichever thread has the panel (`batch`); so a batch
//! cut into micro-batches continues exactly the same chains. Backward takes the batch in *slabs* of row blocks and the network in
//! *groups* of parts, from the last down, and for each of them the two follow each other while dZ and dY, in panels as the GEMMs wrote
//! them, are still in cache:
//!
//! ```text
//! for each slab: for each group of parts:     one thread: a slab is one row block, a group one part
//!     rows:  B1, B2 for each row block                    threads share row blocks
//!     batch: B3, B4 for all row blocks of the slab        threads share pieces of dW
//! ```
//!
//! With too few rows for that, or weights that no thread should read whole, threads share the columns of each GEMM, too: then all row
//! blocks go through a step before the next begins. What is shared out is a phase of the call's one team (`crate::team`), and which way
//! is best for a batch is reckoned beforehand (`cost`).

mod batch;
mod blocks;
pub(crate) mod borrowed;
pub(crate) mod cost;
pub(crate) mod explain;
pub(crate) mod plan;
pub(crate) mod record;
mod rows;
mod shares;
pub(crate) mod source;
pub(crate) mod workspace;

use crate::context::Context;
use crate::error::Error;
use crate::gemm::buffers::Buffer;
use crate::gemm::cells::Out;
use crate::gemm::macro_kernel::PACK;
use crate::gemm::pack::unpack;
use crate::gemm::panels::{PanelMut, panel_len};
use crate::mat::{MatMut, MatRef};
use crate::program::Program;
use crate::program::lower::Barrier;
use crate::random::Draw;
use crate::team::Team;
use crate::team::pieces::reuse;
use batch::{list, sums};
use blocks::{Given, Record, Rows};
use plan::{Group, Plan};
use record::{Opened, PartsMut};
use rows::Job;
use source::{Slots, Source};
use std::sync::Arc;
use workspace::{Scratch, Workspace, grow_scratch};

/// A network as a call sees it: what it computes, and where its weights are.
#[derive(Clone, Copy)]
pub(crate) struct Network<'a> {
    pub(crate) program: &'a Arc<Program>,
    pub(crate) source: &'a dyn Source,
}

/// Runs a network on the rows of `x`. With a `record`, of the length that [`record_len`] says, backward finds there what it needs. Shapes
/// have been checked by the caller.
pub(crate) fn forward(
    ctx: &Context,
    ws: &mut Workspace,
    Network { program, source }: Network<'_>,
    (x, skip): (MatRef<'_>, Option<MatRef<'_>>),
    mut y: MatMut<'_>,
    record: Option<&mut [f32]>,
) -> Result<(), Error> {
    let n = x.rows();
    let recorded = record.is_some();
    let frozen = ctx.has_frozen_statistics();
    if recorded && !frozen && n == 1 && program.statistics.0 > 0 {
        return Err(Error::Setting {
            operand: "x",
            reason: "a single row has no statistics for a BatchNorm to learn by",
        });
    }
    let PartsMut { head, statistics, values } =
        record.map(|record| record::parts_mut(record, program)).unwrap_or_default();
    let Workspace { scratch, slab, staging, plans, .. } = ws;
    // More rows than memory could ever hold a line of are refused, whatever they leave behind.
    panel_len("batch", n, 0)?;
    let plan = plans.forward(ctx, program, n, (recorded, skip.is_some()))?;
    let shares = plan.shares;
    // Rows that leave nothing behind need not be computed: a view of stride 0 may have more of them than anyone could count.
    if values.is_empty() && y.cols() == 0 {
        if recorded {
            record::seal(head, program, (n, shares.rows), ctx.draw(), frozen);
        }
        return Ok(());
    }
    // All memory is there before anything is written. Values on their way are each thread's own, unless threads share columns or all rows meet on
    // the way.
    let local_width = plan.memory.local_width;
    let apart = shares.across == 1 && plan.barriers.is_empty();
    let local_len = panel_len("batch", if apart { shares.rows.min(n) } else { n }, local_width)?;
    let (own, shared) = if apart { (local_len, 0) } else { (0, local_len) };
    let mut staged = Staged::new(staging, "output", &y)?;
    slab.grow(shared)?;
    let pack = if source.moves() { PACK } else { 0 };
    grow_scratch(scratch, shares.threads, own, pack)?;

    let mut rows = Rows {
        first: 0,
        count: n,
        record: Record::Write(values),
        local: &mut slab.as_mut_slice()[..shared],
        out: Some(staged.out(&mut y)),
        norms: &mut [],
        widths: (
            if recorded { program.record_width.unwrap_or(0) } else { 0 },
            if shared == 0 { 0 } else { local_width },
            0,
        ),
    };
    let mut team = Team::new(shares.threads, ctx.linger());
    statistics.fill(0.0);
    let call = Call { ctx, net: Network { program, source }, plan, draw: ctx.draw().filter(|_| recorded) };
    for group in &plan.groups {
        call.rows(
            &mut team,
            group,
            Given { entry: x, skip },
            rows.reborrow(),
            statistics,
            &mut scratch[..shares.threads],
        );
    }
    staged.hand_out(ctx, &mut y);
    if recorded {
        record::seal(head, program, (n, shares.rows), ctx.draw(), frozen);
    }
    Ok(())
}

/// What the phases of a call have in common.
struct Call<'a> {
    ctx: &'a Context,
    net: Network<'a>,
    plan: &'a Plan,
    draw: Option<Draw>,
}

impl Call<'_> {
    /// Takes rows through the steps of a group; where statistics of the batch are taken on the way, all of them up to there before any goes on.
    fn rows(
        &self,
        team: &mut Team,
        group: &Group,
        given: Given<'_>,
        mut rows: Rows<'_>,
        statistics: &mut [f32],
        scratch: &mut [Scratch],
    ) {
        let Self { ctx, net: Network { program, source }, plan, draw } = *self;
        let mut from = group.steps.start;
        for Barrier { before, what } in &plan.barriers[group.barriers.clone()] {
            let job = Job::new(ctx, source, given, draw, statistics);
            job.run(team, &plan.steps[from..*before], plan.shares, rows.reborrow(), scratch);
            from = *before;
            let slab = rows.slab(program, &plan.memory, plan.shares.rows);
            if slab.rows > 0 {
                batch::statistics(ctx, team, scratch, what, slab, statistics);
            }
        }
        let job = Job::new(ctx, source, given, draw, statistics);
        job.run(team, &plan.steps[from..group.steps.end], plan.shares, rows, scratch);
    }
}

/// A result on its way to the caller: into rows it goes at once; a matrix of other strides is filled from panels afterwards.
struct Staged<'a> {
    panels: Option<PanelMut<'a>>,
}

impl<'a> Staged<'a> {
    fn new(staging: &'a mut Buffer, operand: &'static str, result: &MatMut<'_>) -> Result<Self, Error> {
        if result.is_row_major() {
            return Ok(Self { panels: None });
        }
        let (n, cols) = result.shape();
        let len = panel_len(operand, n, cols)?;
        staging.grow(len)?;
        Ok(Self { panels: Some(PanelMut::new(&mut staging.as_mut_slice()[..len], n, cols)) })
    }

    /// Where kernels write it.
    fn out<'s>(&'s mut self, result: &'s mut MatMut<'_>) -> Out<'s> {
        match &mut self.panels {
            Some(panels) => panels.reborrow().into(),
            None => {
                let rows = result.rows();
                result.reborrow().take_rows(rows).into()
            }
        }
    }

    fn hand_out(self, ctx: &Context, result: &mut MatMut<'_>) {
        if let Some(panels) = self.panels {
            unpack(ctx.isa(), panels.as_ref(), result, 0);
        }
    }
}

/// What backward is asked for.
pub(crate) struct Wanted<'a, 'm> {
    pub(crate) dx: Option<MatMut<'a>>,
    pub(crate) grads: Slots<'a, 'm>,
    pub(crate) accumulate: bool,
    /// Norm of the gradient of each part's output.
    pub(crate) norms: Option<&'a mut [f64]>,
}

/// Runs a network backward from dy, from the record of its forward pass. Shapes have been checked.
pub(crate) fn backward(
    ctx: &Context,
    ws: &mut Workspace,
    Network { program, source }: Network<'_>,
    record: &[f32],
    dy: MatRef<'_>,
    wanted: Wanted<'_, '_>,
) -> Result<(), Error> {
    let Wanted { mut dx, mut grads, accumulate, norms } = wanted;
    let Opened { block_rows, draw, statistics: recorded, values: record } =
        record::open(record, program, dy.rows(), dy.cols())?;
    let record_width = program.record_width.unwrap_or(0);
    // A network without any width: its rows, of which forward took as many as there were, hold nothing.
    let n = if record_width == 0 && dy.cols() == 0 { 0 } else { dy.rows() };
    let Workspace { scratch, slab, statistics, staging, row_norms, plans, targets, .. } = ws;
    let plan = plans.backward(ctx, program, (n, block_rows), (dx.is_some(), recorded.is_some()))?;
    let (shares, local_width, slab_rows) = (plan.shares, plan.memory.local_width, plan.slab_rows);
    let slab_len = panel_len("batch", slab_rows.min(n), local_width)?;
    let norm_parts = if norms.is_some() { program.parts.len() } else { 0 };
    let norms_len = n.checked_mul(norm_parts);
    let norms_len =
        norms_len.ok_or(Error::Overflow { operand: "batch", rows: n, cols: norm_parts, strides: (1, 1) })?;
    let mut staged = dx.as_ref().map(|dx| Staged::new(staging, "dx", dx)).transpose()?;
    slab.grow(slab_len)?;
    statistics.grow(program.statistics.1)?;
    let statistics = &mut statistics.as_mut_slice()[..program.statistics.1];
    if let Some(recorded) = recorded {
        statistics[..recorded.len()].copy_from_slice(recorded);
    }
    grow_scratch(scratch, shares.threads, 0, PACK)?;
    let missing = norms_len.saturating_sub(row_norms.len());
    row_norms.try_reserve_exact(missing).map_err(|_| Error::Memory { bytes: missing.saturating_mul(8) })?;
    row_norms.resize(norms_len.max(row_norms.len()), 0.0);
    let row_norms = &mut row_norms[..norms_len];
    if n == 0 && !accumulate {
        grads.clear();
    }
    let mut list = list(std::mem::take(&mut targets.0), program, &mut grads)?;

    let mut team = Team::new(shares.threads, ctx.linger());
    let scratch = &mut scratch[..shares.threads];
    let call = Call { ctx, net: Network { program, source }, plan, draw };
    let mut out = dx.as_mut().zip(staged.as_mut()).map(|(dx, staged)| staged.out(dx));
    for first_row in (0..n).step_by(slab_rows) {
        let count = slab_rows.min(n - first_row);
        let local = &mut slab.as_mut_slice()[..count * local_width];
        let record = &record[first_row * record_width..][..count * record_width];
        let norms = &mut row_norms[first_row * norm_parts..][..count * norm_parts];
        let mut slab_out = out.as_mut().map(|out| out.rows_from(first_row));
        for group in &plan.groups {
            let mut rows = Rows {
                first: first_row,
                count,
                record: Record::Read(record),
                local: &mut *local,
                out: if group.parts.start == 0 { slab_out.take() } else { None },
                norms: &mut *norms,
                widths: (record_width, local_width, norm_parts),
            };
            call.rows(&mut team, group, Given { entry: dy, skip: None }, rows.reborrow(), statistics, scratch);
            let (cut, slab) = (&plan.sums[group.sums.clone()], rows.slab(program, &plan.memory, shares.rows));
            sums(ctx, &mut team, scratch, cut, slab, &mut list, accumulate || first_row > 0);
        }
    }
    drop(team);
    targets.0 = reuse(list);
    if let Some((dx, staged)) = dx.as_mut().zip(staged) {
        staged.hand_out(ctx, dx);
    }
    if let Some(norms) = norms {
        sum_norms(row_norms, shares.rows, n, norms);
    }
    Ok(())
}

/// norms[t] = sqrt of the sum over rows, in order: the same bits however the batch was cut.
fn sum_norms(row_norms: &[f64], block_rows: usize, n: usize, norms: &mut [f64]) {
    let parts = norms.len();
    norms.fill(0.0);
    for first_row in (0..n).step_by(block_rows) {
        let rows = block_rows.min(n - first_row);
        let block = &row_norms[first_row * parts..][..rows * parts];
        for (norm, rows) in norms.iter_mut().zip(block.chunks_exact(rows)) {
            *norm = rows.iter().fold(*norm, |sum, r| sum + r);
        }
    }
    norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
}
