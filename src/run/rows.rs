//! The executor by rows: takes a block of rows through the steps of a program, forward or backward.

use super::blocks::{Block, Given, Record, Rows, Tile};
use super::shares::Shares;
use super::source::Source;
use super::workspace::Scratch;
use crate::Activation;
use crate::context::Context;
use crate::gemm::batch_norm::{BatchNorm, BatchNormAdjoint, batch_norm, batch_norm_adjoint};
use crate::gemm::cells::{In, Out};
use crate::gemm::epilogue::{Aux, Epilogue, Post, Scale, TilePost, each};
use crate::gemm::macro_kernel::{Gemm, gemm};
use crate::gemm::norm::{Norm, NormAdjoint, norm, norm_adjoint};
use crate::gemm::pack::pack;
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::gemm::start::Start;
use crate::program::lower::{Lowered, Operand, Region};
use crate::program::norm::NormKind;
use crate::program::step::{
    BatchNormAdjointStep, BatchNormStep, Beside, GemmStep, MOST_POSTS, NormAdjointStep, NormStep, Posts, Step,
};
use crate::program::wide;
use crate::random::{Draw, Mask};
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
    /// What masks are drawn from; None, if nothing is dropped.
    draw: Option<Draw>,
    /// Statistics of the batch, as far as they have been taken.
    statistics: &'a [f32],
}

impl<'a> Job<'a> {
    pub(super) fn new(
        ctx: &Context,
        source: &'a dyn Source,
        given: Given<'a>,
        draw: Option<Draw>,
        statistics: &'a [f32],
    ) -> Self {
        let (depth, chunk) = (ctx.k_block(), ctx.blocking().hidden_chunk());
        Self { isa: ctx.isa(), source, given, depth, chunk, draw, statistics }
    }

    /// A vector of parameters or a statistic, padded to whole panels.
    fn line(&self, place: Operand) -> &[f32] {
        match place.region {
            Some(Region::Statistics) => &self.statistics[place.at..][..wide(place.cols)],
            _ => self.source.vector(place.at),
        }
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
                let place = g.aux.map(|aux| lent.panels_of(aux.to).into());
                let columns = lent.columns(g.out.cols);
                let mut list = NO_POSTS;
                let posts = self.posts(lent, &g.posts, columns.clone(), &mut list, &Own::default());
                let aux = self.aux(lent, g.aux.as_ref(), columns.clone(), &Own::default()).zip(place);
                self.columns(g, (lent.view(g.a), 0), columns, Epilogue { out, posts, aux }, scratch);
            }
            Step::Chunks { first, second, last } => {
                self.chunks([Some(first), second.as_ref()], last.as_ref(), lent, scratch)
            }
            Step::Each { a, posts, aux, out } => {
                let Some(result) = lent.out(*out) else { return };
                let place = aux.map(|aux| lent.panels_of(aux.to).into());
                let (all, mut list) = (0..panels(out.cols), NO_POSTS);
                let posts = self.posts(lent, posts, all.clone(), &mut list, &Own::default());
                let aux = self.aux(lent, aux.as_ref(), all, &Own::default()).zip(place);
                each(self.isa, lent.view(*a), Epilogue { out: result, posts, aux });
            }
            Step::Norm(NormStep { norm: form, a, gain, shift, normal, rate, out }) => {
                let Some(result) = lent.out(*out) else { return };
                let vector = |place: &Option<Operand>| place.map(|place| self.source.vector(place.at));
                let job = Norm {
                    centred: form.kind == NormKind::Layer,
                    epsilon: form.epsilon,
                    a: lent.view(*a).into(),
                    rows: lent.rows,
                    gain: vector(gain),
                    shift: vector(shift),
                    normal: normal.map(|place| lent.panels_of(place).into()),
                    rate: rate.map(|place| lent.panels_of(place).into()),
                    out: result,
                };
                norm(self.isa, job);
            }
            Step::NormAdjoint(NormAdjointStep { norm: form, dn, gain, normal, rate, skip, out }) => {
                let Some(result) = lent.out(*out) else { return };
                let job = NormAdjoint {
                    centred: form.kind == NormKind::Layer,
                    dn: lent.view(*dn).into(),
                    rows: lent.rows,
                    gain: gain.map(|place| self.source.vector(place.at)),
                    normal: lent.view(*normal).into(),
                    rate: lent.view(*rate).into(),
                    skip: skip.map(|(factor, place)| (factor, lent.view(place).into())),
                    out: result,
                };
                norm_adjoint(self.isa, job);
            }
            Step::BatchNorm(BatchNormStep { norm: form, a, mean, variance, gain, shift, normal, out }) => {
                let Some(result) = lent.out(*out) else { return };
                let job = BatchNorm {
                    epsilon: form.epsilon,
                    a: lent.view(*a).into(),
                    rows: lent.rows,
                    mean: self.line(*mean),
                    variance: self.line(*variance),
                    gain: gain.map(|place| self.line(place)),
                    shift: shift.map(|place| self.line(place)),
                    normal: normal.map(|place| lent.panels_of(place).into()),
                    out: result,
                };
                batch_norm(self.isa, job);
            }
            Step::BatchNormAdjoint(step) => {
                let BatchNormAdjointStep { norm: form, dn, gain, normal, variance, mean, slope, skip, out } = *step;
                let Some(result) = lent.out(out) else { return };
                let job = BatchNormAdjoint {
                    epsilon: form.epsilon,
                    dn: lent.view(dn).into(),
                    rows: lent.rows,
                    gain: gain.map(|place| self.line(place)),
                    normal: lent.view(normal).into(),
                    variance: self.line(variance),
                    through: mean.map(|place| self.line(place)).zip(slope.map(|place| self.line(place))),
                    skip: skip.map(|(factor, place)| (factor, lent.view(place).into())),
                    out: result,
                };
                batch_norm_adjoint(self.isa, job);
            }
            // A plan has these apart from the steps of row blocks.
            Step::Batch(_) => {}
            Step::Probe { part, a } => {
                let rows = lent.rows;
                let a = lent.view(*a);
                if let Some(norms) = lent.norms.chunks_exact_mut(rows).nth(*part) {
                    row_norms(a, norms);
                }
            }
        }
    }

    /// GEMMs by chunks of the columns between them, F1 and F2 or B1 and B2: `makers` write these columns, the last GEMM reads along k what the
    /// last of them wrote.
    fn chunks(
        &self,
        makers: [Option<&GemmStep<Operand>>; 2],
        last: Option<&GemmStep<Operand>>,
        lent: &mut Lent<'_>,
        scratch: &mut Scratch,
    ) {
        let Some(width) = makers[0].map(|g| g.out.cols) else { return };
        let rows = lent.rows;
        let mut out = last.and_then(|g| lent.out(g.out));
        let mut beside = last.and_then(|g| g.aux).map(|aux| lent.panels_of(aux.to));
        // Result and second result of each.
        let mut made: [Option<Made<'_>>; 4] = [const { None }; 4];
        for (made, g) in made.chunks_exact_mut(2).zip(makers) {
            let Some(g) = g else { continue };
            made[0] = Some(Made::new(g.out, lent.take(g.out)));
            made[1] = g.aux.map(|aux| Made::new(aux.to, lent.take(aux.to)));
        }
        let mut c0 = 0;
        loop {
            let cols = self.chunk.min(width - c0);
            let columns = c0 / PANEL..c0 / PANEL + panels(cols);
            for (i, g) in makers.into_iter().enumerate() {
                let Some(g) = g else { continue };
                let (before, mine) = made.split_at_mut(2 * i);
                let own = if i == 0 { Own::default() } else { own(before, columns.start, rows, cols) };
                let [Some(result), aux, ..] = mine else { continue };
                let a = lent.view(g.a);
                let mut list = NO_POSTS;
                let posts = self.posts(lent, &g.posts, columns.clone(), &mut list, &own);
                let place = aux.as_mut().map(|aux| aux.chunk(columns.start, rows, cols).into());
                let aux = self.aux(lent, g.aux.as_ref(), columns.clone(), &own).zip(place);
                let out = result.chunk(columns.start, rows, cols).into();
                self.columns(g, (a, 0), columns.clone(), Epilogue { out, posts, aux }, scratch);
            }
            let done = c0 + cols == width;
            let a = &made[if makers[1].is_some() { 2 } else { 0 }];
            if let (Some(g), Some(out), Some(a)) = (last, &mut out, a) {
                let (all, a) = (0..panels(g.out.cols), a.view(columns.start, rows, cols));
                let mut list = NO_POSTS;
                // Unfinished chains wait where a tile is stored: beside the result, if something goes there.
                let place = beside.as_mut().map(|place| place.reborrow().into());
                let epilogue = if done {
                    let posts = self.posts(lent, &g.posts, all.clone(), &mut list, &Own::default());
                    let aux = self.aux(lent, g.aux.as_ref(), all.clone(), &Own::default()).zip(place);
                    Epilogue { out: out.reborrow(), posts, aux }
                } else {
                    Epilogue::store(place.unwrap_or_else(|| out.reborrow()))
                };
                self.columns(g, (a, c0), all, epilogue, scratch);
            }
            if done {
                break;
            }
            c0 += cols;
        }
    }

    /// A list of posts with its operands, cut to some panels. `own`: what this step has written of these panels.
    #[inline]
    fn posts<'l, 'm: 'l>(
        &'l self,
        lent: &Lent<'m>,
        posts: &Posts<Operand>,
        panels: Range<usize>,
        list: &'l mut [TilePost<'l>; MOST_POSTS],
        own: &Own<'l>,
    ) -> &'l [TilePost<'l>] {
        let mut len = 0;
        for post in posts.iter() {
            let value = |place| Some(lent.operand(place, panels.clone(), own));
            let row = |place: Operand| match self.source.vector(place.at) {
                all if place.cols == 1 => Some(Scale::Number(all[0])),
                all => Some(Scale::Row(&all[panels.start * PANEL..])),
            };
            let mask = |mask: Mask| Some(mask.drawn(self.draw?, lent.first, panels.start * PANEL));
            if let Some(post) = post.map(value, row, mask) {
                list[len] = post;
                len += 1;
            }
        }
        &list[..len]
    }

    /// What is beside a result.
    #[inline]
    fn aux<'l, 'm: 'l>(
        &'l self,
        lent: &Lent<'m>,
        aux: Option<&Beside<Operand>>,
        panels: Range<usize>,
        own: &Own<'l>,
    ) -> Option<Aux<In<'l>>> {
        Some(match aux?.what {
            Aux::Slope => Aux::Slope,
            Aux::Chains => Aux::Chains,
            Aux::Product(place) => Aux::Product(lent.operand(place, panels, own)),
        })
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
        let start = match (g.onto || k0 > 0, bias) {
            (true, _) => Start::Continue,
            (false, None) => Start::Zero,
            (false, Some(bias)) => Start::Bias(&bias[columns.start * PANEL..]),
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

    /// Some panels of a value that is read element by element.
    #[inline]
    fn operand<'l>(&self, place: Operand, panels: Range<usize>, own: &Own<'l>) -> In<'l>
    where
        'm: 'l,
    {
        if place.own
            && let Some((_, mine)) = own.iter().flatten().find(|(other, _)| other.is(place))
        {
            return (*mine).into();
        }
        self.view(place).panel_range(panels.start, panels.len()).into()
    }

    /// A value that is read.
    #[inline]
    fn view(&self, place: Operand) -> PanelRef<'m> {
        let cut = if place.region == Some(Region::Record) { &self.record } else { &self.local };
        let data = &cut.left[usize::from(place.piece)][place.at * self.rows..][..wide(place.cols) * self.rows];
        PanelRef::new(data, self.rows, place.cols)
    }
}

/// What a step that goes by chunks writes: a place with room for all columns or for a chunk.
struct Made<'m> {
    place: Operand,
    data: &'m mut [f32],
}

/// What there is of a chunk when the second of two GEMMs begins: what the first wrote.
type Own<'l> = [Option<(Operand, PanelRef<'l>)>; 2];

impl<'m> Made<'m> {
    fn new(place: Operand, data: &'m mut [f32]) -> Self {
        Self { place, data }
    }

    fn range(&self, panel: usize, rows: usize, cols: usize) -> Range<usize> {
        let at = if self.place.chunk { 0 } else { panel * PANEL * rows };
        at..at + panels(cols) * PANEL * rows
    }

    /// The chunk of `cols` columns from a panel on.
    fn chunk(&mut self, panel: usize, rows: usize, cols: usize) -> PanelMut<'_> {
        let range = self.range(panel, rows, cols);
        PanelMut::new(&mut self.data[range], rows, cols)
    }

    /// The same, to read.
    fn view(&self, panel: usize, rows: usize, cols: usize) -> PanelRef<'_> {
        PanelRef::new(&self.data[self.range(panel, rows, cols)], rows, cols)
    }
}

/// The chunks of what the first GEMM made.
fn own<'l>(made: &'l [Option<Made<'_>>], panel: usize, rows: usize, cols: usize) -> Own<'l> {
    let view = |made: &'l Option<Made<'_>>| made.as_ref().map(|made| (made.place, made.view(panel, rows, cols)));
    [view(&made[0]), view(&made[1])]
}

const NO_POSTS: [TilePost<'static>; MOST_POSTS] = [Post::Act(Activation::Identity); MOST_POSTS];

/// Squared norms of the rows of `dy`.
fn row_norms(dy: PanelRef<'_>, norms: &mut [f64]) {
    let cells = In::from(dy);
    for (i, norm) in norms.iter_mut().enumerate() {
        let row = (0..panels(dy.cols())).flat_map(|p| cells.at(i, p));
        *norm = row.map(|&g| f64::from(g) * f64::from(g)).sum();
    }
}
