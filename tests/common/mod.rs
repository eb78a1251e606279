//! What the tests share: seeded data, comparison of bits, matrices with canaries around them, networks with their oracle, and
//! the instruction sets, threads and block sizes that every promise is checked on.
#![allow(dead_code, reason = "each test binary compiles this file and uses a part of it")]

pub(crate) mod family;
pub(crate) mod optimizers;
pub(crate) mod problem;
pub(crate) mod watchdog;

use proptest::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use resblock::bounds::Running;
use resblock::reference::{self, BlockGrads, BlockOut, BlockParams, LinearGrads, Real};
use resblock::{
    Activation, Affine, Block, Blocking, Context, Gradients, Isa, Layer, Linear, Machine, MatMut, MatRef, Par, Role,
    Skip, Stack,
};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Every activation.
pub(crate) const ACTIVATIONS: [Activation; 14] = Activation::ALL;

// ---------------------------------------------------------------------------------------------------- random data

/// SplitMix64: seeded numbers with the same bits everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform on [-1, 1), 24 bits: sums of products round.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }

    /// As `vec`, with the values that must propagate as IEEE 754 says strewn in: about one in `rarity`.
    pub(crate) fn wild(&mut self, len: usize, rarity: usize) -> Vec<f32> {
        const WILD: [f32; 8] =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -f32::MIN_POSITIVE, f32::MAX];
        (0..len).map(|_| if self.below(rarity) == 0 { WILD[self.below(WILD.len())] } else { self.unit() }).collect()
    }
}

// ------------------------------------------------------------------------------------------------ comparing bits

/// The same bits, or NaN both: which NaN is the one thing that IEEE 754 leaves open.
pub(crate) fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Panics at the first element whose bits differ.
#[track_caller]
pub(crate) fn assert_same(what: impl Display, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    if let Some(i) = (0..got.len()).find(|&i| !same(got[i], want[i])) {
        let wrong = (0..got.len()).filter(|&i| !same(got[i], want[i])).count();
        panic!(
            "{what}: element {i} of {} is {:?} ({:08x}), expected {:?} ({:08x}); {wrong} elements differ",
            got.len(),
            got[i],
            got[i].to_bits(),
            want[i],
            want[i].to_bits(),
        );
    }
}

/// Panics where a computed value lies outside its running error bound; else the largest error as a fraction of its bound.
#[track_caller]
pub(crate) fn assert_within(what: impl Display, got: &[f32], want: &[Running]) -> f64 {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let mut largest = 0.0_f64;
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want.value()).abs();
        let bound = want.error();
        assert!(error <= bound, "{what}[{i}]: {got} but {}, off by {error:e}, bound {bound:e}", want.value());
        if error > 0.0 {
            largest = largest.max(error / bound);
        }
    }
    largest
}

pub(crate) fn to_running(v: &[f32]) -> Vec<Running> {
    v.iter().map(|&x| Running::from(x)).collect()
}

pub(crate) fn to_f64(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&x| f64::from(x)).collect()
}

// ------------------------------------------------------------------------------- instruction sets, threads, blocks

/// The instruction sets under test: all that this CPU has, or `RESBLOCK_ISA` alone if that is set.
///
/// Fails if `RESBLOCK_REQUIRE_ISA` (a comma list) names one that is not among them: a test run that silently left out the set
/// it was meant for would be worse than none.
#[track_caller]
pub(crate) fn isas() -> Vec<Isa> {
    let under_test: Vec<Isa> = match std::env::var("RESBLOCK_ISA") {
        Ok(name) => vec![name.parse().expect("RESBLOCK_ISA")],
        Err(_) => Isa::available().into_iter().collect(),
    };
    for name in required_isas() {
        assert!(
            under_test.iter().any(|isa| isa.name() == name),
            "RESBLOCK_REQUIRE_ISA wants {name:?}, but only {under_test:?} are under test"
        );
    }
    under_test
}

pub(crate) fn required_isas() -> Vec<String> {
    let list = std::env::var("RESBLOCK_REQUIRE_ISA").unwrap_or_default();
    list.split(',').map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect()
}

pub(crate) fn context(isa: Isa) -> Context {
    Context::new().expect("a usable RESBLOCK_ISA, or none").with_isa(isa).expect("an available set")
}

/// A context for each instruction set under test: one thread, default blocks.
pub(crate) fn contexts() -> impl Iterator<Item = Context> {
    isas().into_iter().map(context)
}

/// The context on the fastest set under test.
pub(crate) fn fastest() -> Context {
    context(isas()[0])
}

/// Every set against the sequential oracle, and the fastest alone where the point is not the instruction set.
pub(crate) const POOLS: [usize; 5] = [1, 2, 3, 8, 16];

/// The pool of so many threads, made once.
pub(crate) fn pool(threads: usize) -> &'static ThreadPool {
    static CELLS: [OnceLock<ThreadPool>; POOLS.len()] = [const { OnceLock::new() }; POOLS.len()];
    let at = POOLS.iter().position(|&n| n == threads).expect("one of POOLS");
    CELLS[at].get_or_init(|| ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool"))
}

/// Where a call runs: on the calling thread, or on up to so many threads of a pool of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    Seq,
    Rayon(usize),
}

pub(crate) const THREADS: [Threads; 5] =
    [Threads::Seq, Threads::Rayon(1), Threads::Rayon(2), Threads::Rayon(3), Threads::Rayon(8)];

impl Threads {
    pub(crate) fn run<R: Send>(self, ctx: Context, call: impl FnOnce(Context) -> R + Send) -> R {
        match self {
            Threads::Seq => call(ctx.with_par(Par::Seq)),
            // No pool can be made there: the call has to do without.
            Threads::Rayon(n) if cfg!(target_family = "wasm") => call(ctx.with_par(Par::Rayon(n))),
            // Two as a user has them; more so that small work is shared, too.
            Threads::Rayon(n) => {
                let ctx = if n > 2 { ctx.with_machine(eager()) } else { ctx };
                pool(n).install(|| call(ctx.with_par(Par::Rayon(n))))
            }
        }
    }
}

/// A machine on which threads cost nothing, and whose cores are so slow that everything is worth sharing.
pub(crate) fn eager() -> Machine {
    Machine { fma_per_us: 1, phase_ns: 0, thread_ns: 0, call_ns: 0, ..Machine::default() }
}

/// One on which, besides, no thread should read what another reads: columns are shared, and rows where there are threads left.
pub(crate) fn narrow() -> Machine {
    Machine { fma_per_us: 2000, l2_kib: 1, l2_mb_per_s: 1, l3_mb_per_s: 1, l3_all_mb_per_s: 1, ..eager() }
}

/// Block sizes that make every loop iterate on small matrices, and the default.
pub(crate) fn blockings() -> Vec<Blocking> {
    let tiny = |rows, hidden, depth| Blocking { rows, hidden, depth };
    vec![
        Blocking::default(),
        tiny(1, 1, 1),
        tiny(5, 17, 16),
        tiny(3, 40, 1000),
        tiny(usize::MAX, usize::MAX, usize::MAX),
    ]
}

// --------------------------------------------------------------------------------- matrices with canaries around

/// How a matrix lies in its slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Tight,
    /// Row-major with a gap after each row.
    Padded(usize),
    /// Column-major with a gap after each column.
    Transposed(usize),
    /// Gaps between the elements of a row, too.
    Spread(usize),
    /// Inputs only: every row the same memory.
    SameRow,
    /// Inputs only: every column the same memory.
    SameCol,
    /// Inputs only: one number.
    Constant,
    /// Inputs only: any strides.
    Strides(usize, usize),
}

/// For inputs and outputs.
pub(crate) const LAYOUTS: [Layout; 6] = [
    Layout::Tight,
    Layout::Padded(1),
    Layout::Padded(7),
    Layout::Transposed(0),
    Layout::Transposed(3),
    Layout::Spread(2),
];
/// For inputs alone.
pub(crate) const REPEATING: [Layout; 3] = [Layout::SameRow, Layout::SameCol, Layout::Constant];

impl Layout {
    pub(crate) fn strides(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Layout::Tight => (cols, 1),
            Layout::Padded(gap) => (cols + gap, 1),
            Layout::Transposed(gap) => (1, rows + gap),
            Layout::Spread(gap) => (2 * cols + gap, 2),
            Layout::SameRow => (0, 1),
            Layout::SameCol => (1, 0),
            Layout::Constant => (0, 0),
            Layout::Strides(row, col) => (row, col),
        }
    }
}

/// A NaN that no computation makes. A kernel that reads one poisons its result; one that writes one is found.
pub(crate) const CANARY: u32 = 0x7fd5_c0de;
/// Canaries before and after, unless a test says otherwise; odd, so that no view is aligned.
const MARGIN: usize = 21;

/// A matrix somewhere in a larger slice: canaries before it, after it, and between its elements.
#[derive(Debug, Clone)]
pub(crate) struct Grid {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    strides: (usize, usize),
    span: usize,
    margin: usize,
}

impl Grid {
    /// Canaries everywhere: an output that has not been written.
    pub(crate) fn new(layout: Layout, rows: usize, cols: usize) -> Self {
        Self::with_margin(layout, rows, cols, MARGIN)
    }

    /// With so many canaries before and after.
    pub(crate) fn with_margin(layout: Layout, rows: usize, cols: usize, margin: usize) -> Self {
        let strides = layout.strides(rows, cols);
        let span = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * strides.0 + (cols - 1) * strides.1 + 1 };
        Self { data: vec![f32::from_bits(CANARY); span + 2 * margin], rows, cols, strides, span, margin }
    }

    /// With these elements, row by row. (Of a layout that repeats elements, the last one written stays.)
    pub(crate) fn of(layout: Layout, rows: usize, cols: usize, values: &[f32]) -> Self {
        Self::new(layout, rows, cols).filled(values)
    }

    /// The same with these elements, row by row, as in [`Grid::of`].
    pub(crate) fn filled(mut self, values: &[f32]) -> Self {
        assert_eq!(values.len(), self.rows * self.cols);
        for (k, &v) in values.iter().enumerate() {
            let at = self.at(k / self.cols, k % self.cols);
            self.data[at] = v;
        }
        self
    }

    fn at(&self, i: usize, j: usize) -> usize {
        self.margin + i * self.strides.0 + j * self.strides.1
    }

    /// The elements, row by row.
    pub(crate) fn values(&self) -> Vec<f32> {
        (0..self.rows * self.cols).map(|k| self.data[self.at(k / self.cols, k % self.cols)]).collect()
    }

    pub(crate) fn view(&self) -> MatRef<'_> {
        let data = &self.data[self.margin..self.margin + self.span];
        MatRef::with_strides(data, self.rows, self.cols, self.strides.0, self.strides.1).expect("a view")
    }

    pub(crate) fn view_mut(&mut self) -> MatMut<'_> {
        let data = &mut self.data[self.margin..self.margin + self.span];
        MatMut::with_strides(data, self.rows, self.cols, self.strides.0, self.strides.1).expect("a view")
    }

    /// Panics if anything but the elements was written.
    #[track_caller]
    pub(crate) fn assert_canaries(&self, what: impl Display) {
        let mut inside = vec![false; self.data.len()];
        for k in 0..self.rows * self.cols {
            inside[self.at(k / self.cols, k % self.cols)] = true;
        }
        let broken = (0..self.data.len()).find(|&at| !inside[at] && self.data[at].to_bits() != CANARY);
        assert_eq!(broken, None, "{what}: a place outside the matrix was written");
    }

    /// Panics if anything at all was written since `new`.
    #[track_caller]
    pub(crate) fn assert_untouched(&self, what: impl Display) {
        assert!(self.data.iter().all(|v| v.to_bits() == CANARY), "{what}: the output was touched");
    }
}

/// A tight input.
pub(crate) fn mat(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef::new(data, rows, cols).expect("a matrix")
}

/// A tight output.
pub(crate) fn mat_mut(data: &mut [f32], rows: usize, cols: usize) -> MatMut<'_> {
    MatMut::new(data, rows, cols).expect("a matrix")
}

// ------------------------------------------------------------------------------------------ networks and oracles

/// An affine map in the oracle's form.
#[derive(Debug, Clone)]
pub(crate) struct Map {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// (outputs, inputs)
    pub(crate) w: Vec<f32>,
    pub(crate) b: Option<Vec<f32>>,
}

impl Map {
    pub(crate) fn random(rng: &mut Rng, inputs: usize, outputs: usize, bias: bool) -> Self {
        let scale = 1.5 / (inputs.max(1) as f32).sqrt();
        let w = rng.vec(inputs * outputs).iter().map(|w| w * scale).collect();
        Self { inputs, outputs, w, b: bias.then(|| rng.vec(outputs)) }
    }

    pub(crate) fn affine(&self) -> Affine {
        Affine::new(mat(&self.w, self.outputs, self.inputs), self.b.as_deref()).expect("an affine map")
    }

    fn params<T: From<f32>>(&self) -> (Vec<T>, Vec<T>) {
        let cast = |v: &[f32]| v.iter().map(|&x| T::from(x)).collect::<Vec<T>>();
        // A chain from 0 and a chain from a bias of 0 are the same chain.
        (cast(&self.w), self.b.as_deref().map_or_else(|| cast(&vec![0.0; self.outputs]), cast))
    }
}

/// A layer in the oracle's form.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    Linear { map: Map, phi: Activation, skip: bool },
    Block { first: Map, second: Map, phi: Activation, skip: bool },
}

impl Stage {
    pub(crate) fn linear(rng: &mut Rng, inputs: usize, outputs: usize, phi: Activation, bias: bool) -> Self {
        Stage::Linear { map: Map::random(rng, inputs, outputs, bias), phi, skip: false }
    }

    pub(crate) fn block(rng: &mut Rng, d: usize, h: usize, phi: Activation, skip: bool, bias: bool) -> Self {
        Stage::Block { first: Map::random(rng, d, h, bias), second: Map::random(rng, h, d, bias), phi, skip }
    }

    pub(crate) fn inputs(&self) -> usize {
        match self {
            Stage::Linear { map: first, .. } | Stage::Block { first, .. } => first.inputs,
        }
    }

    pub(crate) fn outputs(&self) -> usize {
        match self {
            Stage::Linear { map: last, .. } | Stage::Block { second: last, .. } => last.outputs,
        }
    }

    pub(crate) fn maps(&self) -> Vec<&Map> {
        match self {
            Stage::Linear { map, .. } => vec![map],
            Stage::Block { first, second, .. } => vec![first, second],
        }
    }

    pub(crate) fn build_linear(&self) -> Linear {
        let Stage::Linear { map, phi, skip } = self else { panic!("no linear layer") };
        let layer = Linear::new(map.affine(), *phi);
        if *skip { layer.with_skip().expect("a square layer") } else { layer }
    }

    pub(crate) fn build_block(&self) -> Block {
        let Stage::Block { first, second, phi, skip } = self else { panic!("no block") };
        let skip = if *skip { Skip::Identity } else { Skip::None };
        Block::new(first.affine(), second.affine(), *phi, skip).expect("a block")
    }
}

/// A stack in the oracle's form: widths (inputs, width, hidden, outputs).
pub(crate) fn random_stack(
    rng: &mut Rng,
    (inputs, width, hidden, outputs): (usize, usize, usize, usize),
    blocks: usize,
    phi: Activation,
    skip: bool,
) -> Vec<Stage> {
    let mut stages = vec![Stage::linear(rng, inputs, width, Activation::Identity, true)];
    stages.extend((0..blocks).map(|_| Stage::block(rng, width, hidden, phi, skip, true)));
    stages.push(Stage::linear(rng, width, outputs, Activation::Identity, true));
    stages
}

/// The names of all tensors of a stack of two blocks between projections, in order.
pub(crate) const NAMES: [&str; 12] = [
    "input.weight",
    "input.bias",
    "blocks.0.first.weight",
    "blocks.0.first.bias",
    "blocks.0.second.weight",
    "blocks.0.second.bias",
    "blocks.1.first.weight",
    "blocks.1.first.bias",
    "blocks.1.second.weight",
    "blocks.1.second.bias",
    "output.weight",
    "output.bias",
];

pub(crate) fn build_stack(stages: &[Stage]) -> Stack {
    let (input, rest) = stages.split_first().expect("an input projection");
    let (output, blocks) = rest.split_last().expect("an output projection");
    let blocks = blocks.iter().map(Stage::build_block).collect();
    Stack::from_layers(input.build_linear(), blocks, output.build_linear()).expect("a stack")
}

/// What the oracle computed in one stage.
#[derive(Debug, Clone)]
pub(crate) struct StageOut<T> {
    pub(crate) z: Vec<T>,
    pub(crate) h: Vec<T>,
    pub(crate) y: Vec<T>,
}

/// Gradients of one affine map.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MapGrad<T> {
    pub(crate) dw: Vec<T>,
    pub(crate) db: Vec<T>,
}

/// The oracle's forward pass: `reference::linear` and `reference::block`, one after the other. `outside` is a skip for the
/// last stage.
pub(crate) fn oracle_forward<T: Real + From<f32>>(
    stages: &[Stage],
    n: usize,
    x: &[T],
    outside: Option<&[T]>,
) -> Vec<StageOut<T>> {
    let mut outs: Vec<StageOut<T>> = Vec::new();
    for stage in stages {
        let x = outs.last().map_or(x, |out| &out.y);
        outs.push(match stage {
            Stage::Linear { map, phi, skip } => {
                let (w, b) = map.params::<T>();
                let skip = if *skip { Some(x) } else { outside };
                let b = map.b.is_some().then_some(&b[..]);
                let out = reference::linear((n, map.inputs, map.outputs), x, &w, b, *phi, skip);
                StageOut { z: out.z, h: Vec::new(), y: out.y }
            }
            Stage::Block { first, second, phi, skip } => {
                let ((w1, b1), (w2, b2)) = (first.params::<T>(), second.params::<T>());
                let params = BlockParams { w1: &w1, b1: &b1, w2: &w2, b2: &b2, phi: *phi, skip: *skip };
                let out = reference::block((n, first.inputs, first.outputs), x, params);
                StageOut { z: out.z, h: out.h, y: out.y }
            }
        });
    }
    outs
}

/// The oracle's backward pass: continues the chains in `grads` (one for each affine map) and returns dL/dy of each stage's
/// input, the first being dx.
pub(crate) fn oracle_backward<T: Real + From<f32>>(
    stages: &[Stage],
    n: usize,
    x: &[T],
    outs: &[StageOut<T>],
    dy: &[T],
    grads: &mut [MapGrad<T>],
) -> Vec<Vec<T>> {
    let mut below: Vec<Vec<T>> = vec![Vec::new(); stages.len()];
    let mut at = grads.len();
    for (index, stage) in stages.iter().enumerate().rev() {
        let x = if index == 0 { x } else { &outs[index - 1].y };
        let dy = below.get(index + 1).map_or(dy, |dy| &dy[..]).to_vec();
        let out = &outs[index];
        at -= stage.maps().len();
        match stage {
            Stage::Linear { map, phi, skip } => {
                let (w, _) = map.params::<T>();
                let grad = &mut grads[at];
                let (dw, db) = (std::mem::take(&mut grad.dw), std::mem::take(&mut grad.db));
                let mut all = LinearGrads { dx: Vec::new(), dw, db };
                let sizes = (n, map.inputs, map.outputs);
                reference::linear_backward(sizes, x, &w, *phi, &out.z, &dy, *skip, &mut all);
                *grad = MapGrad { dw: all.dw, db: all.db };
                below[index] = all.dx;
            }
            Stage::Block { first, second, phi, skip } => {
                let ((w1, b1), (w2, b2)) = (first.params::<T>(), second.params::<T>());
                let params = BlockParams { w1: &w1, b1: &b1, w2: &w2, b2: &b2, phi: *phi, skip: *skip };
                let sizes = (n, first.inputs, first.outputs);
                let mut all = BlockGrads::zeros(sizes);
                (all.dw1, all.db1) = (grads[at].dw.clone(), grads[at].db.clone());
                (all.dw2, all.db2) = (grads[at + 1].dw.clone(), grads[at + 1].db.clone());
                let out = BlockOut { z: out.z.clone(), h: out.h.clone(), y: out.y.clone() };
                reference::block_backward(sizes, x, params, &out, &dy, &mut all);
                grads[at] = MapGrad { dw: all.dw1, db: all.db1 };
                grads[at + 1] = MapGrad { dw: all.dw2, db: all.db2 };
                below[index] = all.dx;
            }
        }
    }
    below
}

/// Zero gradients in the oracle's form.
pub(crate) fn zero_grads<T: Real>(stages: &[Stage]) -> Vec<MapGrad<T>> {
    let zeros = |len| vec![T::ZERO; len];
    let maps = stages.iter().flat_map(Stage::maps);
    maps.map(|m| MapGrad { dw: zeros(m.inputs * m.outputs), db: zeros(m.outputs) }).collect()
}

/// Random gradients in the oracle's form: what an accumulating backward goes on from.
pub(crate) fn random_grads(rng: &mut Rng, stages: &[Stage]) -> Vec<MapGrad<f32>> {
    let maps = stages.iter().flat_map(Stage::maps);
    maps.map(|m| MapGrad { dw: rng.vec(m.inputs * m.outputs), db: rng.vec(m.outputs) }).collect()
}

/// Gradients of `layer` that hold `values`.
pub(crate) fn gradients_of<L: Layer>(layer: &L, values: &[MapGrad<f32>]) -> Gradients {
    let mut grads = Gradients::new(layer).expect("gradients");
    for (i, value) in values.iter().enumerate() {
        let (map, name) = (layer.affine(i).expect("a map"), layer.affine_name(i));
        let dw = mat(&value.dw, map.outputs(), map.inputs());
        assert_eq!(grads.set(name.weight(), dw), Ok(true));
        let db = mat(&value.db, 1, value.db.len());
        assert_eq!(grads.set(name.bias(), db), Ok(map.bias().is_some()));
    }
    grads
}

/// What `grads` holds; nothing for what was declined or does not exist.
pub(crate) fn values_of<L: Layer>(layer: &L, grads: &Gradients) -> Vec<MapGrad<f32>> {
    let mut values = vec![MapGrad { dw: Vec::new(), db: Vec::new() }; layer.affine_count()];
    for parameter in grads.iter() {
        let at =
            (0..layer.affine_count()).find(|&i| layer.affine_name(i) == parameter.name().place).expect("a known name");
        let (rows, cols) = parameter.shape();
        let mut out = vec![0.0; rows * cols];
        parameter.write_to(mat_mut(&mut out, rows, cols)).expect("a copy");
        if parameter.role() == Role::Bias {
            values[at].db = out;
        } else {
            values[at].dw = out;
        }
    }
    values
}

/// The gradients that `layer` has, out of the oracle's: those of biases that do not exist are left out.
pub(crate) fn existing<L: Layer>(layer: &L, values: &[MapGrad<f32>]) -> Vec<MapGrad<f32>> {
    let mut values = values.to_vec();
    for (i, value) in values.iter_mut().enumerate() {
        if layer.affine(i).is_some_and(|map| map.bias().is_none()) {
            value.db = Vec::new();
        }
    }
    values
}

#[track_caller]
pub(crate) fn assert_same_grads(what: impl Display, got: &[MapGrad<f32>], want: &[MapGrad<f32>]) {
    assert_eq!(got.len(), want.len(), "{what}: number of maps");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_same(format_args!("{what}: dW of map {i}"), &got.dw, &want.dw);
        assert_same(format_args!("{what}: db of map {i}"), &got.db, &want.db);
    }
}

/// Every parameter, copied out in order: for networks made by a seed.
pub(crate) fn parameters_of<L: Layer>(layer: &L) -> Vec<Vec<f32>> {
    let copy = |p: resblock::TensorRef<'_>| {
        let (rows, cols) = p.shape();
        let mut out = vec![0.0; rows * cols];
        p.write_to(mat_mut(&mut out, rows, cols)).expect("a copy");
        out
    };
    layer.parameters().map(copy).collect()
}

// ---------------------------------------------------------------------------------------------------- strategies

/// Sizes at the edges of vectors, panels and tiles.
pub(crate) const EDGES: [usize; 14] = [0, 1, 2, 3, 5, 7, 13, 14, 15, 16, 17, 31, 32, 33];

/// An edge size, or any below `limit`.
pub(crate) fn size(limit: usize) -> impl Strategy<Value = usize> {
    prop_oneof![prop::sample::select(&EDGES[..]), 0..limit]
}

/// The default block sizes, or tiny ones that make every loop iterate.
pub(crate) fn any_blocking() -> impl Strategy<Value = Blocking> {
    let tiny = (1..6_usize, 1..41_usize, 1..41_usize);
    prop_oneof![Just(Blocking::default()), tiny.prop_map(|(rows, hidden, depth)| Blocking { rows, hidden, depth })]
}

/// Any layout that an input may have.
pub(crate) fn input_layout() -> impl Strategy<Value = Layout> {
    prop_oneof![prop::sample::select(&LAYOUTS[..]), prop::sample::select(&REPEATING[..])]
}

// ----------------------------------------------------------------------------------------------------- processes

/// False, and says so, where tests cannot start processes: under emulation, or where the examples have not been built.
pub(crate) fn may_start_processes(test: &str) -> bool {
    let skip = std::env::var_os("RESBLOCK_NO_PROCESSES").is_some();
    if skip {
        // Not by `println!`, whose text is not seen when a test passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}, since RESBLOCK_NO_PROCESSES is set");
    }
    !skip
}

/// An example, which `cargo test` builds beside the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let example = profile.join("examples").join(name);
    assert!(
        example.is_file(),
        "{}: not there. Build it by `cargo test` or `cargo build --example {name}`, or set RESBLOCK_NO_PROCESSES=1 where \
         examples cannot run",
        example.display()
    );
    example
}

/// How often the tests that kill processes do so: `RESBLOCK_KILLS`, or a few times.
pub(crate) fn kills(few: usize) -> usize {
    std::env::var("RESBLOCK_KILLS").map_or(few, |n| n.parse().expect("RESBLOCK_KILLS: a number"))
}
