//! Pieces: work cut so that it can be handed out in any order, on any thread, and no two pieces meet.
//!
//! What a piece writes is cut here, from a borrow of all of it, by arithmetic that cannot overlap. All else of a piece is made of
//! these by [`Pieces::beside`] and [`Pieces::map`], in safe code.

use crate::error::Error;
use crate::gemm::buffers::room;
use crate::gemm::cells::Out;
use crate::gemm::panels::PANEL;
use std::marker::PhantomData;
use std::ops::Range;

/// Work in pieces, by number.
///
/// # Safety
/// Items of different numbers may be used at the same time by different threads.
pub(crate) unsafe trait Pieces: Sync {
    type Item;

    /// Piece number `index`; past the last one, an empty one.
    ///
    /// # Safety
    /// An item is gone before one of the same number is asked for again, as are all before what they were cut from is used.
    unsafe fn piece(&self, index: usize) -> Self::Item;

    /// The same pieces of two things.
    fn beside<P: Pieces>(self, other: P) -> Beside<Self, P>
    where
        Self: Sized,
    {
        Beside(self, other)
    }

    /// What `f` makes of each piece and its number.
    fn map<R, F: Fn(usize, Self::Item) -> R + Sync>(self, f: F) -> Map<Self, F>
    where
        Self: Sized,
    {
        Map(self, f)
    }
}

pub(crate) struct Beside<A, B>(A, B);

// SAFETY: items are pairs of items.
unsafe impl<A: Pieces, B: Pieces> Pieces for Beside<A, B> {
    type Item = (A::Item, B::Item);
    #[inline(always)]
    unsafe fn piece(&self, index: usize) -> Self::Item {
        // SAFETY: what the caller promises of pairs holds for both of them.
        unsafe { (self.0.piece(index), self.1.piece(index)) }
    }
}

pub(crate) struct Map<P, F>(P, F);

// SAFETY: an item is made of one of P's, and of what F shares with all threads, being `Sync`.
unsafe impl<P: Pieces, R, F: Fn(usize, P::Item) -> R + Sync> Pieces for Map<P, F> {
    type Item = R;
    #[inline(always)]
    unsafe fn piece(&self, index: usize) -> R {
        // SAFETY: as the caller promises.
        (self.1)(index, unsafe { self.0.piece(index) })
    }
}

// SAFETY: as P, or nothing.
unsafe impl<P: Pieces> Pieces for Option<P> {
    type Item = Option<P::Item>;
    #[inline(always)]
    unsafe fn piece(&self, index: usize) -> Self::Item {
        // SAFETY: as the caller promises.
        self.as_ref().map(|pieces| unsafe { pieces.piece(index) })
    }
}

/// The numbers themselves.
pub(crate) struct Numbers;

// SAFETY: numbers share nothing.
unsafe impl Pieces for Numbers {
    type Item = usize;
    #[inline(always)]
    unsafe fn piece(&self, index: usize) -> usize {
        index
    }
}

/// A slice to write, in chunks of one size; the last may be shorter.
pub(crate) struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    size: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: as the slice to write that it stands for.
unsafe impl<T: Send> Send for Chunks<'_, T> {}
// SAFETY: a chunk goes to one thread, as a part of a slice to write may.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    pub(crate) fn new(slice: &'a mut [T], size: usize) -> Self {
        Self { len: slice.len(), start: slice.as_mut_ptr(), size, borrow: PhantomData }
    }
}

// SAFETY: chunk i is elements i * size .. (i + 1) * size, cut at the end: no two have one in common.
unsafe impl<'a, T: Send> Pieces for Chunks<'a, T> {
    type Item = &'a mut [T];
    #[inline(always)]
    unsafe fn piece(&self, index: usize) -> &'a mut [T] {
        let start = index.saturating_mul(self.size).min(self.len);
        let end = start.saturating_add(self.size).min(self.len);
        // SAFETY: inside of the slice that is borrowed for 'a; nobody else has these elements, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), end - start) }
    }
}

/// How a matrix is cut: row blocks, each in so many pieces of its panels. Pieces are numbered along the panels first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Blocks, one below the other, and rows of each.
    pub(crate) down: usize,
    pub(crate) rows: usize,
    /// Panels of a piece, and pieces side by side.
    pub(crate) panels: usize,
    pub(crate) across: usize,
}

impl Grid {
    /// Blocks of whole rows.
    pub(crate) fn of_rows(down: usize, rows: usize) -> Self {
        Self { down, rows, across: 1, panels: 0 }
    }

    /// How many pieces.
    pub(crate) fn pieces(&self) -> usize {
        self.down * self.across
    }

    /// Row block and panels of a piece.
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> (usize, Range<usize>) {
        if self.across == 1 {
            return (index, 0..usize::MAX / PANEL); // without two divisions, where a piece may be a hundred nanoseconds
        }
        let (block, column) = (index / self.across, index % self.across);
        let first = column * self.panels;
        // The last has what is left, so that any number of panels is covered.
        (block, first..if column + 1 == self.across { usize::MAX / PANEL } else { first + self.panels })
    }
}

/// Cells to write, in rectangles.
pub(crate) struct Rectangles<'a> {
    cells: Out<'a>,
    grid: Grid,
}

impl<'a> Rectangles<'a> {
    pub(crate) fn new(cells: Out<'a>, grid: Grid) -> Self {
        Self { cells, grid }
    }
}

// SAFETY: a rectangle goes to one thread, and `Out` may be sent; `cells` itself is not used.
unsafe impl Sync for Rectangles<'_> {}

// SAFETY: pieces of a grid have no cell in common: they differ in their rows or in their panels.
unsafe impl<'a> Pieces for Rectangles<'a> {
    type Item = Out<'a>;
    #[inline(always)]
    unsafe fn piece(&self, index: usize) -> Out<'a> {
        let (block, panels) = self.grid.at(index);
        let first = block.saturating_mul(self.grid.rows);
        // SAFETY: different pieces have no cell in common, and the caller asks for none twice.
        unsafe { self.cells.rectangle(first..first.saturating_add(self.grid.rows), panels) }
    }
}

/// Most places that a piece of memory is written in, by one phase.
pub(crate) const MOST_PLACES: usize = 4;

/// A piece of memory while a step runs: the places that it writes, cut out, and what is left between them, to be read.
pub(crate) struct Cut<'m> {
    pub(crate) places: [&'m mut [f32]; MOST_PLACES],
    pub(crate) left: [&'m [f32]; MOST_PLACES + 1],
}

impl<'m> Cut<'m> {
    /// The memory of `rows` rows, with places of (start, width) floats a row: in order, and apart.
    #[inline]
    pub(crate) fn of(memory: &'m mut [f32], places: &[(usize, usize)], rows: usize) -> Self {
        let mut cut = Self { places: Default::default(), left: [&[]; MOST_PLACES + 1] };
        let (mut rest, mut at, mut count) = (memory, 0, 0);
        for &(start, width) in places {
            let (left, from) = rest.split_at_mut((start - at) * rows);
            let (place, after) = from.split_at_mut(width * rows);
            (cut.places[count], cut.left[count]) = (place, left);
            (rest, at, count) = (after, start + width, count + 1);
        }
        cut.left[count] = rest;
        cut
    }

    /// Memory that nothing is written in.
    #[inline]
    pub(crate) fn read(memory: &'m [f32]) -> Self {
        let mut cut = Self { places: Default::default(), left: [&[]; MOST_PLACES + 1] };
        cut.left[0] = memory;
        cut
    }
}

/// The memory of all row blocks while a step runs whose columns are shared: a piece has its panels of each place of its row block, and
/// what is left of the block it has in common with those beside it.
pub(crate) struct Columns<'a> {
    start: *mut f32,
    /// Floats, and floats a row.
    len: usize,
    width: usize,
    places: &'a [(usize, usize)],
    grid: Grid,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a part of a place goes to one thread, as a part of a slice to write may; what is left is shared, and nobody writes it.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    /// Of blocks of `grid.rows` rows, the last of which may have fewer, with places of (start, width) floats a row, in panels.
    pub(crate) fn new(memory: &'a mut [f32], width: usize, places: &'a [(usize, usize)], grid: Grid) -> Self {
        let after = |end: usize, &(start, width): &(usize, usize)| start.checked_add(width).filter(|_| end <= start);
        let ends = places.iter().try_fold(0, after);
        assert!(places.len() <= MOST_PLACES && ends.is_some_and(|end| end <= width), "places apart, inside of a row");
        Self { len: memory.len(), start: memory.as_mut_ptr(), width, places, grid, borrow: PhantomData }
    }
}

// SAFETY: blocks are chunks of the memory. Inside of a block, `new` has seen that places are apart; a place is cut by panels, which
// pieces of a block differ in; and what lies between places is handed out to be read alone.
unsafe impl<'a> Pieces for Columns<'a> {
    type Item = Cut<'a>;
    #[inline]
    unsafe fn piece(&self, index: usize) -> Cut<'a> {
        let (block, panels) = self.grid.at(index);
        let size = self.grid.rows.saturating_mul(self.width);
        let first = block.saturating_mul(size).min(self.len);
        let rows = (self.len - first).min(size).checked_div(self.width).unwrap_or(0);
        let block = self.start.wrapping_add(first);
        let mut cut = Cut { places: Default::default(), left: [&[]; MOST_PLACES + 1] };
        let (mut at, mut count) = (0, 0);
        for &(start, width) in self.places {
            let (from, to) = ((panels.start * PANEL).min(width), panels.end.saturating_mul(PANEL).min(width));
            // SAFETY: both lie inside of the block, of `rows` rows of `self.width` floats, and so of the memory borrowed for 'a: start +
            // width <= self.width. Nobody else has these panels of the place, as the caller promises, and nobody writes what is left.
            unsafe {
                cut.left[count] = std::slice::from_raw_parts(block.add(at * rows), (start - at) * rows);
                cut.places[count] =
                    std::slice::from_raw_parts_mut(block.add((start + from) * rows), (to - from) * rows);
            }
            (at, count) = (start + width, count + 1);
        }
        // SAFETY: as above.
        cut.left[count] = unsafe { std::slice::from_raw_parts(block.add(at * rows), (self.width - at) * rows) };
        cut
    }
}

/// An empty list of another type in the memory of this one, where both are of one size: so that lists of what a call borrows need no new
/// memory in each call.
pub(crate) fn reuse<A, B>(mut list: Vec<A>) -> Vec<B> {
    list.clear();
    // The standard library collects in place what is mapped from a list; tests/alloc.rs would see if it no longer did.
    list.into_iter().map(|_| -> B { unreachable!("the list is empty") }).collect()
}

/// A matrix to write. `swapped`: it is the transpose of what a grid cuts.
pub(crate) struct Target<'a> {
    pub(crate) cells: Out<'a>,
    pub(crate) swapped: bool,
}

/// One of the matrices that a phase writes, and how it is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<T> {
    /// Its number.
    pub(crate) target: usize,
    pub(crate) grid: Grid,
    /// Pieces of all parts before this one.
    pub(crate) before: usize,
    /// What is done with it.
    pub(crate) what: T,
}

/// Pieces of several matrices.
pub(crate) struct Parts<'l, T> {
    targets: &'l [Option<Target<'l>>],
    parts: &'l [Part<T>],
}

/// A piece of one of them.
pub(crate) struct PartPiece<'l, T> {
    pub(crate) what: &'l T,
    /// Rows and panels as the grid cuts them.
    pub(crate) rows: Range<usize>,
    pub(crate) panels: Range<usize>,
    pub(crate) target: Target<'l>,
}

impl<'l, T> Parts<'l, T> {
    /// The pieces of some matrices, whose numbers fall.
    pub(crate) fn new(targets: &'l mut [Option<Target<'_>>], parts: &'l [Part<T>]) -> Self {
        assert!(parts.is_sorted_by(|a, b| a.target > b.target), "no matrix twice");
        assert!(parts.iter().all(|part| part.grid.rows.is_multiple_of(PANEL)), "rows cut by panels, as a transpose is");
        Self { targets, parts }
    }
}

// SAFETY: parts are of different matrices, as `Parts::new` has seen, and the pieces of one are those of a grid; so are those of a
// transpose, whose panels are the grid's rows, by 16, and whose rows are its panels.
unsafe impl<'l, T: Sync> Pieces for Parts<'l, T> {
    type Item = Option<PartPiece<'l, T>>;
    unsafe fn piece(&self, index: usize) -> Self::Item {
        let at = self.parts.partition_point(|part| part.before <= index).checked_sub(1)?;
        let Part { target, grid, before, what } = self.parts.get(at)?;
        let Target { cells, swapped } = self.targets.get(*target)?.as_ref()?;
        let (block, panels) = grid.at(index - before);
        let first = block.saturating_mul(grid.rows);
        let rows = first..first.saturating_add(grid.rows);
        let (down, across) = if *swapped {
            (panels.start * PANEL..panels.end * PANEL, rows.start / PANEL..rows.end.div_ceil(PANEL))
        } else {
            (rows.clone(), panels.clone())
        };
        // SAFETY: as above; the caller asks for no piece twice.
        let cells = unsafe { cells.rectangle(down, across) };
        Some(PartPiece { what, rows, panels, target: Target { cells, swapped: *swapped } })
    }
}

/// Most slices of a strip that are written.
const MOST_SLICES: usize = 3;

/// Slices of one length that are worked on element by element, some of them written. What is not there is empty.
pub(crate) struct Strip<'a, T> {
    write: [Chunks<'a, f32>; MOST_SLICES],
    read: &'a [f32],
    /// Pieces of all strips before this one.
    before: usize,
    what: T,
}

/// Strips, one after the other, in pieces of so many elements.
pub(crate) struct Strips<'a, T> {
    strips: Vec<Strip<'a, T>>,
    size: usize,
    pieces: usize,
}

impl<'a, T> Strips<'a, T> {
    /// No strips yet, in the memory of a list.
    pub(crate) fn new(memory: Vec<Strip<'static, T>>, size: usize) -> Self {
        Self { strips: reuse(memory), size, pieces: 0 }
    }

    /// Makes room for so many.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), Error> {
        room(&mut self.strips, count)
    }

    pub(crate) fn push(&mut self, write: [&'a mut [f32]; MOST_SLICES], read: &'a [f32], what: T) {
        let write = write.map(|slice| Chunks::new(slice, self.size));
        self.strips.push(Strip { write, read, before: self.pieces, what });
        self.pieces += read.len().div_ceil(self.size);
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces
    }

    /// Their pieces. By a borrow that nothing else has, so that no two of them are used at a time.
    pub(crate) fn pieces(&mut self) -> StripPieces<'_, 'a, T> {
        StripPieces { strips: &self.strips, size: self.size }
    }

    /// The memory, for another list.
    pub(crate) fn into_memory(self) -> Vec<Strip<'static, T>> {
        reuse(self.strips)
    }
}

/// A piece of a strip.
pub(crate) struct StripPiece<'s, T> {
    pub(crate) write: [&'s mut [f32]; MOST_SLICES],
    pub(crate) read: &'s [f32],
    pub(crate) what: &'s T,
}

/// The pieces of some strips, for one phase.
pub(crate) struct StripPieces<'s, 'a, T> {
    strips: &'s [Strip<'a, T>],
    size: usize,
}

// SAFETY: strips borrow different slices, and pieces of one are chunks of these.
unsafe impl<'s, T: Sync> Pieces for StripPieces<'s, '_, T> {
    type Item = Option<StripPiece<'s, T>>;
    unsafe fn piece(&self, index: usize) -> Self::Item {
        let Self { strips, size } = self;
        let at = strips.partition_point(|strip| strip.before <= index).checked_sub(1)?;
        let Strip { write, read, before, what } = strips.get(at)?;
        let chunk = index - before;
        let first = chunk.saturating_mul(*size).min(read.len());
        let read = &read[first..first.saturating_add(*size).min(read.len())];
        let [a, b, c] = write;
        // SAFETY: as the caller promises.
        let write = unsafe { [a.piece(chunk), b.piece(chunk), c.piece(chunk)] };
        Some(StripPiece { write, read, what })
    }
}
