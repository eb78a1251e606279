//! Lowering: steps of values become steps of places, once for a plan.
//!
//! While a step runs, what it writes is cut out of the two pieces of memory of a row block, and what it reads lies in the pieces that
//! are left. Which piece that is, and where in it, is the same for every row block; so it is worked out here, and a call only cuts.

use super::memory::{Home, Memory};
use super::step::{BatchStep, Step, Use, Val};
use super::{Program, wide};
use std::iter;

/// One of the two pieces of memory of a row block, or the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Region {
    Record,
    Local,
    /// Vectors of parameters, by number.
    Parameters,
    /// Statistics of the batch.
    Statistics,
}

/// The operand of a step, resolved. Distances are in floats a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand {
    /// None: with the caller.
    pub(crate) region: Option<Region>,
    /// Written, or read by the step that writes it: which of the places that are cut out of the region. Read: which of the pieces that are
    /// left.
    pub(crate) piece: u8,
    /// Whether it is read by the step that writes it.
    pub(crate) own: bool,
    /// Whether the place has room for a chunk of the columns alone.
    pub(crate) chunk: bool,
    /// Where it starts in the piece, or among the statistics; the number of a vector.
    pub(crate) at: usize,
    /// Columns of the value.
    pub(crate) cols: usize,
}

impl Operand {
    /// Whether this is the same value, one of the two being written, and the other read, by one step.
    pub(crate) fn is(&self, other: Operand) -> bool {
        (self.region, self.piece) == (other.region, other.piece)
    }
}

/// Most places that a step writes.
pub(crate) const MOST_WRITES: usize = crate::team::pieces::MOST_PLACES;

/// What a step writes in one region, in order: start and width of each place.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cuts {
    places: [(usize, usize); MOST_WRITES],
    count: usize,
}

impl Cuts {
    fn add(&mut self, start: usize, width: usize) {
        let at = self.as_slice().iter().position(|&place| place > (start, width)).unwrap_or(self.count);
        self.places[at..=self.count].rotate_right(1);
        self.places[at] = (start, width);
        self.count += 1;
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[(usize, usize)] {
        &self.places[..self.count]
    }

    /// Which of the places this is, if it is one.
    fn place(&self, start: usize, width: usize) -> Option<usize> {
        self.as_slice().iter().position(|&place| place == (start, width))
    }

    /// The piece between the places in which `at` lies, and where it starts.
    fn piece(&self, at: usize) -> (usize, usize) {
        let before = self.as_slice().iter().take_while(|&&(start, width)| start + width <= at);
        before.fold((0, 0), |(count, _), &(start, width)| (count + 1, start + width))
    }
}

/// A step of places, and what it cuts out of the record and of local memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lowered {
    pub(crate) step: Step<Operand>,
    pub(crate) record: Cuts,
    pub(crate) local: Cuts,
}

/// Statistics of the batch that are taken once all rows have been through the lowered steps before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Barrier {
    /// The number of the next lowered step.
    pub(crate) before: usize,
    pub(crate) what: BatchStep<Val>,
}

/// How steps are lowered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lowering<'a> {
    pub(crate) program: &'a Program,
    pub(crate) memory: &'a Memory,
    /// Columns of a chunk; None where threads share the columns of each GEMM, which then go one after the other.
    pub(crate) chunk: Option<usize>,
}

impl Lowering<'_> {
    /// Lowers some steps. What has nothing to do is left out: its result is not wanted, or the caller does not give what it loads.
    pub(crate) fn steps(&self, steps: &[Step<Val>], lowered: &mut Vec<Lowered>, barriers: &mut Vec<Barrier>) {
        for step in steps {
            match (*step, self.chunk) {
                (Step::Batch(what), _) => {
                    let (BatchStep::Moments { mean, .. } | BatchStep::Slopes { mean, .. }) = what;
                    if let Home::Statistic(_) = self.memory.home(mean) {
                        barriers.push(Barrier { before: lowered.len(), what });
                    }
                }
                (Step::Chunks { first, second, last }, None) => {
                    let gemms = iter::once(first).chain(second).chain(last);
                    lowered.extend(gemms.filter_map(|g| self.step(&Step::Gemm(g))));
                }
                _ => lowered.extend(self.step(step)),
            }
        }
    }

    fn step(&self, step: &Step<Val>) -> Option<Lowered> {
        let Self { program, memory, chunk } = *self;
        // The region of a value, where it starts there, and the columns of its place.
        let home = |val: Val| {
            let cols = program.value(val).cols;
            match memory.home(val) {
                Home::None => None,
                Home::Caller => Some((None, 0, cols)),
                Home::Parameter(number) => Some((Some(Region::Parameters), number, cols)),
                Home::Statistic(at) => Some((Some(Region::Statistics), at, cols)),
                Home::Record(at) => Some((Some(Region::Record), at, cols)),
                Home::Local(at) => Some((Some(Region::Local), at, cols)),
                Home::Chunk(at) => Some((Some(Region::Local), at, cols.min(chunk.unwrap_or(cols)))),
            }
        };
        let (mut record, mut local) = (Cuts::default(), Cuts::default());
        step.operands(|val, of| match (home(val), of) {
            (Some((Some(Region::Record), at, span)), Use::Write) => record.add(at, wide(span)),
            (Some((Some(Region::Local), at, span)), Use::Write) => local.add(at, wide(span)),
            _ => {}
        });
        let step = step.map(|val, of| {
            let (region, at, span) = home(val)?;
            let cuts = if region == Some(Region::Record) { &record } else { &local };
            let line = matches!(region, Some(Region::Parameters | Region::Statistics));
            let own = if line { None } else { cuts.place(at, wide(span)) };
            let (piece, start) = match own {
                _ if line => (0, 0),
                Some(place) => (place, at),
                None => cuts.piece(at),
            };
            let cols = program.value(val).cols;
            let own = own.is_some() && of == Use::Read;
            Some(Operand { region, piece: piece as u8, own, chunk: span < cols, at: at - start, cols })
        })?;
        Some(Lowered { step, record, local })
    }
}
