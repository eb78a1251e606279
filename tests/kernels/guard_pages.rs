//! Every operand of every call lies flush against a page that can be neither read nor written, once before it and once after: a
//! kernel that touches one byte outside of it dies. The results are the oracle's bits, and nothing but the elements is written.
#![cfg(unix)]
#![allow(unsafe_code, reason = "pages without access are the operating system's to make")]

use crate::common::{
    ACTIVATIONS, CANARY, Layout, Map, MapGrad, Rng, Stage, Threads, assert_same, assert_same_grads, contexts,
    oracle_backward, oracle_forward, random_grads, values_of,
};
use resblock::{
    Activation, Affine, AffineGradMut, AffineRef, Block, Context, Functional, GradMode, GradientFlow, Gradients, Layer,
    Linear, MatMut, MatRef, Skip, Stack, Weights, Workspace, mean_squared_error, softmax_cross_entropy,
};
use std::fmt::Display;

// ------------------------------------------------------------------------------------------------------- guarded memory

/// Where the forbidden page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    After,
}

const SIDES: [Side; 2] = [Side::Before, Side::After];

/// What fills the rest of the page.
const FILL: u8 = 0xc5;

/// Values between two pages without access, flush against one of them.
struct Guarded<T> {
    /// Start of the mapping, of its accessible middle, and of the values in that.
    map: *mut u8,
    middle: *mut u8,
    values: *mut T,
    page: usize,
    /// Bytes of the middle.
    bytes: usize,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    fn new(side: Side, values: &[T]) -> Self {
        // SAFETY: asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page size");
        let (size, len) = (size_of_val(values), values.len());
        let bytes = size.next_multiple_of(page).max(page);
        // SAFETY: a fresh mapping of our own, so that nothing that exists is replaced.
        let map = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), bytes + 2 * page, libc::PROT_NONE, flags, -1, 0)
        };
        assert_ne!(map, libc::MAP_FAILED, "a mapping");
        let map = map.cast::<u8>();
        // SAFETY: the middle lies inside the mapping; once it may be written, all of it is initialised. The values fit it, at
        // an address that is aligned since pages and sizes are multiples of the alignment.
        unsafe {
            let middle = map.add(page);
            assert_eq!(
                libc::mprotect(middle.cast(), bytes, libc::PROT_READ | libc::PROT_WRITE),
                0,
                "an accessible middle"
            );
            middle.write_bytes(FILL, bytes);
            let start = middle.add(if side == Side::Before { 0 } else { bytes - size }).cast::<T>();
            start.copy_from_nonoverlapping(values.as_ptr(), len);
            Self { map, middle, values: start, page, bytes, len }
        }
    }

    fn get(&self) -> &[T] {
        // SAFETY: `new` initialised so many values there.
        unsafe { std::slice::from_raw_parts(self.values, self.len) }
    }

    fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.values, self.len) }
    }

    /// That the rest of the page is as it was.
    #[track_caller]
    fn assert_rest(&self, what: &impl Display) {
        // SAFETY: the middle is initialised.
        let middle = unsafe { std::slice::from_raw_parts(self.middle, self.bytes) };
        let start = self.values.addr() - self.middle.addr();
        let rest = middle[..start].iter().chain(&middle[start + self.len * size_of::<T>()..]);
        assert!(rest.into_iter().all(|&byte| byte == FILL), "{what}: a place outside the operand was written");
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the whole mapping that `new` made.
        unsafe { libc::munmap(self.map.cast(), self.bytes + 2 * self.page) };
    }
}

/// A strided matrix whose last element (or first) lies at the forbidden page, gaps between its elements filled with canaries.
struct Matrix {
    memory: Guarded<f32>,
    rows: usize,
    cols: usize,
    strides: (usize, usize),
}

impl Matrix {
    /// With these elements, row by row.
    fn of((side, layout): Place, rows: usize, cols: usize, values: &[f32]) -> Self {
        let strides = layout.strides(rows, cols);
        let span = if rows * cols == 0 { 0 } else { (rows - 1) * strides.0 + (cols - 1) * strides.1 + 1 };
        let mut data = vec![f32::from_bits(CANARY); span];
        for (k, &value) in values.iter().enumerate() {
            data[k / cols * strides.0 + k % cols * strides.1] = value;
        }
        Self { memory: Guarded::new(side, &data), rows, cols, strides }
    }

    /// An output that has not been written.
    fn new(place: Place, rows: usize, cols: usize) -> Self {
        Self::of(place, rows, cols, &[])
    }

    fn view(&self) -> MatRef<'_> {
        MatRef::with_strides(self.memory.get(), self.rows, self.cols, self.strides.0, self.strides.1).expect("a view")
    }

    fn view_mut(&mut self) -> MatMut<'_> {
        let (rows, cols, (rs, cs)) = (self.rows, self.cols, self.strides);
        MatMut::with_strides(self.memory.get_mut(), rows, cols, rs, cs).expect("a view")
    }

    /// That the elements are these bits, and that nothing else was written.
    #[track_caller]
    fn assert(&self, what: impl Display, want: &[f32]) {
        let at = |k: usize| k / self.cols * self.strides.0 + k % self.cols * self.strides.1;
        let mut rest = self.memory.get().to_vec();
        let mut values = Vec::new();
        for k in 0..self.rows * self.cols {
            values.push(std::mem::replace(&mut rest[at(k)], f32::from_bits(CANARY)));
        }
        assert_same(&what, &values, want);
        assert!(rest.iter().all(|v| v.to_bits() == CANARY), "{what}: a gap was written");
        self.memory.assert_rest(&what);
    }
}

type Place = (Side, Layout);

/// Row-major outputs are written by the kernels, with and without gaps; others are staged.
fn places() -> impl Iterator<Item = Place> {
    let layouts = [Layout::Tight, Layout::Padded(3), Layout::Transposed(0), Layout::Spread(1)];
    SIDES.into_iter().flat_map(move |side| layouts.map(|layout| (side, layout)))
}

// ------------------------------------------------------------------------------------------------------------ the calls

/// A map whose weights and bias were read from guarded memory.
fn affine(place: Place, map: &Map) -> Affine {
    let w = Matrix::of(place, map.outputs, map.inputs, &map.w);
    let b = map.b.as_ref().map(|b| Guarded::new(place.0, b));
    Affine::new(w.view(), b.as_ref().map(|b| b.get())).expect("a map")
}

fn linear(place: Place, map: &Map, phi: Activation, skip: bool) -> Linear {
    let layer = Linear::new(affine(place, map), phi);
    if skip { layer.with_skip().expect("a square layer") } else { layer }
}

fn block(place: Place, (first, second): (&Map, &Map), phi: Activation, skip: bool) -> Block {
    let skip = if skip { Skip::Identity } else { Skip::None };
    Block::new(affine(place, first), affine(place, second), phi, skip).expect("a block")
}

/// Gradients set from guarded memory.
fn gradients<L: Layer>(place: Place, layer: &L, values: &[MapGrad<f32>]) -> Gradients {
    let mut grads = Gradients::new(layer).expect("gradients");
    for (i, value) in values.iter().enumerate() {
        let (map, name) = (layer.affine(i).expect("a map"), layer.affine_name(i));
        let dw = Matrix::of(place, map.outputs(), map.inputs(), &value.dw);
        let db = Matrix::of(place, 1, value.db.len(), &value.db);
        assert_eq!(grads.set(name.weight(), dw.view()), Ok(true));
        assert_eq!(grads.set(name.bias(), db.view()), Ok(map.bias().is_some()));
    }
    grads
}

/// A network with its oracle's results for one batch.
struct Case {
    what: String,
    n: usize,
    x: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    before: Vec<MapGrad<f32>>,
    after: Vec<MapGrad<f32>>,
}

impl Case {
    fn new(rng: &mut Rng, stages: &[Stage], n: usize) -> Self {
        let (inputs, outputs) = (stages[0].inputs(), stages[stages.len() - 1].outputs());
        let what =
            format!("{n} rows, {:?}", stages.iter().flat_map(Stage::maps).map(|m| m.outputs).collect::<Vec<_>>());
        let (x, dy) = (rng.vec(n * inputs), rng.vec(n * outputs));
        let outs = oracle_forward(stages, n, &x, None);
        let before = random_grads(rng, stages);
        let mut after = before.clone();
        let dx = oracle_backward(stages, n, &x, &outs, &dy, &mut after).swap_remove(0);
        Self { what, n, x, dy, y: outs[stages.len() - 1].y.clone(), dx, before, after }
    }

    /// Runs every call on guarded operands and compares the bits.
    fn check<L: Layer + Sync>(&self, place: Place, ctx: Context, threads: Threads, layer: &L) {
        let Self { n, ref before, .. } = *self;
        let (inputs, outputs) = (layer.inputs(), layer.outputs());
        let what = format!("{}, {place:?}, {threads:?}, {ctx:?}", self.what);
        let (x, dy) = (Matrix::of(place, n, inputs, &self.x), Matrix::of(place, n, outputs, &self.dy));
        let (mut y, mut again) = (Matrix::new(place, n, outputs), Matrix::new(place, n, outputs));
        let (mut dx, mut grads) = (Matrix::new(place, n, inputs), gradients(place, layer, before));
        let (x_view, dy_view) = (x.view(), dy.view());
        let mut probed = Matrix::new(place, n, inputs);
        let (y_view, mut again_view) = (y.view_mut(), again.view_mut());
        let (dx_view, probed_view) = (dx.view_mut(), probed.view_mut());
        threads.run(ctx, |ctx| {
            let mut ws = Workspace::new();
            layer.infer(&ctx, &mut ws, x_view, y_view).expect("infer");
            let pass = layer.forward(&ctx, &mut ws, x_view, again_view.reborrow()).expect("forward");
            pass.backward(dy_view, Some(dx_view), &mut grads, GradMode::Accumulate).expect("backward");
            let pass = layer.forward(&ctx, &mut ws, x_view, again_view).expect("forward");
            let (mut other, mut flow) = (grads.clone(), GradientFlow::new());
            let (mode, dx) = (GradMode::Overwrite, Some(probed_view));
            pass.backward_probed(dy_view, dx, &mut other, mode, &mut flow).expect("backward");
        });
        y.assert(format_args!("{what}: infer"), &self.y);
        again.assert(format_args!("{what}: forward"), &self.y);
        dx.assert(format_args!("{what}: dx"), &self.dx);
        probed.assert(format_args!("{what}: dx, probed"), &self.dx);
        x.assert(format_args!("{what}: x"), &self.x);
        dy.assert(format_args!("{what}: dy"), &self.dy);
        assert_same_grads(&what, &values_of(layer, &grads), &self.after);
        for gradient in grads.iter() {
            let (rows, cols) = gradient.shape();
            let mut out = Matrix::new(place, rows, cols);
            gradient.write_to(out.view_mut()).expect("a copy");
            let values: Vec<f32> = (0..rows * cols).filter_map(|k| gradient.get(k / cols, k % cols)).collect();
            out.assert(format_args!("{what}: {gradient}"), &values);
        }
    }
}

/// Shapes at the edges of vectors, panels and tiles of every instruction set: (rows, width, hidden).
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 15, 17),
    (1, 33, 129),
    (2, 16, 31),
    (3, 17, 65),
    (4, 31, 33),
    (5, 1, 49),
    (6, 32, 15),
    (7, 47, 16),
    (8, 33, 1),
    (9, 48, 48),
    (13, 3, 63),
    (14, 32, 32),
    (15, 49, 47),
    (29, 16, 97),
];

#[test]
fn no_call_of_a_block_touches_a_byte_outside_of_its_operands() {
    let (mut rng, mut cases) = (Rng::new(1), 0);
    for (&(n, d, h), (i, phi)) in SHAPES.iter().zip(ACTIVATIONS.into_iter().enumerate().cycle()) {
        let stage = Stage::block(&mut rng, d, h, phi, i % 2 == 0, true);
        let case = Case::new(&mut rng, std::slice::from_ref(&stage), n);
        let Stage::Block { first, second, phi, skip } = &stage else { continue };
        for place in places() {
            let layer = block(place, (first, second), *phi, *skip);
            for ctx in contexts() {
                case.check(place, ctx, Threads::Seq, &layer);
                cases += 1;
            }
        }
    }
    println!(
        "proof: no call of a block touches a byte outside of its operands | pages without access before and after, bits of the oracle | {cases} cases | ok"
    );
}

#[test]
fn no_call_of_a_stack_touches_a_byte_outside_of_its_operands() {
    let (mut rng, mut cases) = (Rng::new(2), 0);
    for (&(n, d, h), phi) in SHAPES.iter().zip(ACTIVATIONS.into_iter().cycle()) {
        let mut stages = vec![Stage::linear(&mut rng, d + 2, d, phi, true)];
        stages.push(Stage::block(&mut rng, d, h, phi, true, true));
        stages.push(Stage::linear(&mut rng, d, h + 1, Activation::Identity, true));
        let case = Case::new(&mut rng, &stages, n);
        for place in places() {
            let [
                Stage::Linear { map: input, .. },
                Stage::Block { first, second, .. },
                Stage::Linear { map: output, .. },
            ] = &stages[..]
            else {
                continue;
            };
            let blocks = vec![block(place, (first, second), phi, true)];
            let (input, output) =
                (linear(place, input, phi, false), linear(place, output, Activation::Identity, false));
            let layer = Stack::from_layers(input, blocks, output).expect("a stack");
            for ctx in contexts() {
                case.check(place, ctx, Threads::Seq, &layer);
                cases += 1;
            }
        }
    }
    println!(
        "proof: no call of a stack touches a byte outside of its operands | pages without access before and after, bits of the oracle | {cases} cases | ok"
    );
}

#[test]
fn threads_that_share_rows_or_columns_touch_no_byte_outside_of_their_operands() {
    let (mut rng, mut cases) = (Rng::new(3), 0);
    // More than two million multiply-adds each: four threads and more, by rows and by columns.
    for (n, d, h) in [(67, 130, 257), (3, 607, 705)] {
        let stage = Stage::block(&mut rng, d, h, Activation::Relu, true, true);
        let case = Case::new(&mut rng, std::slice::from_ref(&stage), n);
        let Stage::Block { first, second, phi, skip } = &stage else { continue };
        for place in places() {
            let layer = block(place, (first, second), *phi, *skip);
            for ctx in contexts() {
                case.check(place, ctx, Threads::Rayon(3), &layer);
                cases += 1;
            }
        }
    }
    println!(
        "proof: threads touch no byte outside of their operands | pages without access before and after, bits of the oracle | {cases} cases | ok"
    );
}

#[test]
fn functional_calls_stay_inside_the_weights() {
    let (mut rng, mut cases) = (Rng::new(6), 0);
    let shared = [(67, 130, 257), (3, 607, 705)]; // rows and columns that threads share
    let all = SHAPES.iter().map(|&shape| (shape, Threads::Seq)).chain(shared.map(|shape| (shape, Threads::Rayon(3))));
    for (((n, d, h), threads), phi) in all.zip(ACTIVATIONS.into_iter().cycle()) {
        let stages = [Stage::block(&mut rng, d, h, phi, true, true)];
        let case = Case::new(&mut rng, &stages, n);
        let net = Functional::block(d, h, d, phi, Skip::Identity).expect("a block");
        for place in places() {
            let maps = stages[0].maps();
            let matrices: Vec<_> = maps.iter().map(|map| Matrix::of(place, map.outputs, map.inputs, &map.w)).collect();
            let biases: Vec<_> =
                maps.iter().map(|map| Guarded::new(place.0, map.b.as_deref().unwrap_or(&[]))).collect();
            let params: Vec<_> = (matrices.iter().zip(&biases))
                .map(|(w, b)| AffineRef { weights: w.view(), bias: Some(b.get()) })
                .collect();
            for ctx in contexts() {
                let what = format!("{}, {place:?}, {ctx:?}", case.what);
                let (x, dy) = (Matrix::of(place, n, d, &case.x), Matrix::of(place, n, d, &case.dy));
                let (mut y, mut again, mut dx) =
                    (Matrix::new(place, n, d), Matrix::new(place, n, d), Matrix::new(place, n, d));
                let mut record = Guarded::new(place.0, &vec![f32::NAN; net.record_len(n).expect("a length")]);
                let mut dws: Vec<_> = (maps.iter().zip(&case.before))
                    .map(|(map, before)| Matrix::of(place, map.outputs, map.inputs, &before.dw))
                    .collect();
                let mut dbs: Vec<_> = case.before.iter().map(|before| Guarded::new(place.0, &before.db)).collect();
                let mut grads: Vec<_> = (dws.iter_mut().zip(&mut dbs))
                    .map(|(dw, db)| AffineGradMut { weights: Some(dw.view_mut()), bias: Some(db.get_mut()) })
                    .collect();
                let (x_view, dy_view, dx_view) = (x.view(), dy.view(), dx.view_mut());
                let (y_view, again_view, record_view) = (y.view_mut(), again.view_mut(), record.get_mut());
                threads.run(ctx, |ctx| {
                    let mut ws = Workspace::new();
                    net.infer(&ctx, &mut ws, &params, x_view, y_view).expect("infer");
                    net.forward(&ctx, &mut ws, &params, x_view, again_view, record_view).expect("forward");
                    let (dx, mode) = (Some(dx_view), GradMode::Accumulate);
                    net.backward(&ctx, &mut ws, &params, record_view, dy_view, dx, &mut grads, mode).expect("backward");
                });
                y.assert(format_args!("{what}: infer"), &case.y);
                again.assert(format_args!("{what}: forward"), &case.y);
                dx.assert(format_args!("{what}: dx"), &case.dx);
                record.assert_rest(&format_args!("{what}: record"));
                for ((dw, db), after) in dws.iter().zip(&dbs).zip(&case.after) {
                    dw.assert(format_args!("{what}: dW"), &after.dw);
                    assert_same(format_args!("{what}: db"), db.get(), &after.db);
                    db.assert_rest(&format_args!("{what}: db"));
                }
                cases += 1;
            }
        }
    }
    println!(
        "proof: functional calls stay inside weights, gradients and records | pages without access before and after, bits of the oracle | {cases} cases | ok"
    );
}

#[test]
fn skips_from_outside_are_not_read_past_their_ends() {
    let (mut rng, mut cases) = (Rng::new(4), 0);
    for (&(n, k, m), phi) in SHAPES.iter().zip(ACTIVATIONS.into_iter().cycle()) {
        let stage = Stage::linear(&mut rng, k, m, phi, true);
        let Stage::Linear { map, .. } = &stage else { continue };
        let (x, skip) = (rng.vec(n * k), rng.vec(n * m));
        let want = oracle_forward(std::slice::from_ref(&stage), n, &x, Some(&skip)).swap_remove(0).y;
        for place in places() {
            let layer = linear(place, map, phi, false);
            let (x, skip) = (Matrix::of(place, n, k, &x), Matrix::of(place, n, m, &skip));
            for ctx in contexts() {
                let (mut y, mut ws) = (Matrix::new(place, n, m), Workspace::new());
                layer.infer_with_skip(&ctx, &mut ws, x.view(), skip.view(), y.view_mut()).expect("infer");
                y.assert("infer with a skip", &want);
                let mut y = Matrix::new(place, n, m);
                drop(layer.forward_with_skip(&ctx, &mut ws, x.view(), skip.view(), y.view_mut()).expect("forward"));
                y.assert("forward with a skip", &want);
                cases += 2;
            }
        }
    }
    println!(
        "proof: skips from outside are not read past their ends | pages without access before and after, bits of the oracle | {cases} cases | ok"
    );
}

#[test]
fn copies_of_matrices_and_parameters_touch_no_byte_outside_of_their_operands() {
    let (mut rng, mut cases) = (Rng::new(5), 0);
    for (rows, cols, other) in SHAPES {
        for (rows, cols) in [(rows, cols), (cols, other), (0, cols), (rows, 0)] {
            let values = rng.vec(rows * cols);
            for place in places() {
                let from = Matrix::of(place, rows, cols, &values);
                // The other way round, too: rows lie side by side in panels where columns do here.
                let mut weights = Weights::new(from.view()).expect("a copy");
                let mut turned = Weights::new(from.view().t()).expect("a copy");
                for _ in 0..2 {
                    let (mut out, mut w) = (Matrix::new(place, rows, cols), Matrix::new(place, rows, cols));
                    turned.write_to(out.view_mut().t()).expect("a copy");
                    weights.write_to(w.view_mut()).expect("a copy");
                    out.assert("Weights::write_to, turned", &values);
                    w.assert("Weights::write_to", &values);
                    turned.read_from(from.view().t()).expect("a copy");
                    weights.read_from(from.view()).expect("a copy");
                    cases += 4;
                }
                let bias = Guarded::new(place.0, &values[..rows.min(values.len())]);
                if bias.len == rows {
                    let layer =
                        Linear::new(Affine::new(from.view(), Some(bias.get())).expect("a map"), Activation::Relu);
                    for parameter in layer.parameters() {
                        let (rows, cols) = parameter.shape();
                        let mut out = Matrix::new(place, rows, cols);
                        parameter.write_to(out.view_mut()).expect("a copy");
                        out.assert(parameter, &values[..rows * cols]);
                        cases += 1;
                    }
                }
            }
        }
    }
    println!(
        "proof: copies of matrices and parameters touch no byte outside of their operands | pages without access before and after | {cases} copies | ok"
    );
}

#[test]
fn losses_touch_no_byte_outside_of_their_operands() {
    let (mut rng, mut cases) = (Rng::new(6), 0);
    for (n, classes, _) in SHAPES {
        let (logits, target) = (rng.vec(n * classes), rng.vec(n * classes));
        let labels: Vec<usize> = (0..n).map(|_| rng.below(classes)).collect();
        let tight = |values| MatRef::new(values, n, classes).expect("a matrix");
        let (mut d, mut dy) = (vec![0.0; n * classes], vec![0.0; n * classes]);
        let d_view = MatMut::new(&mut d, n, classes).expect("a matrix");
        let entropy = softmax_cross_entropy(tight(&logits), &labels, Some(d_view)).expect("a loss");
        let dy_view = MatMut::new(&mut dy, n, classes).expect("a matrix");
        let squares = mean_squared_error(tight(&logits), tight(&target), Some(dy_view)).expect("a loss");
        for place in places() {
            let (x, t) = (Matrix::of(place, n, classes, &logits), Matrix::of(place, n, classes, &target));
            let labels = Guarded::new(place.0, &labels);
            let (mut a, mut b) = (Matrix::new(place, n, classes), Matrix::new(place, n, classes));
            assert_eq!(softmax_cross_entropy(x.view(), labels.get(), Some(a.view_mut())), Ok(entropy));
            assert_eq!(mean_squared_error(x.view(), t.view(), Some(b.view_mut())), Ok(squares));
            a.assert("dlogits", &d);
            b.assert("dy", &dy);
            cases += 2;
        }
    }
    println!(
        "proof: losses touch no byte outside of their operands | pages without access before and after | {cases} losses | ok"
    );
}

// ---------------------------------------------------------------------------------------------------------- the guard

#[test]
fn a_byte_outside_of_a_guarded_operand_kills() {
    for side in SIDES {
        for len in [0, 1, 1023, 1024, 1025] {
            let memory = Guarded::new(side, &vec![1.0_f32; len]);
            let outside = match side {
                Side::Before => memory.values.cast::<u8>().wrapping_sub(1),
                Side::After => memory.values.wrapping_add(len).cast::<u8>(),
            };
            assert_eq!(memory.get(), vec![1.0; len], "all of the operand can be read");
            let mut status = 0;
            // SAFETY: the child of the fork calls only what a child of a process with threads may, and ends there, by the
            // signal that is expected of it or by `_exit`.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                    libc::signal(libc::SIGBUS, libc::SIG_DFL);
                    std::hint::black_box(outside.read_volatile());
                    libc::_exit(0);
                }
                assert!(child > 0 && libc::waitpid(child, &raw mut status, 0) == child, "a child");
            }
            let killed = libc::WIFSIGNALED(status) && [libc::SIGSEGV, libc::SIGBUS].contains(&libc::WTERMSIG(status));
            assert!(killed, "{side:?}, {len}: a read outside went unnoticed");
        }
    }
}
