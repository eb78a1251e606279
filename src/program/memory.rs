//! Where values live. One planner for every program, forward and backward: from when each value is first written and last used.
//!
//! A row block has two pieces of memory: its part of the *record*, which a training forward leaves for backward, and *local* memory,
//! of the thread in forward, of the slab in backward, where the sums over the batch find it afterwards. Offsets are in floats a row, so
//! that a plan serves any number of rows; a value of width w at offset o takes floats o · rows .. (o + w) · rows.
//!
//! Time goes by *moments*: the steps of a forward pass, the groups of parts of a backward pass (whose sums over the batch come last in
//! the group). Values whose moments do not meet may share a place. Values are numbered in the order in which they are first written,
//! so one pass over them is enough: each takes the lowest gap that is free from its first moment on.

use super::{Part, Port, Program, Step, Use, Val};
use crate::error::Error;
use crate::gemm::buffers::room;
use std::ops::Range;

/// Where a value lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// Nowhere: nobody reads it, the caller does not give it or does not want it. A step whose result has no home is left out.
    None,
    /// With the caller.
    Caller,
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
    /// Floats of local memory for each row.
    pub(crate) local_width: usize,
    // Kept so that planning again takes no new memory:
    lives: Vec<Life>,
    placed: Vec<Taken>,
}

/// From the moment when a value is first written to that of its last use.
#[derive(Debug, Clone, Copy)]
struct Life {
    first: usize,
    last: usize,
    /// Whether anything reads it.
    read: bool,
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
}

impl Memory {
    #[inline]
    pub(crate) fn home(&self, val: Val) -> Home {
        self.homes[val.0]
    }

    /// Plans a forward pass, after `begin`. None if a size overflows.
    pub(crate) fn forward(&mut self, program: &Program, calls_for: ForwardUse) -> Option<()> {
        let ForwardUse { record, skip, chunk } = calls_for;
        let steps = || program.parts.iter().flat_map(|part| &part.forward);
        for (moment, step) in steps().enumerate() {
            step.operands(|val, of| self.live(val, moment, of));
        }
        for (val, value) in program.vals() {
            self.homes[val.0] = match (value.kept, self.lives[val.0].read) {
                _ if val == program.y => Home::Caller,
                (Some(at), _) if record => Home::Record(at),
                (_, false) => Home::None,
                (_, true) => Home::Local(0),
            };
        }
        for step in steps() {
            match *step {
                Step::Load { port: Port::Skip, out } if !skip => self.homes[out.0] = Home::None,
                Step::Chunks { first, .. } if self.home(first.out) == Home::Local(0) => {
                    let Life { first: from, last: to, .. } = self.lives[first.out.0];
                    if from == to && chunk < program.value(first.out).width() {
                        self.homes[first.out.0] = Home::Chunk(0);
                    }
                }
                _ => {}
            }
        }
        self.place(program, chunk)
    }

    /// Plans a backward pass whose parts are taken in `groups`, from the last one down, after `begin`. None if a size overflows.
    pub(crate) fn backward(
        &mut self,
        program: &Program,
        groups: impl Iterator<Item = Range<usize>>,
        dx_wanted: bool,
    ) -> Option<()> {
        for (moment, group) in groups.enumerate() {
            for Part { backward, grads, .. } in program.parts[group].iter().rev() {
                backward.iter().for_each(|step| step.operands(|val, of| self.live(val, moment, of)));
                grads.iter().for_each(|g| [g.a, g.b].iter().for_each(|&val| self.live(val, moment, Use::Read)));
            }
        }
        for (val, value) in program.vals() {
            self.homes[val.0] = match value.kept {
                Some(at) => Home::Record(at),
                None if val == program.dx => {
                    if dx_wanted {
                        Home::Caller
                    } else {
                        Home::None
                    }
                }
                None if self.lives[val.0].read => Home::Local(0),
                None => Home::None,
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
        self.homes.resize(count, Home::None);
        self.lives.resize(count, Life { first: usize::MAX, last: 0, read: false });
        self.local_width = 0;
        Ok(())
    }

    fn live(&mut self, val: Val, moment: usize, of: Use) {
        let life = &mut self.lives[val.0];
        (life.first, life.last) = (life.first.min(moment), life.last.max(moment));
        life.read |= of == Use::Read;
    }

    /// Gives each value that is to be in local memory the lowest gap that is free as long as it lives.
    fn place(&mut self, program: &Program, chunk: usize) -> Option<()> {
        for (val, value) in program.vals() {
            let width = match self.home(val) {
                Home::Local(_) => value.width(),
                Home::Chunk(_) => value.width().min(chunk),
                _ => continue,
            };
            let Life { first, last, .. } = self.lives[val.0];
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
            let home = &mut self.homes[val.0];
            *home = if let Home::Chunk(_) = home { Home::Chunk(start) } else { Home::Local(start) };
        }
        Some(())
    }
}
