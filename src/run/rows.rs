//! The executor by rows: takes a block of rows through the steps of a program, forward or backward.

use super::blocks::{Dest, Given, Record, RowBlock};
use super::source::Source;
use crate::context::{Context, Scratch};
use crate::gemm::cells::{In, Out};
use crate::gemm::driver::for_each;
use crate::gemm::epilogue::{Epilogue, Posts, times};
use crate::gemm::macro_kernel::{Gemm, gemm};
use crate::gemm::pack::pack;
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::gemm::start::Start;
use crate::program::memory::{Home, Memory};
use crate::program::{GemmStep, Program, Side, Step, Val};
use std::ops::Range;

/// What the row blocks of a call have in common.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) ctx: &'a Context,
    pub(super) program: &'a Program,
    pub(super) source: &'a dyn Source,
    pub(super) memory: &'a Memory,
    /// Columns of a chunk; all of them where threads share columns.
    pub(super) chunk: usize,
}

/// A row block on its way through the steps: what it is given, and where its values are.
pub(super) struct Frame<'a> {
    given: Given<'a>,
    cells: RowMemory<'a>,
    dest: Option<Dest<'a>>,
    norms: &'a mut [f64],
}

impl<'a> Frame<'a> {
    /// Of a row block whose local memory is its slab, or `local` where it has none.
    pub(super) fn new(block: RowBlock<'a>, local: &'a mut [f32]) -> Self {
        let RowBlock { rows, given, record, slab, dest, norms } = block;
        let local = if slab.is_empty() { local } else { slab };
        Self { given, cells: RowMemory { rows, record, local }, dest, norms }
    }
}

impl Job<'_> {
    /// Takes a row block through `steps`, those of part number `part`. `crew`: a scratch for each thread that shares the columns of its
    /// GEMMs; one, where threads share rows.
    pub(super) fn run(&self, part: usize, steps: &[Step], frame: &mut Frame<'_>, crew: &mut [Scratch]) {
        let isa = self.ctx.isa();
        let Frame { given, cells, dest, norms } = frame;
        for step in steps {
            match step {
                Step::Load { port, out } => {
                    let ([out, ..], _) = cells.lend(self, [Some(*out), None, None]);
                    if let (Some(from), Some(out)) = (given.at(*port), out) {
                        pack(isa, from, out);
                    }
                }
                Step::Gemm(g) => self.gemm(g, cells, dest.as_mut(), crew),
                Step::Chunks { first, second } if crew.len() > 1 => {
                    self.gemm(first, cells, None, crew);
                    self.gemm(second, cells, dest.as_mut(), crew);
                }
                Step::Chunks { first, second } => self.chunks(first, second, cells, dest.as_mut(), crew),
                Step::Times { a, b, out } => {
                    let ([out, ..], reads) = cells.lend(self, [Some(*out), None, None]);
                    if let (Some(out), Some(a), Some(b)) = (out, reads.view(*a), reads.view(*b)) {
                        times(isa, a, b, out);
                    }
                }
                Step::Probe { a } => {
                    let (rows, (_, reads)) = (cells.rows, cells.lend(self, [None; 3]));
                    if let (Some(a), Some(norms)) = (reads.view(*a), norms.chunks_exact_mut(rows).nth(part)) {
                        row_norms(a, norms);
                    }
                }
            }
        }
    }

    /// One GEMM, its columns in one piece or shared by the threads of a crew.
    fn gemm(&self, g: &GemmStep, cells: &mut RowMemory<'_>, dest: Option<&mut Dest<'_>>, crew: &mut [Scratch]) {
        let ([out, slope, _], reads) = cells.lend(self, [Some(g.out), g.slope, None]);
        let Some((out, a)) = self.result(g.out, out, dest).zip(reads.view(g.a)) else { return };
        let posts = g.posts.map(|v| reads.view(v));
        split_columns(crew, self.program.value(g.out).cols, out, slope, |columns, out, slope, scratch| {
            let posts = posts.map(|v| Some(In::from(v.panel_range(columns.start, columns.len()))));
            self.columns(g, (a, 0), columns, Epilogue { out, slope, posts }, scratch);
        });
    }

    /// Two GEMMs by chunks of the columns between them: F1 and F2, B1 and B2.
    fn chunks(
        &self,
        first: &GemmStep,
        second: &GemmStep,
        cells: &mut RowMemory<'_>,
        dest: Option<&mut Dest<'_>>,
        crew: &mut [Scratch],
    ) {
        let Some(scratch) = crew.first_mut() else { return };
        let whole = !matches!(self.memory.home(first.out), Home::Chunk(_));
        let width = self.program.value(first.out).cols;
        let rows = cells.rows;
        let ([mid, slope, out], reads) = cells.lend(self, [Some(first.out), first.slope, Some(second.out)]);
        let mut out = self.result(second.out, out, dest);
        let (Some(mid), Some(a)) = (mid, reads.view(first.a)) else { return };
        let (mid, mut slope) = (mid.into_data(), slope);
        let (first_posts, posts) = (first.posts.map(|v| reads.view(v)), second.posts.map(|v| reads.view(v)));
        let mut c0 = 0;
        loop {
            let cols = self.chunk.min(width - c0);
            let columns = c0 / PANEL..c0 / PANEL + panels(cols);
            let at = if whole { columns.start * PANEL * rows } else { 0 };
            let mut mid = PanelMut::new(&mut mid[at..at + columns.len() * PANEL * rows], rows, cols);
            let slope = slope.as_mut().map(|slope| slope.panel_range(columns.start, columns.len()).into());
            let first_posts = first_posts.map(|v| Some(In::from(v.panel_range(columns.start, columns.len()))));
            let epilogue = Epilogue { out: mid.reborrow().into(), slope, posts: first_posts };
            self.columns(first, (a, 0), columns, epilogue, scratch);

            let last = c0 + cols == width;
            if let Some(out) = &mut out {
                let posts = if last { posts.map(|v| Some(In::from(v))) } else { Posts::none() };
                let epilogue = Epilogue { out: out.reborrow().into(), slope: None, posts };
                let columns = 0..panels(self.program.value(second.out).cols);
                self.columns(second, (mid.as_ref(), c0), columns, epilogue, scratch);
            }
            if last {
                break;
            }
            c0 += cols;
        }
    }

    /// Some columns of a GEMM; `a` is the operand from its column `k0` on, where chains go on from what the output holds.
    fn columns(
        &self,
        g: &GemmStep,
        (a, k0): (PanelRef<'_>, usize),
        columns: Range<usize>,
        epilogue: Epilogue<'_>,
        scratch: &mut Scratch,
    ) {
        let b = self.source.factor(g.affine, g.side).rows_from(k0).panel_range(columns.start, columns.len());
        let start = match (k0, g.side) {
            (1.., _) => Start::Continue,
            (0, Side::Adjoint) => Start::Zero,
            (0, Side::Forward) => {
                let bias = self.source.bias(g.affine);
                bias.map_or(Start::Zero, |bias| Start::Bias(&bias[columns.start * PANEL..]))
            }
        };
        let (depth, pack) = (self.ctx.k_block(), scratch.pack.as_mut_slice());
        gemm(self.ctx.isa(), Gemm { a, b, start, depth, pack, epilogue });
    }

    /// Where a result goes: to the caller, or to memory of ours. None if nobody wants it.
    fn result<'d>(&self, val: Val, out: Option<PanelMut<'d>>, dest: Option<&'d mut Dest<'_>>) -> Option<Dest<'d>> {
        match self.memory.home(val) {
            Home::Caller => dest.map(Dest::reborrow),
            _ => out.map(Dest::Panels),
        }
    }
}

/// The memory of a row block.
struct RowMemory<'a> {
    rows: usize,
    record: Record<'a>,
    local: &'a mut [f32],
}

impl RowMemory<'_> {
    /// Lends the places of up to three values for writing, and all else for reading. What has no home here is None; of a value that is
    /// computed by chunks, the place of one.
    fn lend<'m>(&'m mut self, job: &'m Job<'_>, writes: [Option<Val>; 3]) -> ([Option<PanelMut<'m>>; 3], Reads<'m>) {
        let rows = self.rows;
        let home = |val: Option<Val>| val.map_or(Home::None, |val| job.memory.home(val));
        let cols = |val: Option<Val>| val.map_or(0, |val| job.program.value(val).cols);
        let range = |at: usize, cols: usize| at * rows..(at + panels(cols) * PANEL) * rows;
        let on_record = writes.map(|val| match home(val) {
            Home::Record(at) => range(at, cols(val)),
            _ => 0..0,
        });
        let in_local = writes.map(|val| match home(val) {
            Home::Local(at) => range(at, cols(val)),
            Home::Chunk(at) => range(at, cols(val).min(job.chunk)),
            _ => 0..0,
        });
        let (record_writes, record) = match &mut self.record {
            Record::Write(data) => split(data, on_record),
            Record::Read(data) => (Default::default(), [(0, &**data), (0, &[]), (0, &[]), (0, &[])]),
        };
        let (local_writes, local) = split(self.local, in_local);
        let (mut record_writes, mut local_writes) = (record_writes.into_iter(), local_writes.into_iter());
        let places = writes.map(|val| {
            let (on_record, in_local) =
                (record_writes.next().unwrap_or_default(), local_writes.next().unwrap_or_default());
            match home(val) {
                Home::None | Home::Caller => None,
                Home::Record(_) => Some(PanelMut::new(on_record, rows, cols(val))),
                Home::Local(_) => Some(PanelMut::new(in_local, rows, cols(val))),
                Home::Chunk(_) => Some(PanelMut::new(in_local, rows, cols(val).min(job.chunk))),
            }
        });
        (places, Reads { job, rows, record, local })
    }
}

/// What is left of a piece of memory of which up to three places are lent for writing: each with its position.
type Rest<'m> = [(usize, &'m [f32]); 4];

/// The values of a row block that can be read while others are written.
struct Reads<'m> {
    job: &'m Job<'m>,
    rows: usize,
    record: Rest<'m>,
    local: Rest<'m>,
}

impl<'m> Reads<'m> {
    fn view(&self, val: Val) -> Option<PanelRef<'m>> {
        let (rest, at) = match self.job.memory.home(val) {
            Home::Record(at) => (&self.record, at * self.rows),
            Home::Local(at) => (&self.local, at * self.rows),
            Home::None | Home::Caller | Home::Chunk(_) => return None,
        };
        let (cols, width) = (self.job.program.value(val).cols, self.job.program.value(val).width());
        let mut pieces =
            rest.iter().filter_map(|(start, piece)| piece.get(at.checked_sub(*start)?..)?.get(..width * self.rows));
        Some(PanelRef::new(pieces.next()?, self.rows, cols))
    }
}

/// Cuts `writes` out of `memory`. They do not overlap: the planner gives values that live at the same time places of their own.
fn split(memory: &mut [f32], writes: [Range<usize>; 3]) -> ([&mut [f32]; 3], Rest<'_>) {
    let mut order = [0, 1, 2];
    order.sort_unstable_by_key(|&i| (writes[i].start, writes[i].end));
    let (mut lent, mut rest): ([&mut [f32]; 3], Rest<'_>) = (Default::default(), Default::default());
    let (mut left, mut at) = (memory, 0);
    for (piece, i) in rest.iter_mut().zip(order) {
        let Range { start, end } = writes[i].clone();
        let (before, from) = left.split_at_mut(start - at);
        let (place, after) = from.split_at_mut(end - start);
        *piece = (at, before);
        (lent[i], left, at) = (place, after, end);
    }
    rest[3] = (at, left);
    (lent, rest)
}

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
