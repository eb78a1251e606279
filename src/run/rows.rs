//! The executor by rows: takes a block of rows through the steps of a program, forward or backward.

use super::blocks::{Block, Given, Record, Rows, Tile};
use super::shares::Shares;
use super::source::Source;
use super::workspace::Scratch;
use crate::Activation;
use crate::context::Context;
use crate::gemm::cells::{In, Out};
use crate::gemm::epilogue::{Epilogue, Post, times};
use crate::gemm::macro_kernel::{Gemm, gemm};
use crate::gemm::pack::pack;
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::gemm::start::Start;
use crate::program::lower::{Lowered, Operand, Region};
use crate::program::{GemmStep, MOST_POSTS, Posts, Step, wide};
use crate::simd::Isa;
use crate::team::Team;
use crate::team::pieces::Cut;
use std::ops::Range;

/// What the row blocks of a call have in common. Each thread has a copy in a frame of its own: what it reads at each step should not lie
/// beside what another thread writes there, on whose stack the first copy is. With one for all, a forward pass of 50 blocks of 64 took 6 %
/// longer on two threads (Zen 5).
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    isa: Isa,
    source: &'a dyn Source,
    given: Given<'a>,
    /// Length of a k block, and columns of a chunk.
    depth: usize,
    chunk: usize,
}

impl<'a> Job<'a> {
    pub(super) fn new(ctx: &Context, source: &'a dyn Source, given: Given<'a>) -> Self {
        Self { isa: ctx.isa(), source, given, depth: ctx.k_block(), chunk: ctx.blocking().hidden_chunk() }
    }

    /// Takes some rows through some steps, on the threads of a team: each row block goes through all of them on one thread, or, where
    /// threads share columns, all row blocks through each step before the next begins.
    pub(super) fn run(
        &self,
        team: &mut Team,
        steps: &[Lowered],
        shares: Shares,
        mut rows: Rows<'_>,
        scratch: &mut [Scratch],
    ) {
        let blocks = rows.count.div_ceil(shares.rows);
        if shares.across == 1 {
            if let (1, Some(mine)) = (blocks, scratch.first_mut()) {
                // Nothing to cut, and nobody to share with: the machinery takes as long as a GEMM of a row of 16.
                return self.block(steps, rows.into_block(), mine);
            }
            // Each thread has a copy in a frame of its own.
            let run = |block: Block<'_>, mine: &mut Scratch| { *self }.block(steps, block, mine);
            return team.each(blocks, rows.blocks(shares.rows), scratch, run);
        }
        for lowered in steps {
            let grid = shares.grid(blocks, &lowered.step);
            let tiles = rows.reborrow().tiles(grid, (&lowered.record, &lowered.local));
            team.each(grid.pieces(), tiles, scratch, |tile, mine| {
                let Tile { first, rows, panels, record, local, out, norms } = tile;
                let mut lent = Lent { first, rows, panels, record, local, out, norms };
                self.step(&lowered.step, &mut lent, mine);
            });
        }
    }

    /// Takes a row block through some steps.
    fn block(&self, steps: &[Lowered], block: Block<'_>, scratch: &mut Scratch) {
        let Block { first, rows, mut record, local, mut out, norms } = block;
        // Forward, a block's values are in the thread's own memory.
        let mut own = std::mem::take(&mut scratch.local);
        let local = if local.is_empty() { own.as_mut_slice() } else { local };
        for lowered in steps {
            let record = match &mut record {
                Record::Write(data) => Cut::of(data, lowered.record.as_slice(), rows),
                Record::Read(data) => Cut::read(data),
            };
            let local = Cut::of(local, lowered.local.as_slice(), rows);
            let (out, norms) = (out.as_mut().map(Out::reborrow), &mut *norms);
            let mut lent = Lent { first, rows, panels: 0..usize::MAX, record, local, out, norms };
            self.step(&lowered.step, &mut lent, scratch);
        }
        scratch.local = own;
    }

    fn step(&self, step: &Step<Operand>, lent: &mut Lent<'_>, scratch: &mut Scratch) {
        match step {
            Step::Load { port, out } => {
                if let Some(from) = self.given.at(*port) {
                    pack(self.isa, from.row_range(lent.first, lent.rows), lent.panels_of(*out));
                }
            }
            Step::Gemm(g) => {
                let Some(out) = lent.out(g.out) else { return };
                let slope = g.slope.map(|slope| lent.panels_of(slope).into());
                let columns = lent.columns(g.out.cols);
                let mut list = NO_POSTS;
                let posts = lent.posts(&g.posts, columns.clone(), &mut list);
                self.columns(g, (lent.view(g.a), 0), columns, Epilogue { out, slope, posts }, scratch);
            }
            Step::Chunks { first, second } => {
                if let Some(out) = lent.out(second.out) {
                    self.chunks(first, second, lent, out, scratch);
                }
            }
            Step::Times { a, b, out } => {
                times(self.isa, lent.view(*a), lent.view(*b), lent.panels_of(*out));
            }
            Step::Probe { part, a } => {
                let rows = lent.rows;
                let a = lent.view(*a);
                if let Some(norms) = lent.norms.chunks_exact_mut(rows).nth(*part) {
                    row_norms(a, norms);
                }
            }
        }
    }

    /// Two GEMMs by chunks of the columns between them: F1 and F2, B1 and B2.
    fn chunks(
        &self,
        first: &GemmStep<Operand>,
        second: &GemmStep<Operand>,
        lent: &mut Lent<'_>,
        mut out: Out<'_>,
        scratch: &mut Scratch,
    ) {
        let (rows, width, all) = (lent.rows, first.out.cols, panels(second.out.cols));
        // The place between has room for all columns or for a chunk.
        let whole = !first.out.chunk;
        let (mid, mut slope) = (lent.take(first.out), first.slope.map(|slope| lent.panels_of(slope)));
        let a = lent.view(first.a);
        let mut c0 = 0;
        loop {
            let cols = self.chunk.min(width - c0);
            let columns = c0 / PANEL..c0 / PANEL + panels(cols);
            let at = if whole { columns.start * PANEL * rows } else { 0 };
            let mut mid = PanelMut::new(&mut mid[at..at + columns.len() * PANEL * rows], rows, cols);
            let slope = slope.as_mut().map(|slope| slope.panel_range(columns.start, columns.len()).into());
            let mut list = NO_POSTS;
            let posts = lent.posts(&first.posts, columns.clone(), &mut list);
            self.columns(first, (a, 0), columns, Epilogue { out: mid.reborrow().into(), slope, posts }, scratch);

            let last = c0 + cols == width;
            let mut list = NO_POSTS;
            let posts = if last { lent.posts(&second.posts, 0..all, &mut list) } else { &[] };
            let epilogue = Epilogue { out: out.reborrow(), slope: None, posts };
            self.columns(second, (mid.as_ref(), c0), 0..all, epilogue, scratch);
            if last {
                break;
            }
            c0 += cols;
        }
    }

    /// Some columns of a GEMM; `a` is the operand from its column `k0` on, where chains go on from what the output holds.
    #[inline]
    fn columns(
        &self,
        g: &GemmStep<Operand>,
        (a, k0): (PanelRef<'_>, usize),
        columns: Range<usize>,
        epilogue: Epilogue<'_>,
        scratch: &mut Scratch,
    ) {
        let (b, bias) = self.source.map(g.affine, g.side);
        let b = b.rows_from(k0).panel_range(columns.start, columns.len());
        let start = match (k0, bias) {
            (1.., _) => Start::Continue,
            (0, None) => Start::Zero,
            (0, Some(bias)) => Start::Bias(&bias[columns.start * PANEL..]),
        };
        let pack = scratch.pack.as_mut_slice();
        gemm(self.isa, &mut Gemm { a, b, start, depth: self.depth, pack }, epilogue);
    }
}

/// The memory of a row block while a step runs, or of some panels of it.
struct Lent<'m> {
    first: usize,
    rows: usize,
    /// The panels of the result that are this piece's; more than there are, for all.
    panels: Range<usize>,
    record: Cut<'m>,
    local: Cut<'m>,
    out: Option<Out<'m>>,
    norms: &'m mut [f64],
}

impl<'m> Lent<'m> {
    /// The panels of a result of so many columns that are this piece's.
    #[inline]
    fn columns(&self, cols: usize) -> Range<usize> {
        self.panels.start.min(panels(cols))..self.panels.end.min(panels(cols))
    }

    /// The place of a value that is written. It is there once.
    #[inline]
    fn take(&mut self, place: Operand) -> &'m mut [f32] {
        let cut = if place.region == Some(Region::Record) { &mut self.record } else { &mut self.local };
        std::mem::take(&mut cut.places[usize::from(place.piece)])
    }

    #[inline]
    fn panels_of(&mut self, place: Operand) -> PanelMut<'m> {
        let columns = self.columns(place.cols);
        let cols = (columns.end * PANEL).min(place.cols).saturating_sub(columns.start * PANEL);
        PanelMut::new(self.take(place), self.rows, cols)
    }

    /// Where a result goes: to the caller, or to memory of ours.
    #[inline]
    fn out(&mut self, place: Operand) -> Option<Out<'m>> {
        match place.region {
            None => self.out.take(),
            Some(_) => Some(self.panels_of(place).into()),
        }
    }

    /// A value that is read.
    #[inline]
    fn view(&self, place: Operand) -> PanelRef<'m> {
        let cut = if place.region == Some(Region::Record) { &self.record } else { &self.local };
        let data = &cut.left[usize::from(place.piece)][place.at * self.rows..][..wide(place.cols) * self.rows];
        PanelRef::new(data, self.rows, place.cols)
    }

    /// A list of posts with its operands, cut to some panels.
    #[inline]
    fn posts<'l>(
        &self,
        posts: &Posts<Operand>,
        panels: Range<usize>,
        list: &'l mut [Post<In<'m>>; MOST_POSTS],
    ) -> &'l [Post<In<'m>>] {
        let mut len = 0;
        for post in posts.iter() {
            let operand = |place| Some(In::from(self.view(place).panel_range(panels.start, panels.len())));
            if let Some(post) = post.map(operand) {
                list[len] = post;
                len += 1;
            }
        }
        &list[..len]
    }
}

const NO_POSTS: [Post<In<'static>>; MOST_POSTS] = [Post::Act(Activation::Identity); MOST_POSTS];

/// Squared norms of the rows of `dy`.
fn row_norms(dy: PanelRef<'_>, norms: &mut [f64]) {
    let cells = In::from(dy);
    for (i, norm) in norms.iter_mut().enumerate() {
        let row = (0..panels(dy.cols())).flat_map(|p| cells.at(i, p));
        *norm = row.map(|&g| f64::from(g) * f64::from(g)).sum();
    }
}
