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
//!     batch: B3, B4 for all row blocks of the slab        threads share panels of dW
//! ```
//!
//! With too few rows to share, threads share the columns of each GEMM instead, with a barrier after it.

mod batch;
mod blocks;
pub(crate) mod borrowed;
pub(crate) mod explain;
pub(crate) mod plan;
pub(crate) mod record;
mod rows;
pub(crate) mod source;
pub(crate) mod workspace;

use crate::context::Context;
use crate::error::Error;
use crate::gemm::driver::for_each;
use crate::gemm::macro_kernel::PACK;
use crate::gemm::panels::panel_len;
use crate::mat::{MatMut, MatRef};
use crate::program::Program;
use batch::{Slab, sums};
use blocks::{Given, Record, RowBlock, RowBlocks, Sink, unstage};
use rows::Job;
use source::{Slots, Source};
use std::slice;
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
    let (head, values) = record.map(record::parts_mut).unwrap_or_default();
    let Workspace { scratch, staging, plans, .. } = ws;
    // More rows than memory could ever hold a line of are refused, whatever they leave behind.
    panel_len("batch", n, 0)?;
    let plan = plans.forward(ctx, program, n, (recorded, skip.is_some()))?;
    let shares = plan.shares;
    // Rows that leave nothing behind need not be computed: a view of stride 0 may have more of them than anyone could count.
    if values.is_empty() && y.cols() == 0 {
        if recorded {
            record::seal(head, program, n, shares.rows);
        }
        return Ok(());
    }
    // All memory is there before anything is written.
    let local_len = panel_len("batch", shares.rows.min(n), plan.memory.local_width)?;
    let staged = !y.is_row_major() || shares.column_threads > 1;
    let staging_len = if staged { panel_len("output", n, y.cols())? } else { 0 };
    staging.grow(staging_len)?;
    let pack = if source.moves() { PACK } else { 0 };
    grow_scratch(scratch, shares.row_threads.max(shares.column_threads), (shares.row_threads, local_len), pack)?;

    let staging = &mut staging.as_mut_slice()[..staging_len];
    let mut sink = if staged { Sink::Staged(&mut *staging, y.cols()) } else { Sink::Rows(y.reborrow()) };
    let job = Job::new(ctx, source, Given { entry: x, skip });
    let record_width = if recorded { program.record_width.unwrap_or(0) } else { 0 };
    let blocks = RowBlocks {
        record: Record::Write(values),
        slab: &mut [],
        sink: Some(&mut sink),
        norms: &mut [],
        widths: (record_width, 0, 0),
        block_rows: shares.rows,
        next_row: 0,
        rows: n,
    };
    let run = |mut block: RowBlock<'_>, crew: &mut [Scratch]| {
        let Some(mine) = crew.first_mut() else { return };
        let (job, mut local) = (job, std::mem::take(&mut mine.local));
        job.run(&plan.steps, &mut block, local.as_mut_slice(), crew);
        crew[0].local = local;
    };
    share(blocks, scratch, shares.row_threads, shares.column_threads, run);
    if staged {
        unstage(ctx.isa(), staging, shares.rows, &mut y);
    }
    if recorded {
        record::seal(head, program, n, shares.rows);
    }
    Ok(())
}

/// Does `run` for each block of rows: on threads that share the blocks, or with a crew that shares the columns of one after the other.
fn share<B>(
    blocks: B,
    scratch: &mut [Scratch],
    row_threads: usize,
    column_threads: usize,
    run: impl Fn(B::Item, &mut [Scratch]) + Sync,
) where
    B: Iterator + Send,
{
    if column_threads > 1 {
        blocks.for_each(|block| run(block, &mut scratch[..column_threads]));
    } else {
        for_each(blocks, &mut scratch[..row_threads], |block, mine| run(block, slice::from_mut(mine)));
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
    let (record, block_rows) = record::open(record, program, dy.rows(), dy.cols())?;
    let record_width = program.record_width.unwrap_or(0);
    // A network without any width: its rows, of which forward took as many as there were, hold nothing.
    let n = if record_width == 0 && dy.cols() == 0 { 0 } else { dy.rows() };
    let Workspace { scratch, slab, staging, row_norms, plans, .. } = ws;
    let plan = plans.backward(ctx, program, (n, block_rows), dx.is_some())?;
    let (shares, local_width, slab_rows) = (plan.shares, plan.memory.local_width, plan.slab_rows);
    let slab_len = panel_len("batch", slab_rows.min(n), local_width)?;
    let staged = dx.as_ref().is_some_and(|dx| !dx.is_row_major() || shares.column_threads > 1);
    let dx_cols = dx.as_ref().map_or(0, MatMut::cols);
    let staging_len = if staged { panel_len("dx", n, dx_cols)? } else { 0 };
    let norm_parts = if norms.is_some() { program.parts.len() } else { 0 };
    let norms_len = n.checked_mul(norm_parts);
    let norms_len =
        norms_len.ok_or(Error::Overflow { operand: "batch", rows: n, cols: norm_parts, strides: (1, 1) })?;
    staging.grow(staging_len)?;
    slab.grow(slab_len)?;
    grow_scratch(scratch, shares.row_threads.max(shares.column_threads), (0, 0), PACK)?;
    let missing = norms_len.saturating_sub(row_norms.len());
    row_norms.try_reserve_exact(missing).map_err(|_| Error::Memory { bytes: missing.saturating_mul(8) })?;
    row_norms.resize(norms_len.max(row_norms.len()), 0.0);
    let (staging, row_norms) = (&mut staging.as_mut_slice()[..staging_len], &mut row_norms[..norms_len]);
    let mut sink =
        dx.as_mut().map(|dx| if staged { Sink::Staged(&mut *staging, dx_cols) } else { Sink::Rows(dx.reborrow()) });

    if n == 0 && !accumulate {
        grads.clear(program.affines.len());
    }
    let job = Job::new(ctx, source, Given { entry: dy, skip: None });
    for first_row in (0..n).step_by(slab_rows) {
        let rows = slab_rows.min(n - first_row);
        let slab = &mut slab.as_mut_slice()[..rows * local_width];
        let record = &record[first_row * record_width..][..rows * record_width];
        let norms = &mut row_norms[first_row * norm_parts..][..rows * norm_parts];
        for group in &plan.groups {
            let blocks = RowBlocks {
                record: Record::Read(record),
                slab: &mut *slab,
                sink: if group.parts.start == 0 { sink.as_mut() } else { None },
                norms: &mut *norms,
                widths: (record_width, local_width, norm_parts),
                block_rows: shares.rows,
                next_row: first_row,
                rows,
            };
            let run = |mut block: RowBlock<'_>, crew: &mut [Scratch]| {
                let (job, slab) = (job, std::mem::take(&mut block.slab));
                job.run(&plan.steps[group.steps.clone()], &mut block, slab, crew);
            };
            share(blocks, scratch, shares.row_threads, shares.column_threads, run);
            let block_rows = shares.rows;
            let memory = &plan.memory;
            let slab = Slab { program, memory, record, record_width, local: slab, block_rows, rows };
            sums(ctx, group.parts.clone(), slab, shares.threads, &mut grads, accumulate || first_row > 0);
        }
    }
    if let (true, Some(dx)) = (staged, &mut dx) {
        unstage(ctx.isa(), staging, shares.rows, dx);
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
