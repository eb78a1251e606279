//! Plans: how a batch and a program are cut, and where values live. Made once for a kind of call and kept in the workspace.

use crate::context::Context;
use crate::error::Error;
use crate::gemm::blocking::{Blocking, REGION_WORK, fewest_rows, useful_threads};
use crate::gemm::buffers::room;
use crate::program::Program;
use crate::program::lower::{Lowered, Lowering};
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
    fn new(ctx: &Context, program: &Program, key: Key) -> Self {
        let Key { n, threads, rows, .. } = key;
        let rows = rows.unwrap_or_else(|| {
            let few = fewest_rows(program.largest, key.option);
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

/// What a kind of call is: all that a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    n: usize,
    /// Backward: rows of a block of the record.
    rows: Option<usize>,
    threads: usize,
    isa: Isa,
    blocking: Blocking,
    /// Forward: whether it is recorded. Backward: whether dx is wanted.
    option: bool,
    /// Forward: whether the caller gives an addend.
    skip: bool,
}

/// Some parts that are taken together.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) parts: Range<usize>,
    /// Their steps.
    pub(crate) steps: Range<usize>,
}

/// How one kind of call goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    made_for: Option<(Arc<Program>, Key)>,
    pub(crate) shares: Shares,
    pub(crate) memory: Memory,
    pub(crate) steps: Vec<Lowered>,
    /// Backward: rows that go through the row-local steps of a group before its sums over the batch.
    pub(crate) slab_rows: usize,
    /// The parts: all at once forward; backward some at a time, from the last down.
    pub(crate) groups: Vec<Group>,
}

impl Plan {
    fn make_forward(&mut self, program: &Program, key: Key) -> Result<(), Error> {
        self.begin(program, program.parts.iter().map(|part| part.forward.len()).sum(), 1)?;
        let chunk = self.chunk(key);
        let uses = ForwardUse { record: key.option, skip: key.skip, chunk: chunk.unwrap_or(usize::MAX) };
        self.memory.forward(program, uses).ok_or_else(|| key.overflow(program))?;
        let Self { memory, steps, groups, .. } = self;
        for part in &program.parts {
            Lowering { program, memory, chunk }.steps(&part.forward, steps);
        }
        groups.push(Group { parts: 0..program.parts.len(), steps: 0..steps.len() });
        Ok(())
    }

    fn make_backward(&mut self, program: &Program, key: Key) -> Result<(), Error> {
        self.begin(program, program.parts.iter().map(|part| part.backward.len()).sum(), program.parts.len())?;
        let chunk = self.chunk(key);
        self.group(program);
        let groups = self.groups.iter().map(|group| group.parts.clone());
        self.memory.backward(program, groups, key.option).ok_or_else(|| key.overflow(program))?;
        let Self { memory, steps, groups, .. } = self;
        for group in groups {
            group.steps.start = steps.len();
            for part in program.parts[group.parts.clone()].iter().rev() {
                Lowering { program, memory, chunk }.steps(&part.backward, steps);
            }
            group.steps.end = steps.len();
        }
        Ok(())
    }

    /// Makes room for so many steps, each of which may become two, and groups.
    fn begin(&mut self, program: &Program, steps: usize, groups: usize) -> Result<(), Error> {
        room(&mut self.steps, steps.saturating_mul(2))?;
        room(&mut self.groups, groups)?;
        self.memory.begin(program)
    }

    /// Columns of a chunk; None where threads share columns.
    fn chunk(&self, key: Key) -> Option<usize> {
        (self.shares.column_threads == 1).then(|| key.blocking.hidden_chunk())
    }

    /// Cuts batch and network for backward. On one thread a slab is one row block and a group one part: sums over the batch follow at
    /// once, while their operands are in cache. On several, slabs and groups are as small as regions worth their barrier allow.
    fn group(&mut self, program: &Program) {
        let Shares { rows, row_threads, .. } = self.shares;
        // One row block for each thread, and so often as many as make the whole network worth a region.
        let enough = REGION_WORK.div_ceil(rows.saturating_mul(program.work).max(1));
        let blocks = if row_threads == 1 { 1 } else { row_threads.saturating_mul(enough) };
        self.slab_rows = rows.saturating_mul(blocks);
        let (mut high, mut work) = (program.parts.len(), 0usize);
        for (index, part) in program.parts.iter().enumerate().rev() {
            work = work.saturating_add(self.slab_rows.saturating_mul(part.work));
            if row_threads == 1 || index == 0 || work >= row_threads.saturating_mul(REGION_WORK) {
                self.groups.push(Group { parts: index..high, steps: 0..0 });
                (high, work) = (index, 0);
            }
        }
    }
}

/// Plans that a workspace keeps of each kind: as many as networks and sizes of batches that take turns there.
const MOST_PLANS: usize = 4;

/// The latest plans of one kind.
#[derive(Debug, Clone, Default)]
struct Latest {
    plans: [Plan; MOST_PLANS],
    /// The one that goes next.
    oldest: usize,
}

impl Latest {
    /// The plan of a kind of call: the one that there is, or a new one in place of the oldest.
    fn get(
        &mut self,
        ctx: &Context,
        program: &Arc<Program>,
        key: Key,
        make: impl FnOnce(&mut Plan, &Program, Key) -> Result<(), Error>,
    ) -> Result<&Plan, Error> {
        let made =
            |plan: &Plan| plan.made_for.as_ref().is_some_and(|(made, with)| *with == key && Arc::ptr_eq(made, program));
        if let Some(at) = self.plans.iter().position(made) {
            return Ok(&self.plans[at]);
        }
        let plan = &mut self.plans[self.oldest];
        self.oldest = (self.oldest + 1) % MOST_PLANS;
        plan.made_for = None;
        plan.shares = Shares::new(ctx, program, key);
        make(plan, program, key)?;
        plan.made_for = Some((Arc::clone(program), key));
        Ok(plan)
    }
}

/// The plans of a workspace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plans {
    infer: Latest,
    forward: Latest,
    backward: Latest,
}

impl Plans {
    /// Of a forward pass.
    pub(crate) fn forward(
        &mut self,
        ctx: &Context,
        program: &Arc<Program>,
        n: usize,
        (record, skip): (bool, bool),
    ) -> Result<&Plan, Error> {
        let latest = if record { &mut self.forward } else { &mut self.infer };
        latest.get(ctx, program, Key::new(ctx, program, (n, None), (record, skip)), Plan::make_forward)
    }

    /// Of a backward pass from a record in blocks of `rows`.
    pub(crate) fn backward(
        &mut self,
        ctx: &Context,
        program: &Arc<Program>,
        (n, rows): (usize, usize),
        dx_wanted: bool,
    ) -> Result<&Plan, Error> {
        let key = Key::new(ctx, program, (n, Some(rows)), (dx_wanted, false));
        self.backward.get(ctx, program, key, Plan::make_backward)
    }
}

impl Key {
    fn new(ctx: &Context, program: &Program, (n, rows): (usize, Option<usize>), (option, skip): (bool, bool)) -> Self {
        let threads = ctx.par().threads_for(useful_threads(n.saturating_mul(program.work)));
        Self { n, rows, threads, isa: ctx.isa(), blocking: ctx.blocking(), option, skip }
    }

    fn overflow(self, program: &Program) -> Error {
        Error::Overflow { operand: "batch", rows: self.n, cols: program.widest, strides: (1, 1) }
    }
}
