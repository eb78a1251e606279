//! Sizes at both ends: products near and past the limits of usize and isize are typed errors that allocate nothing, memory that
//! is missing is a typed error wherever it is asked for, and rows, columns and layers of none or one are the oracle's bits.
//!
//! The allocator of this binary counts, keeps the largest request, and refuses what a test tells it to.

mod common;

use common::{
    ACTIVATIONS, Grid, Layout, Map, Rng, Stage, assert_same, assert_same_grads, build_stack, contexts, fastest, mat,
    mat_mut, oracle_backward, oracle_forward, parameters_of, random_grads, random_stack, values_of, zero_grads,
};
use common::{existing, gradients_of};
use resblock::{
    Activation, AdamW, Affine, Block, Error, GradMode, GradientFlow, Gradients, Init, Layer, Linear, MatMut, MatRef,
    Optimizer, Scheme, Sgd, Skip, Stack, StackConfig, Weights, Workspace, mean_squared_error, softmax_cross_entropy,
};
use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;
use std::fmt::Debug;

// ------------------------------------------------------------------------------------------- an allocator that refuses

/// What a thread's allocator has seen and should do.
#[derive(Clone, Copy)]
struct Watch {
    /// Requests so far.
    count: usize,
    /// Larger ones are refused: no test takes the memory that it says it has not.
    limit: usize,
    /// Requests of at least `DATA` bytes to grant before one is refused.
    grant: usize,
}

/// Bytes from which a request is for data: rows, panels, moments. Smaller ones are lists and messages.
const DATA: usize = 2048;
const LIMIT: usize = 64 << 20;

thread_local! {
    static WATCH: Cell<Watch> = const { Cell::new(Watch { count: 0, limit: LIMIT, grant: usize::MAX }) };
}

/// Whether to grant a request.
fn grant(bytes: usize) -> bool {
    let mut watch = WATCH.get();
    watch.count += 1;
    let granted = bytes <= watch.limit && (bytes < DATA || watch.grant > 0);
    if bytes >= DATA && watch.grant != usize::MAX {
        // After the one refusal, the rest is granted.
        watch.grant = watch.grant.checked_sub(1).unwrap_or(usize::MAX);
    }
    WATCH.set(watch);
    granted
}

struct Refusing;

#[allow(unsafe_code, reason = "an allocator is unsafe to implement; this one refuses or passes on")]
// SAFETY: every call that is not refused, by the null that the trait provides for it, goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Memory) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        if grant(layout.size()) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Memory) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Memory) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        if grant(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Memory, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        if grant(size) { unsafe { System.realloc(ptr, layout, size) } } else { std::ptr::null_mut() }
    }
}

#[global_allocator]
static REFUSING: Refusing = Refusing;

/// Requests for memory while `call` runs.
fn requests<R>(call: impl FnOnce() -> R) -> (usize, R) {
    let before = WATCH.get().count;
    let result = call();
    (WATCH.get().count - before, result)
}

/// Runs `call` with data requests granted `grant` times, then one refused.
fn with_one_refusal<R>(grant: usize, call: impl FnOnce() -> R) -> R {
    WATCH.set(Watch { grant, ..WATCH.get() });
    let result = call();
    WATCH.set(Watch { grant: usize::MAX, ..WATCH.get() });
    result
}

// --------------------------------------------------------------------------------------------------- limits of sizes

/// Floats that fit the address range.
const MOST: usize = isize::MAX as usize / 4;

/// Sizes whose products lie at, just below and just past every limit.
fn corners() -> Vec<usize> {
    let half = 1 << (usize::BITS / 2);
    let around = |n: usize| [n.wrapping_sub(1), n, n.wrapping_add(1)];
    let mut all = vec![0, 1, 2, 3, 15, 16, 17, 100];
    for n in [half / 4, half / 2, half, MOST / 16, MOST / 17, MOST / 2, MOST, usize::MAX / 16, usize::MAX / 2, 1 << 13]
    {
        all.extend(around(n));
    }
    all.extend([usize::MAX - 15, usize::MAX - 16, usize::MAX - 1, usize::MAX]);
    all.sort_unstable();
    all.dedup();
    all
}

/// What must become of a matrix in panels, by arithmetic that cannot overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Overflow,
    Memory,
    Fits,
}

fn panels_verdict(rows: usize, cols: usize) -> Verdict {
    let padded = |cols: usize| (cols as u128).div_ceil(16) * 16;
    if rows.max(1) as u128 * padded(cols.max(1)) > MOST as u128 {
        return Verdict::Overflow;
    }
    if rows as u128 * padded(cols) * 4 > LIMIT as u128 { Verdict::Memory } else { Verdict::Fits }
}

/// Checks that a constructor did as `want` says, and asked for no memory if the size was refused.
#[track_caller]
fn check<T>(what: impl Debug, want: Verdict, (asked, found): (usize, Result<T, Error>)) -> Option<T> {
    match (want, found) {
        (Verdict::Overflow, Err(Error::Overflow { .. })) => assert_eq!(asked, 0, "{what:?}: refused after a request"),
        (Verdict::Memory, Err(Error::Memory { .. })) => {}
        (Verdict::Fits, Ok(made)) => return Some(made),
        (_, found) => panic!("{what:?}: {want:?} expected, found {:?}", found.err()),
    }
    None
}

#[test]
fn views_near_and_past_every_limit_are_judged_as_by_wide_arithmetic_and_allocate_nothing() {
    let corners = corners();
    let mut cases = 0_u64;
    let mut data = [0.0; 300];
    for &rows in &corners {
        for &cols in &corners {
            let product = rows as u128 * cols as u128;
            let (asked, found) = requests(|| MatRef::new(&data, rows, cols).map(|m| m.shape()));
            assert_eq!(asked, 0);
            match found {
                Ok(shape) => assert_eq!((shape, product), ((rows, cols), 300)),
                Err(Error::Length { expected, found: 300, .. }) => assert_eq!(expected as u128, product),
                Err(error) => {
                    assert!(matches!(error, Error::Overflow { .. }) && product > usize::MAX as u128, "{error:?}")
                }
            }
            for &rs in &corners {
                for &cs in &corners {
                    let last = (rows.max(1) as u128 - 1)
                        .checked_mul(rs as u128)
                        .zip((cols.max(1) as u128 - 1).checked_mul(cs as u128))
                        .and_then(|(r, c)| r.checked_add(c)?.checked_add(1));
                    let needed = if product == 0 { Some(0) } else { last };
                    let (asked, read) = requests(|| MatRef::with_strides(&data, rows, cols, rs, cs).map(|_| ()));
                    let (more, write) = requests(|| MatMut::with_strides(&mut data, rows, cols, rs, cs).map(|_| ()));
                    assert_eq!((asked, more), (0, 0), "a view allocates nothing");
                    let fits = match (needed, &read) {
                        (Some(needed), Ok(())) => needed <= 300,
                        (Some(n), Err(Error::TooShort { needed, .. })) => n > 300 && *needed as u128 == n,
                        (needed, Err(Error::Overflow { .. })) => needed.is_none_or(|n| n > MOST as u128),
                        _ => false,
                    };
                    assert!(fits, "{rows}x{cols} with ({rs}, {cs}): {read:?}, needs {needed:?}");
                    if write != Err(Error::Overlap { operand: "data", rows, cols, strides: (rs, cs) }) {
                        assert_eq!(read, write);
                    }
                    cases += 2;
                }
            }
            cases += 1;
        }
    }
    println!(
        "proof: sizes of views near and past every limit are judged without allocating | verdicts by 128-bit arithmetic | {cases} views | ok"
    );
}

#[test]
fn matrices_near_and_past_every_limit_are_refused_before_memory_is_asked_for() {
    let corners = corners();
    let mut cases = 0;
    for &rows in &corners {
        for &cols in &corners {
            // One number, seen as a matrix of any size.
            let Ok(view) = MatRef::with_strides(&[0.5], rows, cols, 0, 0) else { panic!("a view of one number") };
            let what = (rows, cols);
            // Panels of the transpose.
            if let Some(weights) = check(what, panels_verdict(cols, rows), requests(|| Weights::new(view))) {
                // Whatever could be made can be used.
                assert_eq!((weights.outputs(), weights.inputs()), (rows, cols));
                assert_eq!(weights.get(rows, 0).or(weights.get(0, cols)), None);
                assert_eq!(weights.get(rows.wrapping_sub(1), cols.wrapping_sub(1)), (rows * cols > 0).then_some(0.5));
                if rows * cols == 0 {
                    let out = MatMut::with_strides(&mut [], rows, cols, 0, 0).expect("an empty view");
                    assert_eq!(weights.write_to(out), Ok(()));
                }
            }
            let map = check(what, panels_verdict(cols, rows), requests(|| Affine::new(view, None)));
            cases += 2;
            if let Some(map) = map {
                let layer = Linear::new(map, Activation::Relu);
                let grads = Gradients::new(&layer).expect("as much memory as the weights");
                assert_eq!((grads.norm(&fastest()), layer.parameter_count()), (0.0, rows * cols));
                assert!(layer.parameters().all(|p| p.norm_squared().is_finite()));
                let stored = layer.parameters().next().expect("weights").as_slice();
                assert_eq!(stored.len(), cols * rows.next_multiple_of(16));
                cases += 1;
            }
        }
    }
    println!(
        "proof: matrices whose size overflows are refused before memory is asked for | verdicts by 128-bit arithmetic, counting allocator | {cases} calls | ok"
    );
}

#[test]
fn initialised_layers_near_and_past_every_limit_are_refused_before_memory_is_asked_for() {
    let large: Vec<usize> = corners().into_iter().filter(|&n| n > 100 || n == 0).collect();
    let mut cases = 0;
    for scheme in [Scheme::HeNormal, Scheme::Zeros] {
        for &inputs in &large {
            for &outputs in &large {
                let verdict = panels_verdict(inputs, outputs);
                // What fits is made in other tests; here it would take its time.
                if inputs as u128 * outputs as u128 > 0 && verdict != Verdict::Fits {
                    let init = Init::new(scheme, 1);
                    let what = (scheme, inputs, outputs);
                    check(what, verdict, requests(|| init.clone().affine(inputs, outputs, 1.0)));
                    let linear = || Linear::with_init(inputs, outputs, Activation::Gelu, &mut init.clone());
                    check(what, verdict, requests(linear));
                    let refused = |found: Result<Block, Error>| {
                        assert!(matches!(found, Err(Error::Overflow { .. } | Error::Memory { .. })), "{what:?}");
                    };
                    refused(Block::residual(inputs, outputs, Activation::Relu, &mut init.clone()));
                    refused(Block::plain(outputs, inputs, Activation::Relu, &mut init.clone()));
                    cases += 4;
                }
            }
        }
    }
    let small = StackConfig { inputs: 3, width: 4, hidden: 5, blocks: 2, outputs: 2, ..StackConfig::default() };
    for &n in large.iter().filter(|&&n| n > LIMIT / 16) {
        for config in [
            StackConfig { inputs: n, ..small },
            StackConfig { width: n, ..small },
            StackConfig { hidden: n, ..small },
            StackConfig { outputs: n, ..small },
            StackConfig { blocks: n, ..small },
        ] {
            let found = Stack::new(&config);
            assert!(matches!(found, Err(Error::Overflow { .. } | Error::Memory { .. })), "{config:?}");
            cases += 1;
        }
    }
    println!(
        "proof: layers whose size overflows or exceeds memory are typed errors | seeded constructors at the limits | {cases} calls | ok"
    );
}

#[test]
fn batches_past_every_limit_are_refused_before_memory_is_asked_for() {
    let mut rng = Rng::new(1);
    let (ctx, mut cases) = (fastest(), 0);
    // Rows without columns, in and out, between layers that have some: a batch of any size costs nothing to describe.
    let stages = random_stack(&mut rng, (0, 5, 7, 0), 1, Activation::Gelu, true);
    let layer = build_stack(&stages);
    let wide = Linear::with_init(16, 0, Activation::Identity, &mut Init::he(0)).expect("a layer");
    for n in [MOST / 16 + 1, MOST / 2, MOST, usize::MAX / 2, usize::MAX] {
        let overflow = |found: (usize, Result<(), Error>)| {
            assert_eq!(found.0, 0, "refused after a request for memory");
            assert!(
                matches!(found.1, Err(Error::Overflow { operand: "batch", rows, .. }) if rows == n),
                "{:?}",
                found.1
            );
        };
        let none = MatRef::with_strides(&[], n, 0, 0, 1).expect("a view");
        let row = MatRef::with_strides(&[0.5; 16], n, 16, 0, 1).expect("a view");
        let out = || MatMut::with_strides(&mut [], n, 0, 0, 1).expect("a view");
        let mut ws = Workspace::new();
        overflow(requests(|| layer.infer(&ctx, &mut ws, none, out())));
        overflow(requests(|| layer.forward(&ctx, &mut ws, none, out()).map(drop)));
        overflow(requests(|| wide.infer(&ctx, &mut ws, row, out())));
        overflow(requests(|| wide.forward(&ctx, &mut ws, row, out()).map(drop)));
        overflow(requests(|| wide.infer_with_skip(&ctx, &mut ws, row, none, out())));
        overflow(requests(|| wide.forward_with_skip(&ctx, &mut ws, row, none, out()).map(drop)));
        cases += 6;
    }
    println!(
        "proof: batches whose size overflows are refused before memory is asked for | counting allocator | {cases} calls | ok"
    );
}

// ---------------------------------------------------------------------------------------------------- missing memory

/// Refuses the first request for data in `call`, then the second, until it asks for no more: each refusal must be a typed error,
/// and `untouched` must hold. Says how many there were.
fn refuse_each<R>(what: &str, mut call: impl FnMut() -> Result<R, Error>, mut untouched: impl FnMut()) -> usize {
    for granted in 0.. {
        match with_one_refusal(granted, &mut call) {
            Ok(_) => return granted,
            Err(Error::Memory { bytes }) => assert!(bytes >= DATA, "{what}: {bytes} bytes"),
            Err(error) => panic!("{what}: {error}"),
        }
        untouched();
    }
    unreachable!("a call that never succeeds")
}

#[test]
fn every_request_for_memory_that_is_refused_is_a_typed_error_and_outputs_are_untouched() {
    let mut rng = Rng::new(2);
    let (ctx, n, widths) = (fastest(), 40, (600, 70, 520, 530));
    let stages = random_stack(&mut rng, widths, 2, Activation::Gelu, true);
    let layer = build_stack(&stages);
    let weights = rng.vec(600 * 530);
    let w = mat(&weights, 530, 600);
    let mut refusals = refuse_each("Weights::new", || Weights::new(w), || ());
    refusals += refuse_each("Affine::new", || Affine::new(w, Some(&weights[..530])), || ());
    refusals += refuse_each("Init::affine", || Init::he(1).affine(600, 530, 1.0), || ());
    refusals += refuse_each("Init::affine", || Init::new(Scheme::Zeros, 1).affine(600, 530, 1.0), || ());
    let config =
        StackConfig { inputs: 600, width: 70, hidden: 520, blocks: 20, outputs: 530, ..StackConfig::default() };
    refusals += refuse_each("Stack::new", || Stack::new(&config), || ());
    refusals += refuse_each("Gradients::new", || Gradients::new(&layer), || ());

    let (x, dy) = (rng.vec(n * widths.0), rng.vec(n * widths.3));
    let (x, dy) = (mat(&x, n, widths.0), mat(&dy, n, widths.3));
    // Row-major outputs are written in place, others are staged, which takes memory of its own.
    for layout in [Layout::Padded(1), Layout::Transposed(1)] {
        let (y, dx) = (Grid::new(layout, n, widths.3), Grid::new(layout, n, widths.0));
        let infer = |y: &mut Grid| layer.infer(&ctx, &mut Workspace::new(), x, y.view_mut());
        let forward = |y: &mut Grid| layer.forward(&ctx, &mut Workspace::new(), x, y.view_mut()).map(drop);
        for (what, call) in [("infer", &infer as &dyn Fn(&mut Grid) -> Result<(), Error>), ("forward", &forward)] {
            let mut granted = 0;
            loop {
                let mut y = y.clone();
                match with_one_refusal(granted, || call(&mut y)) {
                    Ok(()) => break,
                    Err(error) => assert!(matches!(error, Error::Memory { .. }), "{what}: {error:?}"),
                }
                y.assert_untouched(what);
                granted += 1;
            }
            assert!(granted > 0);
            refusals += granted;
        }
        let before = random_grads(&mut rng, &stages);
        for granted in 0.. {
            let (mut y, mut dx, mut ws) = (y.clone(), dx.clone(), Workspace::new());
            let mut grads = gradients_of(&layer, &before);
            let mut flow = GradientFlow::new();
            let pass = layer.forward(&ctx, &mut ws, x, y.view_mut()).expect("forward");
            let dx_view = Some(dx.view_mut());
            let mode = GradMode::Overwrite;
            let found = with_one_refusal(granted, || pass.backward_probed(dy, dx_view, &mut grads, mode, &mut flow));
            let Err(error) = found else {
                refusals += granted;
                break;
            };
            assert!(matches!(error, Error::Memory { .. }), "backward: {error:?}");
            dx.assert_untouched("dx");
            assert_same_grads("refused backward", &values_of(&layer, &grads), &before);
            assert!(flow.norms().iter().all(|&norm| norm == 0.0), "the probe was written");
        }
    }

    let grads = gradients_of(&layer, &random_grads(&mut rng, &stages));
    let (trained, before) = (layer.clone(), parameters_of(&layer));
    let (mut sgd, mut adam) = ((trained.clone(), Sgd::new(0.1, 0.9)), (trained, AdamW::new(0.1)));
    for granted in 0.. {
        match with_one_refusal(granted, || sgd.1.step(&ctx, &mut sgd.0, &grads)) {
            Ok(()) => break,
            Err(error) => assert!(matches!(error, Error::Memory { .. }), "sgd: {error:?}"),
        }
        assert_eq!(parameters_of(&sgd.0), before);
        assert_eq!(sgd.1, Sgd::new(0.1, 0.9), "a refused step leaves no state");
        refusals += 1;
    }
    for granted in 0.. {
        match with_one_refusal(granted, || adam.1.step(&ctx, &mut adam.0, &grads)) {
            Ok(()) => break,
            Err(error) => assert!(matches!(error, Error::Memory { .. }), "adamw: {error:?}"),
        }
        assert_eq!(parameters_of(&adam.0), before);
        assert_eq!(adam.1, AdamW::new(0.1), "a refused step leaves no state");
        refusals += 1;
    }
    #[cfg(feature = "safetensors")]
    {
        let net = Linear::with_init(600, 530, Activation::Relu, &mut Init::he(1)).expect("a layer");
        let found = with_one_refusal(0, || resblock::Snapshot::new(&net).to_bytes());
        assert!(matches!(found, Err(Error::Memory { .. })), "a snapshot: {found:?}");
        refusals += 1;
    }
    println!(
        "proof: missing memory is a typed error and outputs stay untouched | an allocator that refuses each request for data in turn | {refusals} refusals | ok"
    );
}

// --------------------------------------------------------------------------------------------------------- none and one

#[test]
fn layers_and_batches_of_none_and_one_give_the_bits_of_the_oracle() {
    let mut rng = Rng::new(3);
    let mut cases = 0;
    for bits in 0..32_usize {
        let [n, inputs, width, hidden, outputs] = [0, 1, 2, 3, 4].map(|at| bits >> at & 1);
        for (blocks, skip, phi) in ACTIVATIONS.into_iter().enumerate().map(|(i, phi)| (i % 3, i % 2 == 0, phi)) {
            let stages = random_stack(&mut rng, (inputs, width, hidden, outputs), blocks, phi, skip);
            let layer = build_stack(&stages);
            let (x, dy) = (rng.vec(n * inputs), rng.vec(n * outputs));
            let outs = oracle_forward(&stages, n, &x, None);
            let before = random_grads(&mut rng, &stages);
            for (mode, mut want) in [(GradMode::Overwrite, zero_grads(&stages)), (GradMode::Accumulate, before.clone())]
            {
                let want_dx = oracle_backward(&stages, n, &x, &outs, &dy, &mut want).swap_remove(0);
                for ctx in contexts() {
                    let what = format!("{n} x ({inputs}, {width}, {hidden}, {outputs}), {blocks} blocks, {ctx:?}");
                    let mut ws = Workspace::new();
                    let layout = Layout::Padded(1);
                    let (mut y, mut again) = (Grid::new(layout, n, outputs), Grid::new(layout, n, outputs));
                    let (mut dx, mut grads) = (Grid::new(layout, n, inputs), gradients_of(&layer, &before));
                    layer.infer(&ctx, &mut ws, mat(&x, n, inputs), y.view_mut()).expect("infer");
                    let pass = layer.forward(&ctx, &mut ws, mat(&x, n, inputs), again.view_mut()).expect("forward");
                    pass.backward(mat(&dy, n, outputs), Some(dx.view_mut()), &mut grads, mode).expect("backward");
                    assert_same(format_args!("{what}: infer"), &y.values(), &outs[stages.len() - 1].y);
                    assert_same(format_args!("{what}: forward"), &again.values(), &outs[stages.len() - 1].y);
                    assert_same(format_args!("{what}: dx"), &dx.values(), &want_dx);
                    assert_same_grads(&what, &values_of(&layer, &grads), &existing(&layer, &want));
                    for grid in [&y, &again, &dx] {
                        grid.assert_canaries(&what);
                    }

                    let mut trained = layer.clone();
                    Sgd::new(0.1, 0.9).step(&ctx, &mut trained, &grads).expect("a step");
                    AdamW::new(0.1).step(&ctx, &mut trained, &grads).expect("a step");
                    assert_eq!(trained.parameter_count(), layer.parameter_count());
                    cases += 1;
                }
            }
        }
    }
    println!(
        "proof: none or one of rows, inputs, features, hidden features, outputs and blocks | bits of the oracle, every activation and set | {cases} cases | ok"
    );
}

#[test]
fn lone_layers_of_none_and_one_give_the_bits_of_the_oracle() {
    let mut rng = Rng::new(4);
    let mut cases = 0;
    for (n, d, h) in (0..8_usize).map(|bits| (bits & 1, bits >> 1 & 1, bits >> 2 & 1)) {
        for (phi, bias) in ACTIVATIONS.into_iter().flat_map(|phi| [(phi, false), (phi, true)]) {
            let linear = Stage::linear(&mut rng, d, h, phi, bias);
            let block = Stage::block(&mut rng, d, h, phi, true, bias);
            let (x, skip) = (rng.vec(n * d), rng.vec(n * h));
            let want_linear = oracle_forward(std::slice::from_ref(&linear), n, &x, Some(&skip)).swap_remove(0).y;
            let want_block = oracle_forward(std::slice::from_ref(&block), n, &x, None).swap_remove(0).y;
            let stack = Stack::from_blocks(vec![block.build_block()]).expect("a stack");
            for ctx in contexts() {
                let (mut ws, x) = (Workspace::new(), mat(&x, n, d));
                let mut y = Grid::new(Layout::Padded(2), n, h);
                let layer = linear.build_linear();
                layer.infer_with_skip(&ctx, &mut ws, x, mat(&skip, n, h), y.view_mut()).expect("infer");
                assert_same(format_args!("linear {n} x {d} -> {h}"), &y.values(), &want_linear);
                y.assert_canaries("y");
                let mut y = Grid::new(Layout::Padded(2), n, d);
                stack.infer(&ctx, &mut ws, x, y.view_mut()).expect("infer");
                assert_same(format_args!("block {n} x {d} x {h}"), &y.values(), &want_block);
                y.assert_canaries("y");
                cases += 2;
            }
        }
    }
    assert!(matches!(Stack::from_blocks(vec![]), Err(Error::Setting { operand: "blocks", .. })));
    println!(
        "proof: lone layers of none or one feature | bits of the oracle, every activation and set | {cases} cases | ok"
    );
}

#[test]
fn losses_matrices_and_parameters_of_none_and_one_are_defined() {
    for (n, m) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let (one, mut d) = (vec![0.5; n * m], Grid::new(Layout::Padded(1), n, m));
        let labels = vec![0; n];
        let loss = softmax_cross_entropy(mat(&one, n, m), &labels, Some(d.view_mut()));
        if (n, m) == (1, 0) {
            assert!(matches!(loss, Err(Error::Class { index: 0, classes: 0, .. })), "no class for the label");
        } else {
            assert_eq!(loss, Ok(0.0), "one class is certain");
        }
        let target = vec![0.25; n * m];
        let loss = mean_squared_error(mat(&one, n, m), mat(&target, n, m), Some(d.view_mut()));
        assert_eq!(loss, Ok(if n * m == 0 { 0.0 } else { 0.0625 }));
        assert!(d.values().iter().all(|&d| d == 0.5));
        d.assert_canaries("gradient of a loss");

        let mut weights = Weights::new(mat(&vec![0.0; n * m], n, m)).expect("weights");
        weights.read_from(mat(&one, n, m)).expect("a copy");
        let mut out = vec![0.0; n * m];
        weights.write_to(mat_mut(&mut out, n, m)).expect("a copy");
        assert_eq!((out, weights.get(0, 0)), (one.clone(), one.first().copied()));

        let map = Affine::new(mat(&one, n, m), Some(&vec![0.5; n])).expect("a map");
        let mut layer = Linear::new(map, Activation::Tanh);
        let grads = Gradients::new(&layer).expect("gradients");
        assert_eq!(grads.norm(&fastest()), 0.0);
        for parameter in layer.parameters() {
            let (rows, cols) = parameter.shape();
            let mut out = vec![0.0; rows * cols];
            parameter.write_to(mat_mut(&mut out, rows, cols)).expect("a copy");
            assert!(out.iter().all(|&v| v == 0.5));
            assert_eq!(parameter.norm_squared(), 0.25 * (rows * cols) as f64);
            assert_eq!((parameter.get(rows, 0), parameter.get(0, cols)), (None, None));
        }
        Sgd::new(0.5, 0.0).step(&fastest(), &mut layer, &grads).expect("a step");
    }
    let none = Map::random(&mut Rng::new(5), 0, 0, true);
    assert!(Block::new(none.affine(), none.affine(), Activation::Relu, Skip::Identity).is_ok());
}
