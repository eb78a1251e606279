//! Plans: how a batch and a program are cut, and where values live. Made once for a kind of call and kept in the workspace.

use super::cost::{Cost, Pass};
use super::shares::{Shares, Sum, cut_sums};
use crate::context::{Context, Machine};
use crate::error::Error;
use crate::gemm::blocking::{Blocking, REGION_WORK};
use crate::gemm::buffers::room;
use crate::gemm::macro_kernel::tile_sizes;
use crate::program::Program;
use crate::program::lower::{Barrier, Lowered, Lowering};
use crate::program::memory::{ForwardUse, Memory};
use crate::simd::Isa;
use crate::team::pieces::Part;
use std::ops::Range;
use std::sync::Arc;

/// What a kind of call is: all that a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    n: usize,
    /// Backward: rows of a block of the record.
    rows: Option<usize>,
    threads: usize,
    isa: Isa,
    blocking: Blocking,
    machine: Machine,
    /// Forward: whether it is recorded. Backward: whether dx is wanted.
    option: bool,
    /// Forward: whether the caller gives an addend.
    skip: bool,
    /// Whether statistics are those of the batch.
    statistics: bool,
}

/// Some parts that are taken together.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) parts: Range<usize>,
    /// Their steps, what is taken of the batch between these, and the pieces of their sums over the batch.
    pub(crate) steps: Range<usize>,
    pub(crate) barriers: Range<usize>,
    pub(crate) sums: Range<usize>,
}

/// How one kind of call goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    made_for: Option<(Arc<Program>, Key)>,
    pub(crate) shares: Shares,
    /// What the cost model expects of it.
    pub(crate) predicted_ns: f64,
    pub(crate) memory: Memory,
    pub(crate) steps: Vec<Lowered>,
    /// Statistics of the batch between the steps.
    pub(crate) barriers: Vec<Barrier>,
    /// Backward: the sums over the batch, cut.
    pub(crate) sums: Vec<Part<Sum>>,
    /// Backward: rows that go through the row-local steps of a group before its sums over the batch.
    pub(crate) slab_rows: usize,
    /// The parts: all at once forward; backward some at a time, from the last down.
    pub(crate) groups: Vec<Group>,
}

impl Plan {
    fn make_forward(&mut self, program: &Program, key: Key) -> Result<(), Error> {
        self.begin(program, program.parts.iter().map(|part| part.forward.len()).sum(), 1)?;
        let chunk = self.chunk(key);
        let (record, skip, statistics) = (key.option, key.skip, key.statistics);
        let uses = ForwardUse { record, skip, chunk: chunk.unwrap_or(usize::MAX), statistics };
        self.memory.forward(program, uses).ok_or_else(|| key.overflow(program))?;
        let Self { memory, steps, barriers, groups, .. } = self;
        for part in &program.parts {
            Lowering { program, memory, chunk }.steps(&part.forward, steps, barriers);
        }
        let (parts, steps, barriers) = (0..program.parts.len(), 0..steps.len(), 0..barriers.len());
        groups.push(Group { parts, steps, barriers, sums: 0..0 });
        Ok(())
    }

    fn make_backward(&mut self, program: &Program, key: Key) -> Result<(), Error> {
        let steps = program.parts.iter().map(|part| part.again.len() + part.backward.len());
        self.begin(program, steps.sum(), program.parts.len())?;
        let chunk = self.chunk(key);
        self.group(program, key);
        let groups = self.groups.iter().map(|group| group.parts.clone());
        self.memory.backward(program, groups, (key.option, key.statistics)).ok_or_else(|| key.overflow(program))?;
        room(&mut self.sums, program.affines.len().saturating_mul(2).saturating_add(program.vectors.len()))?;
        let tiles = tile_sizes(key.isa);
        let rows = self.slab_rows.min(key.n);
        let Self { memory, steps, barriers, groups, sums, shares, .. } = self;
        for group in groups {
            let parts = &program.parts[group.parts.clone()];
            (group.steps.start, group.barriers.start) = (steps.len(), barriers.len());
            for part in parts.iter().rev() {
                let lowering = Lowering { program, memory, chunk };
                lowering.steps(&part.again, steps, barriers);
                lowering.steps(&part.backward, steps, barriers);
            }
            (group.steps.end, group.barriers.end) = (steps.len(), barriers.len());
            group.sums.start = sums.len();
            cut_sums(program, parts, rows, shares.threads, tiles, sums);
            group.sums.end = sums.len();
        }
        Ok(())
    }

    /// Makes room for so many steps, each of which may become three, and groups.
    fn begin(&mut self, program: &Program, steps: usize, groups: usize) -> Result<(), Error> {
        room(&mut self.steps, steps.saturating_mul(3))?;
        room(&mut self.groups, groups)?;
        let statistics = program.values.iter().filter(|value| value.statistic.is_some()).count();
        room(&mut self.barriers, statistics / 2)?;
        self.memory.begin(program)
    }

    /// Columns of a chunk; None where threads share columns.
    fn chunk(&self, key: Key) -> Option<usize> {
        (self.shares.across == 1).then(|| key.blocking.hidden_chunk())
    }

    /// Cuts batch and network for backward. On one thread a slab is one row block and a group one part: sums over the batch follow at
    /// once, while their operands are in cache. On several, slabs and groups are as small as regions worth their barrier allow. Where statistics of the
    /// batch are taken, a slab is all of it.
    fn group(&mut self, program: &Program, key: Key) {
        let Shares { rows, threads, .. } = self.shares;
        // One row block for each thread, and so often as many as make the whole network worth a region.
        let enough = REGION_WORK.div_ceil(rows.saturating_mul(program.work).max(1));
        let blocks = match threads {
            _ if key.statistics => key.n.div_ceil(rows).max(1),
            1 => 1,
            _ => threads.saturating_mul(enough),
        };
        self.slab_rows = rows.saturating_mul(blocks);
        let (mut high, mut work) = (program.parts.len(), 0usize);
        for (index, part) in program.parts.iter().enumerate().rev() {
            work = work.saturating_add(self.slab_rows.saturating_mul(part.work));
            if threads == 1 || index == 0 || work >= threads.saturating_mul(REGION_WORK) {
                self.groups.push(Group { parts: index..high, steps: 0..0, barriers: 0..0, sums: 0..0 });
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
        (key, pass): (Key, Pass),
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
        (plan.shares, plan.predicted_ns) = key.shares(ctx, program, pass);
        make(plan, program, key)?;
        plan.made_for = Some((Arc::clone(program), key));
        Ok(plan)
    }
}

/// The plans of a workspace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plans {
    /// Threads of a machine that is not this one, for explanations.
    pub(crate) imagined: Option<usize>,
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
        let (latest, pass) = if record { (&mut self.forward, Pass::Forward) } else { (&mut self.infer, Pass::Infer) };
        let statistics = record && !ctx.has_frozen_statistics();
        let key = Key::new(ctx, program, self.imagined, (n, None), (record, skip, statistics));
        latest.get(ctx, program, (key, pass), Plan::make_forward)
    }

    /// Of a backward pass from a record in blocks of `rows`.
    pub(crate) fn backward(
        &mut self,
        ctx: &Context,
        program: &Arc<Program>,
        (n, rows): (usize, usize),
        (dx_wanted, statistics): (bool, bool),
    ) -> Result<&Plan, Error> {
        let key = Key::new(ctx, program, self.imagined, (n, Some(rows)), (dx_wanted, false, statistics));
        self.backward.get(ctx, program, (key, Pass::Backward), Plan::make_backward)
    }
}

impl Key {
    fn new(
        ctx: &Context,
        program: &Program,
        imagined: Option<usize>,
        (n, rows): (usize, Option<usize>),
        (option, skip, statistics): (bool, bool, bool),
    ) -> Self {
        // Less than a microsecond is over before another thread has heard of it. What more is worth is for the model to tell.
        let useful = 1 + n.saturating_mul(program.work) / (ctx.machine().fma_per_us as usize).max(1);
        let threads = imagined.map_or_else(|| ctx.par().threads_for(useful), |threads| threads.min(useful));
        let (isa, blocking, machine) = (ctx.isa(), ctx.blocking(), ctx.machine());
        let statistics = statistics && program.statistics.0 > 0;
        Self { n, rows, threads, isa, blocking, machine, option, skip, statistics }
    }

    /// How the call is shared out, and how long that would take.
    fn shares(&self, ctx: &Context, program: &Program, pass: Pass) -> (Shares, f64) {
        let cost = Cost { machine: &self.machine, program, tiles: tile_sizes(self.isa), n: self.n };
        cost.best(pass, self.threads, self.rows, ctx.blocking().most_rows(program.widest))
    }

    fn overflow(self, program: &Program) -> Error {
        Error::Overflow { operand: "batch", rows: self.n, cols: program.widest, strides: (1, 1) }
    }
}
