//! The executor by rows: takes a block of rows through the steps of a program, forward or backward.

use super::blocks::{Dest, Given, Record, RowBlock};
use super::source::Source;
use super::workspace::Scratch;
use crate::Activation;
use crate::context::Context;
use crate::gemm::cells::{In, Out};
use crate::gemm::driver::for_each;
use crate::gemm::epilogue::{Epilogue, Post, times};
use crate::gemm::macro_kernel::{Gemm, gemm};
use crate::gemm::pack::pack;
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::gemm::start::Start;
use crate::program::lower::{Cuts, Lowered, MOST_WRITES, Operand, Region};
use crate::program::{GemmStep, MOST_POSTS, Posts, Step, wide};
use crate::simd::Isa;
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

    /// Takes a row block, with local memory of the thread or of the slab, through some steps. `crew`: a scratch for each thread that
    /// shares the columns of its GEMMs; one, where threads share rows.
    pub(super) fn run(&self, steps: &[Lowered], block: &mut RowBlock<'_>, memory: &mut [f32], crew: &mut [Scratch]) {
        let (isa, rows) = (self.isa, block.rows);
        for Lowered { step, record, local } in steps {
            let record = match &mut block.record {
                Record::Write(data) => Pieces::cut(data, record, rows),
                Record::Read(data) => Pieces::whole(data),
            };
            let mut lent = Lent { rows, record, local: Pieces::cut(memory, local, rows) };
            match step {
                Step::Load { port, out } => {
                    if let Some(from) = self.given.at(*port) {
                        pack(isa, from.row_range(block.first_row, rows), lent.panels(*out));
                    }
                }
                Step::Gemm(g) => {
                    let Some(out) = lent.out(g.out, block.dest.as_mut()) else { continue };
                    self.gemm(g, &mut lent, out, crew);
                }
                Step::Chunks { first, second } => {
                    let Some((out, mine)) = lent.out(second.out, block.dest.as_mut()).zip(crew.first_mut()) else {
                        continue;
                    };
                    self.chunks(first, second, &mut lent, out, mine);
                }
                Step::Times { a, b, out } => times(isa, lent.view(*a), lent.view(*b), lent.panels(*out)),
                Step::Probe { part, a } => {
                    if let Some(norms) = block.norms.chunks_exact_mut(rows).nth(*part) {
                        row_norms(lent.view(*a), norms);
                    }
                }
            }
        }
    }

    /// One GEMM, its columns in one piece or shared by the threads of a crew.
    fn gemm(&self, g: &GemmStep<Operand>, lent: &mut Lent<'_>, out: Dest<'_>, crew: &mut [Scratch]) {
        let slope = g.slope.map(|slope| lent.panels(slope));
        let (a, lent) = (lent.view(g.a), &*lent);
        split_columns(crew, g.out.cols, out, slope, |columns, out, slope, scratch| {
            let mut list = NO_POSTS;
            let posts = lent.posts(&g.posts, columns.clone(), &mut list);
            self.columns(g, (a, 0), columns, Epilogue { out, slope, posts }, scratch);
        });
    }

    /// Two GEMMs by chunks of the columns between them: F1 and F2, B1 and B2.
    fn chunks(
        &self,
        first: &GemmStep<Operand>,
        second: &GemmStep<Operand>,
        lent: &mut Lent<'_>,
        mut out: Dest<'_>,
        scratch: &mut Scratch,
    ) {
        let (rows, width, all) = (lent.rows, first.out.cols, panels(second.out.cols));
        // The place between has room for all columns or for a chunk.
        let whole = !first.out.chunk;
        let (mid, mut slope) = (lent.take(first.out), first.slope.map(|slope| lent.panels(slope)));
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
            let epilogue = Epilogue { out: out.reborrow().into(), slope: None, posts };
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

/// A piece of memory of a row block while a step runs: the places that it writes, cut out, and the pieces that are left to read.
struct Pieces<'m> {
    places: [&'m mut [f32]; MOST_WRITES],
    left: [&'m [f32]; MOST_WRITES + 1],
}

impl<'m> Pieces<'m> {
    #[inline]
    fn cut(memory: &'m mut [f32], cuts: &Cuts, rows: usize) -> Self {
        let mut pieces = Self { places: [&mut [], &mut [], &mut []], left: [&[]; MOST_WRITES + 1] };
        let (mut rest, mut at, mut count) = (memory, 0, 0);
        for &(start, width) in cuts.as_slice() {
            let (left, from) = rest.split_at_mut((start - at) * rows);
            let (place, after) = from.split_at_mut(width * rows);
            (pieces.places[count], pieces.left[count]) = (place, left);
            (rest, at, count) = (after, start + width, count + 1);
        }
        pieces.left[count] = rest;
        pieces
    }

    #[inline]
    fn whole(memory: &'m [f32]) -> Self {
        Self { places: [&mut [], &mut [], &mut []], left: [memory, &[], &[], &[]] }
    }
}

/// The memory of a row block while a step runs.
struct Lent<'m> {
    rows: usize,
    record: Pieces<'m>,
    local: Pieces<'m>,
}

impl<'m> Lent<'m> {
    /// The place of a value that is written. It is there once.
    #[inline]
    fn take(&mut self, place: Operand) -> &'m mut [f32] {
        let pieces = if place.region == Some(Region::Record) { &mut self.record } else { &mut self.local };
        std::mem::take(&mut pieces.places[usize::from(place.piece)])
    }

    #[inline]
    fn panels(&mut self, place: Operand) -> PanelMut<'m> {
        PanelMut::new(self.take(place), self.rows, place.cols)
    }

    /// Where a result goes: to the caller, or to memory of ours.
    #[inline]
    fn out<'d>(&mut self, place: Operand, dest: Option<&'d mut Dest<'_>>) -> Option<Dest<'d>>
    where
        'm: 'd,
    {
        match place.region {
            None => dest.map(Dest::reborrow),
            Some(_) => Some(Dest::Panels(self.panels(place))),
        }
    }

    /// A value that is read.
    #[inline]
    fn view(&self, place: Operand) -> PanelRef<'m> {
        let pieces = if place.region == Some(Region::Record) { &self.record } else { &self.local };
        let data = &pieces.left[usize::from(place.piece)][place.at * self.rows..][..wide(place.cols) * self.rows];
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

/// Runs `work(panels, out, aux, scratch)` over the columns of an output, whole or in pieces on the threads of a crew, each with a
/// scratch of its own. Pieces of panels are disjoint memory; `aux` is cut like `out`.
fn split_columns(
    crew: &mut [Scratch],
    columns: usize,
    out: Dest<'_>,
    aux: Option<PanelMut<'_>>,
    work: impl Fn(Range<usize>, Out<'_>, Option<Out<'_>>, &mut Scratch) + Sync,
) {
    let threads = crew.len();
    let out = match (crew.first_mut(), out) {
        // Rows of the caller's matrix cannot be cut by columns: outputs are staged when columns are shared.
        (Some(mine), Dest::Rows(out)) => return work(0..panels(columns), out.into(), aux.map(Into::into), mine),
        (Some(mine), Dest::Panels(out)) if threads == 1 => {
            return work(0..panels(columns), out.into(), aux.map(Into::into), mine);
        }
        (_, Dest::Panels(out)) => out,
        (None, Dest::Rows(_)) => return,
    };
    let rows = out.as_ref().rows();
    let (mut out, mut aux) = (out.into_data(), aux.map(PanelMut::into_data));
    let total = panels(columns);
    let size = total.div_ceil(threads).max(1);
    let pieces = (0..total).step_by(size).map(move |first| {
        let piece = first..total.min(first + size);
        let cols = (piece.len() * PANEL).min(columns - first * PANEL);
        let len = piece.len() * PANEL * rows;
        let (head, tail) = std::mem::take(&mut out).split_at_mut(len);
        out = tail;
        let aux = aux.as_mut().map(|aux| {
            let (head, tail) = std::mem::take(aux).split_at_mut(len);
            *aux = tail;
            PanelMut::new(head, rows, cols)
        });
        (piece, PanelMut::new(head, rows, cols), aux)
    });
    for_each(pieces, crew, |(piece, out, aux), scratch| {
        work(piece, out.into(), aux.map(Into::into), scratch);
    });
}

/// Squared norms of the rows of `dy`.
fn row_norms(dy: PanelRef<'_>, norms: &mut [f64]) {
    let cells = In::from(dy);
    for (i, norm) in norms.iter_mut().enumerate() {
        let row = (0..panels(dy.cols())).flat_map(|p| cells.at(i, p));
        *norm = row.map(|&g| f64::from(g) * f64::from(g)).sum();
    }
}
