//! After warm-up nothing is allocated: a counting allocator watches. One test in a binary of its own, because every thread of
//! the process counts.

mod common;

use common::{Rng, build_stack, fastest, mat, mat_mut, pool, random_stack};
use resblock::{
    Activation, AdamW, AffineGradMut, AffineRef, Block, BlockForm, Context, Functional, GradMode, GradientFlow,
    Gradients, Group, Init, Layer, MatMut, Optimizer, Par, Record, Role, Sgd, Skip, Stack, Workspace,
    mean_squared_error, softmax_cross_entropy,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code, reason = "an allocator is unsafe to implement; this one counts and passes on")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations while `call` runs, on all threads.
fn count<R>(call: impl FnOnce() -> R) -> (usize, R) {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    let result = call();
    (ALLOCATIONS.load(Ordering::SeqCst) - before, result)
}

/// Row-major, written in place by the kernels, or column-major, staged in the workspace.
fn output(y: &mut [f32], n: usize, outputs: usize, in_place: bool) -> MatMut<'_> {
    if in_place { mat_mut(y, n, outputs) } else { mat_mut(y, outputs, n).t() }
}

const STEPS: [&str; 8] = ["infer", "forward", "backward", "probed backward", "clip", "sgd", "adamw", "loss"];

/// Allocations in each of `STEPS` on a warm workspace, after two rounds of warm-up.
fn allocations<L: Layer + Clone>(ctx: &Context, layer: &L, n: usize, in_place: bool) -> [usize; STEPS.len()] {
    // A single row has no statistics of a batch.
    let ctx = &ctx.with_frozen_statistics(n == 1);
    let mut rng = Rng::new(1);
    let (inputs, outputs) = (layer.inputs(), layer.outputs());
    let (x, target) = (rng.vec(n * inputs), rng.vec(n * outputs));
    let labels: Vec<usize> = (0..n).map(|i| i % outputs).collect();
    let (mut y, mut dy, mut dx) = (vec![0.0; n * outputs], vec![0.0; n * outputs], vec![0.0; n * inputs]);
    let (mut layer, mut ws) = (layer.clone(), Workspace::new());
    let mut grads = Gradients::new(&layer).expect("gradients");
    let (mut sgd, mut adam, mut flow) = (Sgd::new(1e-3, 0.9), AdamW::new(1e-3), GradientFlow::new());
    sgd.groups = vec![Group { lr_factor: 0.5, ..Group::new(Role::Bias) }];
    adam.groups = sgd.groups.clone();
    let mut counts = [0; STEPS.len()];
    for _ in 0..3 {
        let x = mat(&x, n, inputs);
        let (infer, done) = count(|| layer.infer(ctx, &mut ws, x, output(&mut y, n, outputs, in_place)));
        done.expect("infer");
        let (forward, pass) = count(|| layer.forward(ctx, &mut ws, x, output(&mut y, n, outputs, in_place)));
        let pass = pass.expect("forward");
        let (loss, done) = count(|| {
            let y = if in_place { mat(&y, n, outputs) } else { mat(&y, outputs, n).t() };
            softmax_cross_entropy(y, &labels, Some(mat_mut(&mut dy, n, outputs)))?;
            mean_squared_error(y, mat(&target, n, outputs), Some(mat_mut(&mut dy, n, outputs)))
        });
        done.expect("loss");
        let dy = mat(&dy, n, outputs);
        let dx_mut = mat_mut(&mut dx, n, inputs);
        let (backward, done) = count(|| pass.backward(dy, Some(dx_mut), &mut grads, GradMode::Overwrite));
        done.expect("backward");
        let pass = layer.forward(ctx, &mut ws, x, output(&mut y, n, outputs, in_place)).expect("forward");
        let (probed, done) = count(|| pass.backward_probed(dy, None, &mut grads, GradMode::Accumulate, &mut flow));
        done.expect("backward");
        let (clip, done) = count(|| grads.clip_norm(ctx, 1e-3));
        done.expect("a norm");
        let (s, done) = count(|| sgd.step(ctx, &mut layer, &grads));
        done.expect("a step");
        let (a, done) = count(|| {
            adam.step(ctx, &mut layer, &grads)?;
            layer.update_statistics(ws.record().as_slice(), 0.1)
        });
        done.expect("a step");
        counts = [infer, forward, backward, probed, clip, s, a, loss];
    }
    counts
}

/// Allocations of a functional inference, forward and backward, and of the same with a [`Record`], on a warm workspace. Weights and
/// gradients in strides of all kinds: (outputs, inputs), (inputs, outputs), and with gaps, which takes panels of the workspace's.
fn functional_allocations(ctx: &Context, n: usize) -> [usize; 5] {
    let (d, h) = (40, 70);
    let mut rng = Rng::new(3);
    let net = Functional::block(d, h, d, Activation::Gelu, Skip::Identity).expect("a block");
    let layer = Block::residual(d, h, Activation::Gelu, &mut Init::he(1)).expect("a block");
    let (x, w, b) = (rng.vec(n * d), rng.vec(2 * d * h), rng.vec(h));
    let (mut y, mut dx) = (vec![0.0; n * d], vec![0.0; n * d]);
    let mut record = vec![0.0; net.record_len(n).expect("a length")];
    let (mut dw1, mut dw2, mut db) = (vec![0.0; d * h], vec![0.0; 2 * d * h], vec![0.0; h]);
    let params = [
        AffineRef { weights: mat(&w[..d * h], h, d), bias: Some(&b) },
        AffineRef { weights: mat(&w[..d * h], h, d).t(), bias: Some(&b[..d]) },
    ];
    let (mut ws, mut own, mut grads_of_layer) =
        (Workspace::new(), Record::new(), Gradients::new(&layer).expect("gradients"));
    let mut counts = [0; 5];
    for _ in 0..3 {
        let x = mat(&x, n, d);
        let (infer, done) = count(|| net.infer(ctx, &mut ws, &params, x, mat_mut(&mut y, n, d)));
        done.expect("infer");
        let (forward, done) = count(|| net.forward(ctx, &mut ws, &params, x, mat_mut(&mut y, n, d), &mut record));
        done.expect("forward");
        let mut grads = [
            AffineGradMut { weights: Some(mat_mut(&mut dw1, h, d)), bias: Some(&mut db) },
            AffineGradMut {
                weights: Some(MatMut::with_strides(&mut dw2, d, h, 2 * h, 2).expect("a view")),
                bias: None,
            },
        ];
        let (mode, out) = (GradMode::Accumulate, mat_mut(&mut dx, n, d));
        let (backward, done) = count(|| net.backward(ctx, &mut ws, &params, &record, x, Some(out), &mut grads, mode));
        done.expect("backward");
        let (recorded, done) = count(|| layer.forward_to(ctx, &mut ws, x, mat_mut(&mut y, n, d), &mut own));
        done.expect("forward");
        let (read, done) =
            count(|| layer.backward(ctx, &mut ws, own.as_slice(), x, None, &mut grads_of_layer, GradMode::Overwrite));
        done.expect("backward");
        counts = [infer, forward, backward, recorded, read];
    }
    counts
}

#[test]
fn a_warm_step_allocates_nothing_on_one_thread_and_only_rayons_jobs_on_several() {
    let mut rng = Rng::new(2);
    let stack = build_stack(&random_stack(&mut rng, (20, 64, 96, 10), 3, Activation::Gelu, true));
    let block = stack.blocks()[0].clone();
    let of = |form: BlockForm| Block::with_form(&form, &mut Init::he(1)).expect("a block");
    let forms = [BlockForm::cait(40, 70, 0.1), BlockForm::llama(40, 70), BlockForm::resnet_v2(40, 70)];
    let family = Stack::from_blocks(forms.map(of).into()).expect("a stack");
    let ctx = fastest();
    for n in [1, 300] {
        for in_place in [true, false] {
            let counts = [
                allocations(&ctx, &stack, n, in_place),
                allocations(&ctx, &block, n, in_place),
                allocations(&ctx, &family, n, in_place),
            ];
            assert_eq!(counts, [[0; STEPS.len()]; 3], "{STEPS:?} of stacks and a block, {n} rows, one thread");
        }
        assert_eq!(functional_allocations(&ctx, n), [0; 5], "functional calls and records, {n} rows");
    }
    // Wide enough for several threads by rows and by columns.
    let wide = build_stack(&random_stack(&mut rng, (20, 1024, 1100, 10), 2, Activation::Relu, true));
    for (layer, n) in [(&stack, 600), (&wide, 2)] {
        for threads in [2, 8] {
            let pool = pool(threads);
            let ctx = ctx.with_par(Par::Rayon(threads));
            let counts = pool.install(|| allocations(&ctx, layer, n, true));
            println!("{n} rows, {threads} threads: {STEPS:?} {counts:?}");
            // A call sends for the helpers that are not there, a job each, and rayon's queue grows by blocks of jobs. On a slow machine they
            // have left since the last call.
            let most = threads - 1 + 4;
            assert!(counts.iter().all(|&c| c <= most), "more than {most} allocations in {STEPS:?}: {counts:?}");
            assert_eq!(counts[7], 0, "losses run on one thread");
        }
    }
}
