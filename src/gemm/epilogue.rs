//! Epilogues: what happens to the accumulators of a tile after the last k, before they are stored. One formula each.
//!
//! What is cheap is done to the accumulators in registers ([`Op`]). Activations other than ReLU take 15 to 35 instructions a
//! vector; unrolled over 28 accumulators, for each tile size and activation, they would be megabytes of code. They run as a
//! rolled loop over the tile that was just stored ([`After`]), which is still in L1: one more load and store a vector, beside
//! the arithmetic.

use super::cells::{In, Out};
use super::lanes::{load_cells, store_cells};
use super::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::Activation;
use crate::activation::{self, Act, with_act};

use crate::simd::{Isa, Kernel, Simd};
use std::marker::PhantomData;

/// One thing that is done to finished chains, one rounding an operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Post<V> {
    /// acc = phi(acc).
    Act(Activation),
    /// acc = acc * v.
    Times(V),
    /// acc = acc if v > 0, else acc * 0: the slope of ReLU, told from its output.
    Mask(V),
    /// acc = acc + v.
    Add(V),
}

impl<V> Post<V> {
    /// The same with another operand; None if it has none.
    #[inline]
    pub(crate) fn map<T>(self, f: impl FnOnce(V) -> Option<T>) -> Option<Post<T>> {
        match self {
            Post::Act(phi) => Some(Post::Act(phi)),
            Post::Times(v) => f(v).map(Post::Times),
            Post::Mask(v) => f(v).map(Post::Mask),
            Post::Add(v) => f(v).map(Post::Add),
        }
    }
}

/// What becomes of the finished chains of a GEMM, in this order, and where the result goes.
pub(crate) struct Epilogue<'a> {
    pub(crate) out: Out<'a>,
    /// Where phi'(acc) goes, which shares most of its arithmetic with phi. Only beside a list that begins with an activation.
    pub(crate) slope: Option<Out<'a>>,
    pub(crate) posts: &'a [Post<In<'a>>],
}

/// An [`Epilogue`] as kernels take it: an operation compiled into the tile, and a loop after it.
pub(crate) struct Finish<'a, O> {
    pub(crate) target: Target<'a>,
    op: PhantomData<O>,
}

/// What an epilogue reads and writes.
pub(crate) struct Target<'a> {
    /// Where the tile is stored; chains cut into k blocks wait here too.
    pub(crate) out: Out<'a>,
    /// The second operand of the operation.
    aux: Option<In<'a>>,
    after: After<'a>,
    /// The tile at hand, for the loop after it. Set before its chains run: arguments that have just been written wait for the
    /// stores of the tile.
    range: Range,
}

impl<'a> Finish<'a, Store> {
    /// out = acc
    #[inline(always)]
    pub(crate) fn store(out: Out<'a>) -> Self {
        Self::new(out, None, After::NOTHING)
    }
}

/// Something that is done with a `Finish`, whatever its operation.
pub(crate) trait WithFinish {
    fn with<O: Op>(self, finish: &mut Finish<'_, O>);
}

impl<'a> Epilogue<'a> {
    /// out = acc.
    pub(crate) fn store(out: Out<'a>) -> Self {
        Self { out, slope: None, posts: &[] }
    }

    /// Chooses the compiled operation and goes on with it: short lists that fit the registers of a tile have one of their own, all
    /// others are applied one by one to the tile in L1.
    pub(crate) fn compile(self, then: impl WithFinish) {
        let Self { out, slope, posts } = self;
        match (posts, slope) {
            ([], None) => then.with(&mut Finish::<Store>::new(out, None, After::NOTHING)),
            (&[Post::Add(v)], None) => then.with(&mut Finish::<AddSkip>::new(out, Some(v), After::NOTHING)),
            ([Post::Act(Activation::Relu)], None) => then.with(&mut Finish::<Relu>::new(out, None, After::NOTHING)),
            (&[Post::Mask(v)], None) => then.with(&mut Finish::<ReluMask>::new(out, Some(v), After::NOTHING)),
            (&[Post::Times(v)], None) => then.with(&mut Finish::<Times>::new(out, Some(v), After::NOTHING)),
            // Chains wait, and z is stored, where the slope will be: that of a hidden value is in panels, the result perhaps not.
            (_, Some(slope)) => then.with(&mut Finish::<Store>::new(slope, None, After { posts, to: Some(out) })),
            (_, None) => then.with(&mut Finish::<Store>::new(out, None, After { posts, to: None })),
        }
    }

    /// Whether [`Epilogue::compile`] has an operation of its own for a list: for explanations.
    pub(crate) fn in_registers<V>(posts: &[Post<V>], slope: bool) -> bool {
        let short = matches!(posts, [] | [Post::Add(_) | Post::Mask(_) | Post::Times(_) | Post::Act(Activation::Relu)]);
        short && !slope
    }
}

/// One row of one panel, 16 columns, from the accumulators and the second operand.
pub(crate) trait Op: Copy {
    /// Whether there is a second operand; without one, `aux` is anything.
    const AUX: bool;
    fn row<S: Simd>(s: S, acc: S::Row, aux: S::Row) -> S::Row;
}

/// f(a, b), vector by vector.
#[inline(always)]
fn zip<S: Simd>(mut a: S::Row, b: S::Row, f: impl Fn(S::V, S::V) -> S::V) -> S::Row {
    for v in 0..const { PANEL.div_ceil(S::LANES) } {
        a.as_mut()[v] = f(a.as_ref()[v], b.as_ref()[v]);
    }
    a
}

/// acc
#[derive(Clone, Copy)]
pub(crate) struct Store;
impl Op for Store {
    const AUX: bool = false;
    #[inline(always)]
    fn row<S: Simd>(_: S, acc: S::Row, _: S::Row) -> S::Row {
        acc
    }
}

/// acc + aux
#[derive(Clone, Copy)]
pub(crate) struct AddSkip;
impl Op for AddSkip {
    const AUX: bool = true;
    #[inline(always)]
    fn row<S: Simd>(s: S, acc: S::Row, aux: S::Row) -> S::Row {
        zip::<S>(acc, aux, |f, x| s.add(f, x))
    }
}

/// max(acc, 0)
#[derive(Clone, Copy)]
pub(crate) struct Relu;
impl Op for Relu {
    const AUX: bool = false;
    #[inline(always)]
    fn row<S: Simd>(s: S, acc: S::Row, _: S::Row) -> S::Row {
        zip::<S>(acc, acc, |z, _| activation::Relu.value(s, z))
    }
}

/// acc if aux > 0, acc * 0 elsewhere
#[derive(Clone, Copy)]
pub(crate) struct ReluMask;
impl Op for ReluMask {
    const AUX: bool = true;
    #[inline(always)]
    fn row<S: Simd>(s: S, acc: S::Row, aux: S::Row) -> S::Row {
        zip::<S>(acc, aux, |g, h| s.mul(g, activation::Relu.grad(s, h)))
    }
}

/// acc * aux
#[derive(Clone, Copy)]
pub(crate) struct Times;
impl Op for Times {
    const AUX: bool = true;
    #[inline(always)]
    fn row<S: Simd>(s: S, acc: S::Row, aux: S::Row) -> S::Row {
        zip::<S>(acc, aux, |g, slope| s.mul(g, slope))
    }
}

/// What is done to a tile once it is stored, while it is in L1.
struct After<'a> {
    posts: &'a [Post<In<'a>>],
    /// Where the result goes, if the tile itself becomes the slope.
    to: Option<Out<'a>>,
}

impl After<'_> {
    const NOTHING: Self = Self { posts: &[], to: None };
}

/// Part of a matrix: some rows of some panels.
#[derive(Debug, Clone, Copy)]
struct Range {
    row: usize,
    rows: usize,
    panel: usize,
    panels: usize,
}

/// The accumulators of a tile: `MR` rows of `NP` panels.
pub(crate) type Acc<S, const MR: usize, const NP: usize> = [[<S as Simd>::Row; NP]; MR];

impl<'a, O: Op> Finish<'a, O> {
    #[inline(always)]
    fn new(out: Out<'a>, aux: Option<In<'a>>, after: After<'a>) -> Self {
        let range = Range { row: 0, rows: 0, panel: 0, panels: 0 };
        Self { target: Target { out, aux, after, range }, op: PhantomData }
    }

    /// Announces the tile at row `i0`, panel `p0`.
    #[inline(always)]
    pub(crate) fn begin<const MR: usize, const NP: usize>(&mut self, i0: usize, p0: usize) {
        self.target.range = Range { row: i0, rows: MR, panel: p0, panels: NP };
    }

    /// Finishes the tile at row `i0`, panel `p0`.
    #[inline(always)]
    pub(crate) fn tile<S: Simd, const MR: usize, const NP: usize>(
        &mut self,
        s: S,
        acc: Acc<S, MR, NP>,
        i0: usize,
        p0: usize,
    ) {
        let Target { out, aux, .. } = &mut self.target;
        if O::AUX {
            let aux = aux.and_then(|aux| aux.window::<MR, NP>(i0, p0));
            match (aux, out.window_mut::<MR, NP>(i0, p0)) {
                (Some(aux), Some(mut out)) => {
                    for i in 0..MR {
                        for p in 0..NP {
                            out.store(s, i, p, O::row(s, acc[i][p], aux.load(s, i, p)));
                        }
                    }
                }
                _ => self.edge::<S, MR, NP>(s, acc),
            }
        } else if let Some(mut out) = out.window_mut::<MR, NP>(i0, p0) {
            for i in 0..MR {
                for p in 0..NP {
                    out.store(s, i, p, O::row(s, acc[i][p], acc[i][p]));
                }
            }
        } else {
            self.edge::<S, MR, NP>(s, acc);
        }
        if !self.target.after.posts.is_empty() {
            s.call(AfterTile { target: &mut self.target });
        }
    }

    /// A tile whose last panel is cut: through memory, in a function of its own.
    #[inline(always)]
    fn edge<S: Simd, const MR: usize, const NP: usize>(&mut self, s: S, acc: Acc<S, MR, NP>) {
        let mut tile = [[[0.0; PANEL]; NP]; MR];
        for i in 0..MR {
            for p in 0..NP {
                store_cells(s, &mut tile[i][p], acc[i][p]);
            }
        }
        s.call(EdgeTile::<O> { tile: tile.as_flattened(), target: &mut self.target, op: PhantomData });
    }
}

/// out = op(tile, aux), cell by cell.
struct EdgeTile<'t, 'a, O> {
    tile: &'t [[f32; PANEL]],
    target: &'t mut Target<'a>,
    op: PhantomData<O>,
}

impl<O: Op> Kernel for EdgeTile<'_, '_, O> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Target { out, aux, range: Range { row, rows, panel, panels }, .. } = self.target;
        for i in 0..*rows {
            for p in 0..*panels {
                let acc = load_cells(s, &self.tile[i * *panels + p]);
                let aux = aux.as_ref().map_or(acc, |aux| load_cells(s, aux.at(*row + i, *panel + p)));
                store_cells(s, out.at(*row + i, *panel + p), O::row(s, acc, aux));
            }
        }
    }
}

/// The loop after a tile.
struct AfterTile<'t, 'a> {
    target: &'t mut Target<'a>,
}

impl Kernel for AfterTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Target { out, after: After { posts, to }, range, .. } = self.target;
        let (out, posts) = match (to, *posts) {
            (Some(to), [Post::Act(phi), posts @ ..]) => {
                with_act!(*phi, act => both(s, to, out, *range, act));
                (to, posts)
            }
            (_, posts) => (out, posts),
        };
        for post in posts {
            match *post {
                Post::Act(phi) => with_act!(phi, act => map(s, out, None, *range, Value(act))),
                Post::Times(v) => map(s, out, Some(v), *range, Mul),
                Post::Mask(v) => map(s, out, Some(v), *range, MulMask),
                Post::Add(v) => map(s, out, Some(v), *range, Add),
            }
        }
    }
}

/// A function of two vectors. Not a closure: that would not be sure to be inlined, and code that is not inlined into a function of
/// its instruction set is a call for each operation.
trait Each: Copy {
    fn each<S: Simd>(self, s: S, a: S::V, b: S::V) -> S::V;
}

/// phi(a)
#[derive(Clone, Copy)]
struct Value<A>(A);
impl<A: Act> Each for Value<A> {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, a: S::V, _: S::V) -> S::V {
        self.0.value(s, a)
    }
}

/// a b
#[derive(Clone, Copy)]
struct Mul;
impl Each for Mul {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, a: S::V, b: S::V) -> S::V {
        s.mul(a, b)
    }
}

/// a if b > 0, a * 0 elsewhere
#[derive(Clone, Copy)]
struct MulMask;
impl Each for MulMask {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, a: S::V, b: S::V) -> S::V {
        s.mul(a, activation::Relu.grad(s, b))
    }
}

/// a + b
#[derive(Clone, Copy)]
struct Add;
impl Each for Add {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, a: S::V, b: S::V) -> S::V {
        s.add(a, b)
    }
}

/// to = f(to, from), elementwise on a range; without `from`, its value is anything.
#[inline(always)]
fn map<S: Simd>(s: S, to: &mut Out<'_>, from: Option<In<'_>>, range: Range, f: impl Each) {
    let Range { row, rows, panel, panels } = range;
    for p in panel..panel + panels {
        // In panels, the rows of a tile are one piece of memory.
        if const { PANEL.is_multiple_of(S::LANES) }
            && let Some(to) = to.rows_mut(row, rows, p)
        {
            match from.map(|from| from.rows(row, rows, p)) {
                None => {
                    for to in to.chunks_exact_mut(S::LANES) {
                        let v = s.load(to);
                        s.store(to, f.each(s, v, v));
                    }
                    continue;
                }
                Some(Some(from)) => {
                    for (to, from) in to.chunks_exact_mut(S::LANES).zip(from.chunks_exact(S::LANES)) {
                        s.store(to, f.each(s, s.load(to), s.load(from)));
                    }
                    continue;
                }
                Some(None) => {}
            }
        }
        for i in row..row + rows {
            let mut a = load_cells(s, to.at(i, p));
            let b = from.map_or(a, |from| load_cells(s, from.at(i, p)));
            for v in 0..const { PANEL.div_ceil(S::LANES) } {
                a.as_mut()[v] = f.each(s, a.as_ref()[v], b.as_ref()[v]);
            }
            store_cells(s, to.at(i, p), a);
        }
    }
}

/// to = phi(z) and z = phi'(z), elementwise on a range.
#[inline(always)]
fn both<S: Simd>(s: S, to: &mut Out<'_>, z: &mut Out<'_>, range: Range, act: impl Act) {
    let Range { row, rows, panel, panels } = range;
    for p in panel..panel + panels {
        if const { PANEL.is_multiple_of(S::LANES) }
            && let (Some(to), Some(z)) = (to.rows_mut(row, rows, p), z.rows_mut(row, rows, p))
        {
            for (to, z) in to.chunks_exact_mut(S::LANES).zip(z.chunks_exact_mut(S::LANES)) {
                let v = s.load(z);
                s.store(to, act.value(s, v));
                s.store(z, act.grad(s, v));
            }
            continue;
        }
        for i in row..row + rows {
            let (mut value, mut grad) = (load_cells(s, z.at(i, p)), load_cells(s, z.at(i, p)));
            for v in 0..const { PANEL.div_ceil(S::LANES) } {
                value.as_mut()[v] = act.value(s, value.as_ref()[v]);
                grad.as_mut()[v] = act.grad(s, grad.as_ref()[v]);
            }
            store_cells(s, to.at(i, p), value);
            store_cells(s, z.at(i, p), grad);
        }
    }
}

/// out = a * b over whole panels.
pub(crate) fn times(isa: Isa, a: PanelRef<'_>, b: PanelRef<'_>, out: PanelMut<'_>) {
    let range = Range { row: 0, rows: a.rows(), panel: 0, panels: panels(a.cols()) };
    let out = out.into_data();
    out.copy_from_slice(a.data());
    isa.run(ScalePanels { to: PanelMut::new(out, a.rows(), a.cols()).into(), by: b.into(), range });
}

struct ScalePanels<'a> {
    to: Out<'a>,
    by: In<'a>,
    range: Range,
}

impl Kernel for ScalePanels<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        map(s, &mut self.to, Some(self.by), self.range, Mul);
    }
}
