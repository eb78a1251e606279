//! Epilogues: what happens to the accumulators of a tile after the last k, before they are stored. One formula each.
//!
//! What is cheap is done to the accumulators in registers ([`Op`]). Activations other than ReLU take 15 to 35 instructions a
//! vector; unrolled over 28 accumulators, for each tile size and activation, they would be megabytes of code. They run as a
//! rolled loop over the tile that was just stored ([`After`]), which is still in L1: one more load and store a vector, beside
//! the arithmetic.

use super::cells::{In, Out};
use super::lanes::{load_cells, mul_rows, store_cells};
use super::panels::{PANEL, PanelRef, panels};
use crate::Activation;
use crate::activation::{self, Act, with_act};
use crate::random::{self, Drawn, Mask};

use crate::simd::{Isa, Kernel, Simd};
use std::marker::PhantomData;

/// One thing that is done to finished chains, one rounding an operation: with values `V`, rows `R` that all rows share, and masks `M`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Post<V, R = V, M = Mask> {
    /// acc = phi(acc).
    Act(Activation),
    /// acc = acc * v.
    Times(V),
    /// acc = acc if v > 0, else acc * 0: the slope of ReLU, told from its output.
    Mask(V),
    /// acc = acc + v.
    Add(V),
    /// acc = acc * s.
    Scale(Scale<R>),
    /// acc = fma(s, acc, v).
    ScaleAdd(Scale<R>, V),
    /// acc = fma(c, v, acc).
    AddScaled(f32, V),
    /// acc = acc * m, m the factor of the element in a mask. Before all else of a list, it is done to the chains themselves, which a second
    /// result is made of.
    Drop(M),
}

/// A factor of all rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scale<R> {
    /// One number.
    Number(f32),
    /// A row of them.
    Row(R),
}

impl<V, R, M> Post<V, R, M> {
    /// The same with other operands; None if one has none.
    #[inline]
    pub(crate) fn map<T, U, N>(
        self,
        value: impl FnOnce(V) -> Option<T>,
        row: impl FnOnce(R) -> Option<Scale<U>>,
        mask: impl FnOnce(M) -> Option<N>,
    ) -> Option<Post<T, U, N>> {
        Some(match self {
            Post::Act(phi) => Post::Act(phi),
            Post::Times(v) => Post::Times(value(v)?),
            Post::Mask(v) => Post::Mask(value(v)?),
            Post::Add(v) => Post::Add(value(v)?),
            Post::Scale(scale) => Post::Scale(scale.map(row)?),
            Post::ScaleAdd(scale, v) => Post::ScaleAdd(scale.map(row)?, value(v)?),
            Post::AddScaled(c, v) => Post::AddScaled(c, value(v)?),
            Post::Drop(m) => Post::Drop(mask(m)?),
        })
    }
}

impl<V> Post<V> {
    /// As [`Post::map`], one function for values and rows.
    pub(crate) fn each<T>(self, mut f: impl FnMut(V) -> Option<T>) -> Option<Post<T>> {
        Some(match self {
            Post::Scale(Scale::Row(row)) => Post::Scale(Scale::Row(f(row)?)),
            Post::ScaleAdd(Scale::Row(row), v) => Post::ScaleAdd(Scale::Row(f(row)?), f(v)?),
            other => return other.map(f, |_| None, Some),
        })
    }
}

impl<R> Scale<R> {
    #[inline]
    fn map<U>(self, row: impl FnOnce(R) -> Option<Scale<U>>) -> Option<Scale<U>> {
        match self {
            Scale::Number(c) => Some(Scale::Number(c)),
            Scale::Row(v) => row(v),
        }
    }
}

/// What a tile does, with the cells that it reads and parameters from the first of its columns on.
pub(crate) type TilePost<'a> = Post<In<'a>, &'a [f32], Drawn>;

/// A second result of a tile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Aux<V> {
    /// phi'(z), where the list has an activation: it shares most of its arithmetic with phi.
    Slope,
    /// The finished chains as they were.
    Chains,
    /// The finished chains times v.
    Product(V),
}

/// What becomes of the finished chains of a GEMM, in this order, and where the result goes.
pub(crate) struct Epilogue<'a> {
    pub(crate) out: Out<'a>,
    pub(crate) posts: &'a [TilePost<'a>],
    /// A second result, and where it goes.
    pub(crate) aux: Option<(Aux<In<'a>>, Out<'a>)>,
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
        Self { out, posts: &[], aux: None }
    }

    /// Where tiles are stored and chains wait, and what comes after: a tile waits where the second result will be, which is in panels, the first
    /// perhaps not.
    fn placed(self) -> (Out<'a>, After<'a>) {
        let Self { out, posts, aux } = self;
        match aux {
            Some((aux, place)) => (place, After { posts, beside: Some((aux, out)) }),
            None => (out, After { posts, beside: None }),
        }
    }

    /// Chooses the compiled operation and goes on with it: what comes first of a list has one of its own, if it fits the registers of a tile;
    /// all else is applied, one after the other, to the tile in L1.
    pub(crate) fn compile(self, then: impl WithFinish) {
        let (out, After { posts, beside }) = self.placed();
        // A slope is of what the activation finds, other second results of the chains as they were.
        let raw = matches!(beside, Some((Aux::Chains | Aux::Product(_), _)));
        match *posts {
            [Post::Add(v), ref posts @ ..] if !raw => {
                then.with(&mut Finish::<AddSkip>::new(out, Some(v), After { posts, beside }));
            }
            [Post::Mask(v), ref posts @ ..] if !raw => {
                then.with(&mut Finish::<ReluMask>::new(out, Some(v), After { posts, beside }));
            }
            [Post::Times(v), ref posts @ ..] if !raw => {
                then.with(&mut Finish::<Times>::new(out, Some(v), After { posts, beside }));
            }
            [Post::Act(Activation::Relu), ref posts @ ..] if beside.is_none() => {
                then.with(&mut Finish::<Relu>::new(out, None, After { posts, beside }));
            }
            _ => then.with(&mut Finish::<Store>::new(out, None, After { posts, beside })),
        }
    }

    /// Whether [`Epilogue::compile`] has an operation of its own for a list: for explanations.
    pub(crate) fn in_registers<V, R, M>(posts: &[Post<V, R, M>], aux: bool) -> bool {
        let short = matches!(posts, [] | [Post::Add(_) | Post::Mask(_) | Post::Times(_) | Post::Act(Activation::Relu)]);
        short && !aux
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
    posts: &'a [TilePost<'a>],
    /// What the tile itself becomes, and where the result goes then.
    beside: Option<(Aux<In<'a>>, Out<'a>)>,
}

impl After<'_> {
    const NOTHING: Self = Self { posts: &[], beside: None };

    fn is_nothing(&self) -> bool {
        self.posts.is_empty() && self.beside.is_none()
    }
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
        if !self.target.after.is_nothing() {
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
        let Target { out: tile, after: After { posts, beside }, range, .. } = self.target;
        let range = *range;
        let Some((aux, out)) = beside else { return apply(s, tile, posts, range) };
        let drops = posts.iter().take_while(|post| matches!(post, Post::Drop(_))).count();
        let (drops, posts) = posts.split_at(drops);
        apply(s, tile, drops, range);
        match *aux {
            Aux::Slope => {
                let at = posts.iter().position(|post| matches!(post, Post::Act(_))).unwrap_or(posts.len());
                let (before, from) = posts.split_at(at);
                apply(s, tile, before, range);
                if let [Post::Act(phi), after @ ..] = from {
                    with_act!(*phi, act => both(s, out, tile, range, act));
                    apply(s, out, after, range);
                }
            }
            Aux::Chains => {
                map(s, out, [Some(tile.as_in()), None], range, Second);
                apply(s, out, posts, range);
            }
            Aux::Product(v) => {
                map(s, out, [Some(tile.as_in()), None], range, Second);
                apply(s, out, posts, range);
                map(s, tile, [Some(v), None], range, Mul);
            }
        }
    }
}

/// Does a list of things to a range.
#[inline(always)]
fn apply<S: Simd>(s: S, out: &mut Out<'_>, posts: &[TilePost<'_>], range: Range) {
    let row = |row, out: &Out<'_>| Some(In::repeated(row, range.row + range.rows, out.cols()));
    for post in posts {
        match *post {
            Post::Act(phi) => with_act!(phi, act => map(s, out, [None; 2], range, Value(act))),
            Post::Times(v) => map(s, out, [Some(v), None], range, Mul),
            Post::Mask(v) => map(s, out, [Some(v), None], range, MulMask),
            Post::Add(v) => map(s, out, [Some(v), None], range, Add),
            Post::Scale(Scale::Number(c)) => map(s, out, [None; 2], range, MulBy(c)),
            Post::Scale(Scale::Row(scale)) => map(s, out, [row(scale, out), None], range, Mul),
            Post::ScaleAdd(Scale::Number(c), v) => map(s, out, [Some(v), None], range, MulByAdd(c)),
            Post::ScaleAdd(Scale::Row(scale), v) => map(s, out, [Some(v), row(scale, out)], range, MulAdd),
            Post::AddScaled(c, v) => map(s, out, [Some(v), None], range, AddTimes(c)),
            Post::Drop(ref mask) => drop_some(s, out, mask, range),
        }
    }
}

/// A function of up to three vectors, and of how many. Not a closure: that would not be sure to be inlined, and code that is not inlined
/// into a function of its instruction set is a call for each operation.
trait Each: Copy {
    const OPERANDS: usize;
    fn each<S: Simd>(self, s: S, a: S::V, b: S::V, c: S::V) -> S::V;
}

/// Functions as types: what each is of, and what it is.
macro_rules! each {
    ($($(#[$doc:meta])* $name:ident $(($field:ty))? of $operands:literal: |$f:ident, $s:ident, $a:ident, $b:ident, $c:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        struct $name $(($field))?;
        impl Each for $name {
            const OPERANDS: usize = $operands;
            #[inline(always)]
            fn each<S: Simd>(self, $s: S, $a: S::V, $b: S::V, $c: S::V) -> S::V {
                let $f = self;
                $body
            }
        }
    )*};
}

each! {
    /// b
    Second of 2: |_f, _s, _a, b, _c| b;
    /// a b
    Mul of 2: |_f, s, a, b, _c| s.mul(a, b);
    /// a if b > 0, a * 0 elsewhere
    MulMask of 2: |_f, s, a, b, _c| s.mul(a, activation::Relu.grad(s, b));
    /// a + b
    Add of 2: |_f, s, a, b, _c| s.add(a, b);
    /// a times a number
    MulBy(f32) of 1: |f, s, a, _b, _c| s.mul(a, s.splat(f.0));
    /// fma(number, a, b)
    MulByAdd(f32) of 2: |f, s, a, b, _c| s.fma(a, s.splat(f.0), b);
    /// fma(number, b, a)
    AddTimes(f32) of 2: |f, s, a, b, _c| s.fma(b, s.splat(f.0), a);
    /// fma(c, a, b)
    MulAdd of 3: |_f, s, a, b, c| s.fma(a, c, b);
}

/// phi(a)
#[derive(Clone, Copy)]
struct Value<A>(A);
impl<A: Act> Each for Value<A> {
    const OPERANDS: usize = 1;
    #[inline(always)]
    fn each<S: Simd>(self, s: S, a: S::V, _: S::V, _: S::V) -> S::V {
        self.0.value(s, a)
    }
}

/// to = f(to, from...), elementwise on a range.
#[inline(always)]
fn map<S: Simd, F: Each>(s: S, to: &mut Out<'_>, from: [Option<In<'_>>; 2], range: Range, f: F) {
    let Range { row, rows, panel, panels } = range;
    let operands = || from.into_iter().take(F::OPERANDS - 1);
    for p in panel..panel + panels {
        // In panels, the rows of a tile are one piece of memory.
        if const { PANEL.is_multiple_of(S::LANES) }
            && let Some(to) = to.rows_mut(row, rows, p)
        {
            let mut pieces = operands().map(|from| from.and_then(|from| from.rows(row, rows, p)));
            match (F::OPERANDS, pieces.next().flatten(), pieces.next().flatten()) {
                (1, ..) => {
                    for to in to.chunks_exact_mut(S::LANES) {
                        let v = s.load(to);
                        s.store(to, f.each(s, v, v, v));
                    }
                    continue;
                }
                (2, Some(from), _) => {
                    for (to, from) in to.chunks_exact_mut(S::LANES).zip(from.chunks_exact(S::LANES)) {
                        let b = s.load(from);
                        s.store(to, f.each(s, s.load(to), b, b));
                    }
                    continue;
                }
                _ => {}
            }
        }
        for i in row..row + rows {
            let mut a = to.row(s, i, p);
            let mut operands = operands().map(|from| from.map_or(a, |from| from.row(s, i, p)));
            let b = operands.next().unwrap_or(a);
            let c = operands.next().unwrap_or(a);
            for v in 0..const { PANEL.div_ceil(S::LANES) } {
                a.as_mut()[v] = f.each(s, a.as_ref()[v], b.as_ref()[v], c.as_ref()[v]);
            }
            to.set_row(s, i, p, a);
        }
    }
}

/// Multiplies a range by the factors of a mask, eight rows of the batch at a time.
#[inline(always)]
fn drop_some<S: Simd>(s: S, out: &mut Out<'_>, mask: &Drawn, range: Range) {
    let Range { row, rows, panel, panels } = range;
    let mut factors = [[0.0; PANEL]; random::ROWS];
    for p in panel..panel + panels {
        let mut i = row;
        while i < row + rows {
            let at = mask.factors(i, p * PANEL, &mut factors);
            for factors in &factors[at..random::ROWS.min(at + row + rows - i)] {
                let product = mul_rows(s, out.row(s, i, p), load_cells(s, factors));
                out.set_row(s, i, p, product);
                i += 1;
            }
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
            let (mut value, mut grad) = (z.row(s, i, p), z.row(s, i, p));
            for v in 0..const { PANEL.div_ceil(S::LANES) } {
                value.as_mut()[v] = act.value(s, value.as_ref()[v]);
                grad.as_mut()[v] = act.grad(s, grad.as_ref()[v]);
            }
            to.set_row(s, i, p, value);
            z.set_row(s, i, p, grad);
        }
    }
}

/// What posts do, on a matrix that no GEMM made just now: out = posts(a), and what is beside it.
pub(crate) fn each(isa: Isa, a: PanelRef<'_>, epilogue: Epilogue<'_>) {
    assert_eq!(epilogue.out.cols(), a.cols(), "output columns");
    let (out, after) = epilogue.placed();
    let range = Range { row: 0, rows: 0, panel: 0, panels: 1 };
    isa.run(EachPanel { a: a.into(), rows: a.rows(), target: Target { out, aux: None, after, range } });
}

struct EachPanel<'a> {
    a: In<'a>,
    rows: usize,
    target: Target<'a>,
}

impl Kernel for EachPanel<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        /// Rows of a panel at a time: a KiB, which stays in L1 from one post to the next.
        const ROWS: usize = 16;
        for panel in 0..panels(self.a.cols()) {
            for row in (0..self.rows).step_by(ROWS) {
                self.target.range = Range { row, rows: ROWS.min(self.rows - row), panel, panels: 1 };
                map(s, &mut self.target.out, [Some(self.a), None], self.target.range, Second);
                if !self.target.after.is_nothing() {
                    s.call(AfterTile { target: &mut self.target });
                }
            }
        }
    }
}
