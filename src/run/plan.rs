//! Plans: how a batch and a program are cut, and where values live. Made once for a kind of call and kept in the workspace.

use crate::context::Context;
use crate::error::Error;
use crate::gemm::blocking::{Blocking, REGION_WORK, fewest_rows, useful_threads};
use crate::program::Program;
use crate::program::memory::{ForwardUse, Memory};
use crate::simd::Isa;
use std::ops::Range;
use std::sync::Arc;

/// How a batch is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Shares {
    /// Rows of a block.
    pub(crate) rows: usize,
    /// Threads that take blocks of rows.
    pub(crate) row_threads: usize,
    /// Threads that share the columns of each GEMM, where there are too few rows to share.
    pub(crate) column_threads: usize,
    /// Threads that the whole call is worth and may use.
    pub(crate) threads: usize,
}

impl Shares {
    /// For `n` rows, in blocks of `rows` if these are given (backward takes those of the record).
    fn new(ctx: &Context, program: &Program, n: usize, training: bool, rows: Option<usize>) -> Self {
        let threads = ctx.par().threads_for(useful_threads(n.saturating_mul(program.work)));
        let rows = rows.unwrap_or_else(|| {
            let few = fewest_rows(program.largest, training);
            ctx.blocking().row_block(n, threads, few, program.widest)
        });
        let blocks = n.div_ceil(rows);
        let (mut row_threads, mut column_threads) = (threads, 1);
        if blocks < threads {
            // A block of rows has two GEMMs and a barrier after each: half of its work must be worth a wake-up.
            let worth = threads.min(useful_threads(n.saturating_mul(program.largest) / 2));
            (row_threads, column_threads) = if blocks <= 1 { (1, worth) } else { (blocks, 1) };
        }
        Self { rows, row_threads, column_threads, threads }
    }
}

/// All that a plan depends on beside what the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    n: usize,
    shares: Shares,
    isa: Isa,
    blocking: Blocking,
    /// Forward: whether it is recorded. Backward: whether dx is wanted.
    option: bool,
    skip: bool,
}

/// How one kind of call goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    made_for: Option<(Arc<Program>, Key)>,
    pub(crate) shares: Shares,
    pub(crate) memory: Memory,
    /// Backward: rows that go through the row-local steps of a group before its sums over the batch.
    pub(crate) slab_rows: usize,
    /// Backward: the parts, some at a time, from the last down.
    pub(crate) groups: Vec<Range<usize>>,
}

impl Plan {
    /// Makes this the plan of a forward pass.
    pub(crate) fn forward(
        &mut self,
        ctx: &Context,
        program: &Arc<Program>,
        n: usize,
        (record, skip): (bool, bool),
    ) -> Result<(), Error> {
        let shares = Shares::new(ctx, program, n, record, None);
        self.remake(ctx, program, n, shares, (record, skip), |plan| {
            let columns = shares.column_threads > 1;
            let chunk = if columns { usize::MAX } else { ctx.blocking().hidden_chunk() };
            plan.memory.forward(program, ForwardUse { record, skip, chunk })
        })
    }

    /// Makes this the plan of a backward pass from a record in blocks of `rows`.
    pub(crate) fn backward(
        &mut self,
        ctx: &Context,
        program: &Arc<Program>,
        n: usize,
        rows: usize,
        dx_wanted: bool,
    ) -> Result<(), Error> {
        let shares = Shares::new(ctx, program, n, true, Some(rows));
        self.remake(ctx, program, n, shares, (dx_wanted, false), |plan| {
            plan.group(program);
            plan.memory.backward(program, &plan.groups, dx_wanted)
        })
    }

    fn remake(
        &mut self,
        ctx: &Context,
        program: &Arc<Program>,
        n: usize,
        shares: Shares,
        (option, skip): (bool, bool),
        make: impl FnOnce(&mut Self) -> Option<()>,
    ) -> Result<(), Error> {
        let key = Key { n, shares, isa: ctx.isa(), blocking: ctx.blocking(), option, skip };
        if self.made_for.as_ref().is_some_and(|(made, for_key)| Arc::ptr_eq(made, program) && *for_key == key) {
            return Ok(());
        }
        self.made_for = None;
        self.shares = shares;
        make(self).ok_or(Error::Overflow { operand: "batch", rows: n, cols: program.widest, strides: (1, 1) })?;
        self.made_for = Some((Arc::clone(program), key));
        Ok(())
    }

    /// Cuts batch and network for backward. On one thread a slab is one row block and a group one part: sums over the batch follow at
    /// once, while their operands are in cache. On several, slabs and groups are as small as regions worth their barrier allow.
    fn group(&mut self, program: &Program) {
        let Shares { rows, row_threads, .. } = self.shares;
        // One row block for each thread, and so often as many as make the whole network worth a region.
        let enough = REGION_WORK.div_ceil(rows.saturating_mul(program.work).max(1));
        let blocks = if row_threads == 1 { 1 } else { row_threads.saturating_mul(enough) };
        self.slab_rows = rows.saturating_mul(blocks);
        self.groups.clear();
        let (mut high, mut work) = (program.parts.len(), 0usize);
        for (index, part) in program.parts.iter().enumerate().rev() {
            work = work.saturating_add(self.slab_rows.saturating_mul(part.work));
            if row_threads == 1 || index == 0 || work >= row_threads.saturating_mul(REGION_WORK) {
                self.groups.push(index..high);
                (high, work) = (index, 0);
            }
        }
    }
}

/// The plans of a workspace: one for each kind of call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plans {
    pub(crate) infer: Plan,
    pub(crate) forward: Plan,
    pub(crate) backward: Plan,
}
