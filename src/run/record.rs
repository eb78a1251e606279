//! Records: what a forward pass leaves for backward, in memory of ours or of the caller's.
//!
//! Two lines of 16 floats say what follows: rows of the batch, rows of a block, a fingerprint of the program, what masks were drawn from, and whether
//! statistics were frozen; then the statistics of the batch; then, for each block of rows, the values that some adjoint reads, each in panels
//! (`Value::kept`). The length depends on program and batch alone. Numbers are cut into pieces of 16 bits, each a small whole number that survives
//! whatever a host does to floats on their way.
//!
//! A record comes back from the caller, who may have changed it: whatever the head says is checked before it is used, and what follows
//! are only numbers.

use crate::error::{Error, expect_len};
use crate::gemm::buffers::Buffer;
use crate::gemm::panels::{PANEL, panel_len};
use crate::program::Program;
use crate::random::Draw;

/// Floats of the head: whole lines, so that what follows is aligned as the record is.
const HEAD: usize = 2 * PANEL;
/// Floats of a number in the head.
const DIGITS: usize = 4;

/// Floats of the record of `n` rows of `cols` columns.
pub(crate) fn record_len(program: &Program, n: usize, cols: usize) -> Result<usize, Error> {
    let overflow = || Error::Overflow { operand: "batch", rows: n, cols, strides: (1, 1) };
    let body = panel_len("batch", n, program.record_width.ok_or_else(overflow)?)?;
    body.checked_add(HEAD).and_then(|len| len.checked_add(program.statistics.0)).ok_or_else(overflow)
}

/// A record that is to be written: head, statistics and values.
#[derive(Default)]
pub(crate) struct PartsMut<'r> {
    pub(crate) head: &'r mut [f32],
    pub(crate) statistics: &'r mut [f32],
    pub(crate) values: &'r mut [f32],
}

/// Splits a record that is to be written.
pub(crate) fn parts_mut<'r>(record: &'r mut [f32], program: &Program) -> PartsMut<'r> {
    let (head, rest) = record.split_at_mut(HEAD);
    let (statistics, values) = rest.split_at_mut(program.statistics.0);
    PartsMut { head, statistics, values }
}

/// Writes the head.
pub(crate) fn seal(
    head: &mut [f32],
    program: &Program,
    (n, block_rows): (usize, usize),
    draw: Option<Draw>,
    frozen: bool,
) {
    let Draw { seed, step, first_row } = draw.unwrap_or_default();
    let (drawn, frozen) = (u64::from(draw.is_some()), u64::from(frozen));
    let numbers = [n as u64, block_rows as u64, program.fingerprint, drawn, seed, u64::from(step), first_row, frozen];
    for (digits, number) in head.chunks_exact_mut(DIGITS).zip(numbers) {
        for (i, digit) in digits.iter_mut().enumerate() {
            *digit = f32::from((number >> (16 * i)) as u16);
        }
    }
}

/// A record that a forward pass left.
#[derive(Clone, Copy)]
pub(crate) struct Opened<'r> {
    /// Rows of a block.
    pub(crate) block_rows: usize,
    /// What masks were drawn from.
    pub(crate) draw: Option<Draw>,
    /// The statistics of the batch; None if they were frozen.
    pub(crate) statistics: Option<&'r [f32]>,
    pub(crate) values: &'r [f32],
}

/// Number `at` of a head.
fn number(head: &[f32], at: usize) -> u64 {
    let digits = head[at * DIGITS..][..DIGITS].iter().rev();
    digits.fold(0u64, |number, &digit| number << 16 | u64::from(digit as u16))
}

/// Rows of the batch of a record that this program left, as far as its head tells.
pub(crate) fn rows(record: &[f32], program: &Program) -> Result<usize, Error> {
    if record.len() < HEAD || number(record, 2) != program.fingerprint {
        return Err(Error::Record { reason: "it is not one that a forward pass of this network left" });
    }
    Ok(usize::try_from(number(record, 0)).unwrap_or(usize::MAX))
}

/// Reads a record of `n` rows.
pub(crate) fn open<'r>(record: &'r [f32], program: &Program, n: usize, cols: usize) -> Result<Opened<'r>, Error> {
    expect_len("record", record_len(program, n, cols)?, record.len())?;
    let found = rows(record, program)?;
    let (head, rest) = record.split_at(HEAD);
    let (statistics, values) = rest.split_at(program.statistics.0);
    let number = |at| number(head, at);
    let block_rows = usize::try_from(number(1)).unwrap_or(0);
    if found != n || block_rows == 0 {
        return Err(Error::Record { reason: "it is of a batch with another number of rows" });
    }
    let draw = Draw { seed: number(4), step: number(5) as u32, first_row: number(6) };
    Ok(Opened {
        block_rows,
        draw: (number(3) == 1).then_some(draw),
        statistics: (number(7) == 0 && !statistics.is_empty()).then_some(statistics),
        values,
    })
}

/// What a forward pass leaves for its backward: memory that is used again by every forward pass that it is given to.
///
/// Any number of records may be alive, on any thread; backward reads one and can do so again. It is `4 n w` bytes and two lines of 64, where
/// w is what a network keeps for each row, whatever the threads and block sizes were ([`crate::Layer::record_len`]); and the statistics of a BatchNorm.
#[derive(Debug, Clone, Default)]
pub struct Record {
    buffer: Buffer,
    len: usize,
}

impl Record {
    /// An empty record: no pass has left anything in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// The record as backward takes it.
    pub fn as_slice(&self) -> &[f32] {
        &self.buffer.as_slice()[..self.len]
    }

    /// Room for `len` floats.
    pub(crate) fn room(&mut self, len: usize) -> Result<&mut [f32], Error> {
        self.len = 0;
        self.buffer.grow(len)?;
        self.len = len;
        Ok(&mut self.buffer.as_mut_slice()[..len])
    }

    /// Forgets what is in it: no pass has left anything.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }
}
