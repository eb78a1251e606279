//! Where values live. One planner for every program, forward and backward: from when each value is first written and last used.
//!
//! A row block has two pieces of memory: its part of the *record*, which a training forward leaves for backward, and *local* memory,
//! of the thread in forward, of the slab in backward, where the sums over the batch find it afterwards. Offsets are in floats a row, so
//! that a plan serves any number of rows; a value of width w at offset o takes floats o · rows .. (o + w) · rows.
//!
//! Time goes by *moments*: the steps of a forward pass, the groups of parts of a backward pass (whose sums over the batch come last in
//! the group). Values whose moments do not meet may share a place. They are taken in the order of their first moments, so one pass is
//! enough: each takes the lowest gap that is free from its first moment on.

use super::step::{Grad, Port, Step, Val};
use super::{Part, Program, Value};
use crate::error::Error;
use crate::gemm::buffers::room;
use std::iter;
use std::ops::Range;

/// Where a value lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// Nowhere: nobody reads it, the caller does not give it or does not want it. A step whose result has no home is left out.
    None,
    /// With the caller.
    Caller,
    /// A vector of parameters, by its number.
    Parameter(usize),
    /// Among the statistics of the batch, from so many floats on.
    Statistic(usize),
    /// On the record of the row block, from so many floats a row on.
    Record(usize),
    /// In local memory.
    Local(usize),
    /// In local memory, some of its columns at a time: nothing but the step that writes it reads it.
    Chunk(usize),
}

/// The homes of a program's values in one kind of call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    homes: Vec<Home>,
    /// Whether statistics of the batch are taken.
    statistics: bool,
    /// Floats of local memory for each row.
    pub(crate) local_width: usize,
    // Kept so that planning again takes no new memory:
    lives: Vec<Life>,
    order: Vec<Val>,
    placed: Vec<Taken>,
}

/// From the moment when a value is first written to that of its last use.
#[derive(Debug, Clone, Copy)]
struct Life {
    first: usize,
    last: usize,
    /// Whether anything needs it.
    wanted: bool,
}

impl Life {
    /// Lives at this moment.
    fn at(&mut self, moment: usize) {
        (self.first, self.last) = (self.first.min(moment), self.last.max(moment));
    }
}

/// A piece of local memory in use.
#[derive(Debug, Clone, Copy)]
struct Taken {
    start: usize,
    end: usize,
    /// The last moment of its value.
    last: usize,
}

/// What a forward pass is to leave and has been given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForwardUse {
    /// Whether the values that backward reads are kept.
    pub(crate) record: bool,
    /// Whether the caller gives an addend.
    pub(crate) skip: bool,
    /// Columns of a chunk; all of them where threads share columns.
    pub(crate) chunk: usize,
    /// Whether statistics are those of the batch.
    pub(crate) statistics: bool,
}

impl Memory {
    #[inline]
    pub(crate) fn home(&self, val: Val) -> Home {
        self.homes[val.index()]
    }

    /// Plans a forward pass, after `begin`. None if a size overflows.
    pub(crate) fn forward(&mut self, program: &Program, calls_for: ForwardUse) -> Option<()> {
        let ForwardUse { record, skip, chunk, statistics } = calls_for;
        self.statistics = statistics;
        let steps = || program.parts.iter().flat_map(|part| &part.forward);
        // What is wanted: the result, what backward reads, and what a step reads that computes something wanted.
        self.lives[program.y.index()].wanted = true;
        for (val, value) in program.vals() {
            self.lives[val.index()].wanted |= record && value.kept.is_some();
        }
        program.parts.iter().rev().flat_map(|part| part.forward.iter().rev()).for_each(|step| self.want(step));
        for (moment, step) in steps().enumerate() {
            self.live(step, moment);
        }
        for (val, value) in program.vals() {
            self.homes[val.index()] = match (value.kept, self.line(value, self.lives[val.index()].wanted)) {
                (_, Some(line)) => line,
                _ if val == program.y => Home::Caller,
                (Some(at), _) if record => Home::Record(at),
                _ if self.lives[val.index()].wanted => Home::Local(0),
                _ => Home::None,
            };
        }
        for step in steps() {
            match *step {
                Step::Load { port: Port::Skip, out } if !skip => self.homes[out.index()] = Home::None,
                Step::Chunks { first, second, .. } => {
                    for g in iter::once(first).chain(second) {
                        let written = iter::once(g.out).chain(g.aux.map(|aux| aux.to));
                        written.for_each(|val| self.by_chunks(program, val, chunk));
                    }
                }
                _ => {}
            }
        }
        self.place(program, chunk)
    }

    /// Gives a value that is used in one step alone, which goes by chunks, room for a chunk.
    fn by_chunks(&mut self, program: &Program, val: Val, chunk: usize) {
        let Life { first, last, .. } = self.lives[val.index()];
        if self.home(val) == Home::Local(0) && first == last && chunk < program.value(val).width() {
            self.homes[val.index()] = Home::Chunk(0);
        }
    }

    /// Where a value is that has a line for all rows, if it is one.
    fn line(&self, value: &Value, wanted: bool) -> Option<Home> {
        match (value.statistic, value.vector) {
            (Some(at), _) if self.statistics && wanted => Some(Home::Statistic(at)),
            (Some(_), _) if self.statistics => Some(Home::None),
            (_, Some(number)) => Some(Home::Parameter(number)),
            (Some(_), None) => Some(Home::None),
            (None, None) => None,
        }
    }

    /// Plans a backward pass whose parts are taken in `groups`, from the last one down, after `begin`. None if a size overflows.
    pub(crate) fn backward(
        &mut self,
        program: &Program,
        groups: impl Iterator<Item = Range<usize>>,
        (dx_wanted, statistics): (bool, bool),
    ) -> Option<()> {
        self.statistics = statistics;
        self.lives[program.dx.index()].wanted = dx_wanted;
        for Part { again, backward, grads, .. } in &program.parts {
            grads.iter().flat_map(Grad::reads).for_each(|val| self.lives[val.index()].wanted = true);
            again.iter().chain(backward).rev().for_each(|step| self.want(step));
        }
        for (moment, group) in groups.enumerate() {
            for Part { again, backward, grads, .. } in program.parts[group].iter().rev() {
                again.iter().chain(backward).for_each(|step| self.live(step, moment));
                grads.iter().flat_map(Grad::reads).for_each(|val| self.lives[val.index()].at(moment));
            }
        }
        for (val, value) in program.vals() {
            self.homes[val.index()] = match (value.kept, self.line(value, self.lives[val.index()].wanted)) {
                (_, Some(line)) => line,
                (Some(at), _) => Home::Record(at),
                _ if !self.lives[val.index()].wanted => Home::None,
                _ if val == program.dx => Home::Caller,
                _ => Home::Local(0),
            };
        }
        self.place(program, usize::MAX)
    }

    /// Makes room for the homes of a program's values, none of which has one yet.
    pub(crate) fn begin(&mut self, program: &Program) -> Result<(), Error> {
        let count = program.values.len();
        room(&mut self.homes, count)?;
        room(&mut self.lives, count)?;
        room(&mut self.placed, count)?;
        room(&mut self.order, count)?;
        self.homes.resize(count, Home::None);
        self.lives.resize(count, Life { first: usize::MAX, last: 0, wanted: false });
        self.local_width = 0;
        Ok(())
    }

    /// The step without what is not wanted of it; None if that is all of it.
    fn wanted(&self, step: &Step<Val>) -> Option<Step<Val>> {
        if matches!(step, Step::Batch(_)) && !self.statistics {
            return None;
        }
        step.needed(|val| self.lives[val.index()].wanted)
    }

    /// Wants what a step reads, if something is wanted of it. To be asked of later steps first.
    fn want(&mut self, step: &Step<Val>) {
        step.each_gemm(|step| {
            if let Some(step) = self.wanted(step) {
                step.operands(|val, _| self.lives[val.index()].wanted = true);
            }
        });
    }

    fn live(&mut self, step: &Step<Val>, moment: usize) {
        if let Some(step) = self.wanted(step) {
            step.operands(|val, _| self.lives[val.index()].at(moment));
        }
    }

    /// Gives each value that is to be in local memory the lowest gap that is free as long as it lives.
    fn place(&mut self, program: &Program, chunk: usize) -> Option<()> {
        self.order.extend(program.vals().map(|(val, _)| val));
        let lives = &self.lives;
        self.order.sort_unstable_by_key(|val| (lives[val.index()].first, val.index()));
        for &val in &self.order {
            let whole = program.value(val).width();
            let width = match self.homes[val.index()] {
                Home::Local(_) => whole,
                Home::Chunk(_) => whole.min(chunk),
                _ => continue,
            };
            let Life { first, last, .. } = self.lives[val.index()];
            self.placed.retain(|place| place.last >= first);
            let (mut start, mut index) = (0usize, 0);
            while let Some(place) = self.placed.get(index)
                && place.start < start.checked_add(width)?
            {
                start = place.end;
                index += 1;
            }
            let end = start.checked_add(width)?;
            self.placed.insert(index, Taken { start, end, last });
            self.local_width = self.local_width.max(end);
            let home = &mut self.homes[val.index()];
            *home = if let Home::Chunk(_) = home { Home::Chunk(start) } else { Home::Local(start) };
        }
        Some(())
    }
}
