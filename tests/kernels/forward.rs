//! Forward passes equal the sequential f32 oracle bit for bit: every layer, activation, instruction set, thread count, block
//! size and memory layout.

use crate::common::{
    ACTIVATIONS, EDGES, Grid, LAYOUTS, Layout, Rng, Stage, THREADS, Threads, any_blocking, assert_same, blockings,
    build_stack, context, contexts, fastest, input_layout, isas, mat, mat_mut, oracle_forward, random_stack, size,
};
use proptest::prelude::*;
use resblock::{Activation, Blocking, Context, Gradients, Layer, Workspace};

/// What the oracle gives for the whole network.
fn oracle(stages: &[Stage], n: usize, x: &[f32], outside: Option<&[f32]>) -> Vec<f32> {
    oracle_forward(stages, n, x, outside).pop().expect("a stage").y
}

/// `infer` and `forward` in these layouts give `want`, and touch nothing else.
#[track_caller]
fn assert_forward<L: Layer + Sync>(
    what: &str,
    ctx: Context,
    threads: Threads,
    layer: &L,
    x: &Grid,
    y_layout: Layout,
    want: &[f32],
) {
    let n = x.view().rows();
    let mut y = Grid::new(y_layout, n, layer.outputs());
    let mut recorded = y.clone();
    threads.run(ctx, |ctx| {
        let mut ws = Workspace::new();
        layer.infer(&ctx, &mut ws, x.view(), y.view_mut()).expect("infer");
        drop(layer.forward(&ctx, &mut ws, x.view(), recorded.view_mut()).expect("forward"));
    });
    let what = format!("{what}, {threads:?}, {ctx:?}");
    assert_same(format_args!("{what}, infer"), &y.values(), want);
    assert_same(format_args!("{what}, forward"), &recorded.values(), want);
    y.assert_canaries(&what);
    recorded.assert_canaries(&what);
}

#[test]
fn linear_equals_the_oracle_for_every_activation_bias_and_skip() {
    let mut rng = Rng::new(1);
    for phi in ACTIVATIONS {
        for (bias, own_skip) in [(true, false), (false, false), (true, true), (false, true)] {
            let (n, k) = (9, 37);
            let m = if own_skip { k } else { 50 };
            let mut stage = Stage::linear(&mut rng, k, m, phi, bias);
            if let Stage::Linear { skip, .. } = &mut stage {
                *skip = own_skip;
            }
            let x = rng.vec(n * k);
            let want = oracle(std::slice::from_ref(&stage), n, &x, None);
            let (layer, x) = (stage.build_linear(), Grid::of(Layout::Tight, n, k, &x));
            for ctx in contexts() {
                assert_forward(phi.name(), ctx, Threads::Seq, &layer, &x, Layout::Tight, &want);
            }
        }
    }
}

#[test]
fn linear_with_a_skip_from_outside_equals_the_oracle() {
    let mut rng = Rng::new(2);
    for phi in ACTIVATIONS {
        for (n, k, m) in [(1, 20, 33), (6, 17, 5), (15, 3, 48), (4, 0, 7), (0, 3, 4)] {
            let stage = Stage::linear(&mut rng, k, m, phi, n % 2 == 0);
            let layer = stage.build_linear();
            let x = rng.vec(n * k);
            for skip_layout in [Layout::Tight, Layout::Padded(3), Layout::Transposed(1), Layout::SameRow] {
                let skip = Grid::of(skip_layout, n, m, &rng.vec(n * m));
                let want = oracle(std::slice::from_ref(&stage), n, &x, Some(&skip.values()));
                for ctx in contexts() {
                    let ctx = ctx.with_blocking(Blocking { rows: 4, hidden: 16, depth: 16 });
                    let mut ws = Workspace::new();
                    for layout in [Layout::Padded(2), Layout::Transposed(2)] {
                        let (mut y, mut recorded) = (Grid::new(layout, n, m), Grid::new(layout, n, m));
                        layer.infer_with_skip(&ctx, &mut ws, mat(&x, n, k), skip.view(), y.view_mut()).expect("infer");
                        let pass =
                            layer.forward_with_skip(&ctx, &mut ws, mat(&x, n, k), skip.view(), recorded.view_mut());
                        drop(pass.expect("forward"));
                        assert_same(format_args!("{} infer {ctx:?}", phi.name()), &y.values(), &want);
                        assert_same(format_args!("{} forward {ctx:?}", phi.name()), &recorded.values(), &want);
                        y.assert_canaries("infer");
                        recorded.assert_canaries("forward");
                    }
                }
            }
        }
    }
}

#[test]
fn block_equals_the_oracle_for_every_activation_skip_and_bias() {
    let mut rng = Rng::new(3);
    for phi in ACTIVATIONS {
        for (skip, bias) in [(true, true), (false, true), (true, false), (false, false)] {
            let (n, d, h) = (19, 35, 70);
            let stage = Stage::block(&mut rng, d, h, phi, skip, bias);
            let x = rng.vec(n * d);
            let want = oracle(std::slice::from_ref(&stage), n, &x, None);
            let (layer, x) = (stage.build_block(), Grid::of(Layout::Tight, n, d, &x));
            for ctx in contexts() {
                for blocking in blockings() {
                    let ctx = ctx.with_blocking(blocking);
                    assert_forward(phi.name(), ctx, Threads::Seq, &layer, &x, Layout::Tight, &want);
                }
            }
        }
    }
}

#[test]
fn block_equals_the_oracle_at_every_combination_of_edge_sizes() {
    let mut rng = Rng::new(4);
    for n in EDGES {
        for d in [0, 1, 15, 16, 17, 33] {
            for h in [0, 1, 15, 16, 17, 33] {
                let stage = Stage::block(&mut rng, d, h, Activation::Relu, true, true);
                let x = rng.vec(n * d);
                let want = oracle(std::slice::from_ref(&stage), n, &x, None);
                let (layer, x) = (stage.build_block(), Grid::of(Layout::Padded(1), n, d, &x));
                for ctx in contexts() {
                    let what = format!("n {n}, d {d}, h {h}");
                    assert_forward(&what, ctx, Threads::Seq, &layer, &x, Layout::Padded(5), &want);
                }
            }
        }
    }
}

#[test]
fn stack_equals_the_oracle_whatever_its_widths() {
    let mut rng = Rng::new(5);
    let widths =
        [(5, 16, 33, 3), (40, 17, 50, 20), (1, 1, 1, 1), (16, 32, 16, 48), (3, 0, 4, 2), (0, 5, 0, 5), (7, 9, 20, 0)];
    for (phi, widths) in ACTIVATIONS.into_iter().zip(widths.into_iter().cycle()) {
        for (blocks, skip) in [(0, true), (1, false), (3, true), (4, false)] {
            let stages = random_stack(&mut rng, widths, blocks, phi, skip);
            let n = 11;
            let x = rng.vec(n * widths.0);
            let want = oracle(&stages, n, &x, None);
            let (layer, x) = (build_stack(&stages), Grid::of(Layout::Transposed(1), n, widths.0, &x));
            for ctx in contexts() {
                for blocking in blockings() {
                    let what = format!("{} {blocks} blocks of {widths:?}", phi.name());
                    let ctx = ctx.with_blocking(blocking);
                    assert_forward(&what, ctx, Threads::Seq, &layer, &x, Layout::Padded(3), &want);
                }
            }
        }
    }
}

#[test]
fn any_number_of_threads_that_share_rows_gives_the_bits_of_one() {
    let mut rng = Rng::new(6);
    // 12 million multiply-adds: enough for 7 threads.
    let (n, d, h) = (300, 128, 160);
    for phi in [Activation::Relu, Activation::Silu] {
        let stage = Stage::block(&mut rng, d, h, phi, true, true);
        let x = rng.vec(n * d);
        let want = oracle(std::slice::from_ref(&stage), n, &x, None);
        let (layer, x) = (stage.build_block(), Grid::of(Layout::Tight, n, d, &x));
        for ctx in contexts() {
            for threads in THREADS {
                for (rows, layout) in [(112, Layout::Tight), (17, Layout::Transposed(2))] {
                    let ctx = ctx.with_blocking(Blocking { rows, ..Blocking::default() });
                    assert_forward(phi.name(), ctx, threads, &layer, &x, layout, &want);
                }
            }
        }
    }
}

#[test]
fn any_number_of_threads_that_share_columns_gives_the_bits_of_one() {
    let mut rng = Rng::new(7);
    // One block of rows and 14 million multiply-adds: columns are shared. 1500 and 1600 are no multiple of 8 panels.
    let (n, d, h) = (3, 1500, 1600);
    for phi in [Activation::Relu, Activation::GeluTanh] {
        for skip in [true, false] {
            let stage = Stage::block(&mut rng, d, h, phi, skip, true);
            let x = rng.vec(n * d);
            let want = oracle(std::slice::from_ref(&stage), n, &x, None);
            let (layer, x) = (stage.build_block(), Grid::of(Layout::Tight, n, d, &x));
            for ctx in contexts() {
                for threads in THREADS {
                    assert_forward(phi.name(), ctx, threads, &layer, &x, Layout::Padded(9), &want);
                }
            }
        }
    }
}

#[test]
fn threads_that_share_the_columns_of_a_linear_layer_give_the_bits_of_one() {
    let mut rng = Rng::new(8);
    let (n, k, m) = (2, 1700, 2050);
    for phi in [Activation::Identity, Activation::Gelu] {
        let stage = Stage::linear(&mut rng, k, m, phi, true);
        let (x, skip) = (rng.vec(n * k), rng.vec(n * m));
        let want = oracle(std::slice::from_ref(&stage), n, &x, Some(&skip));
        let layer = stage.build_linear();
        for isa in isas() {
            for threads in THREADS {
                threads.run(context(isa), |ctx| {
                    let (mut y, mut ws) = (Grid::new(Layout::Spread(1), n, m), Workspace::new());
                    let (x, skip) = (mat(&x, n, k), mat(&skip, n, m));
                    layer.infer_with_skip(&ctx, &mut ws, x, skip, y.view_mut()).expect("infer");
                    assert_same(format_args!("{} {ctx:?}", phi.name()), &y.values(), &want);
                    y.assert_canaries("y");
                });
            }
        }
    }
}

#[test]
fn threads_that_share_the_columns_of_a_stack_give_the_bits_of_one() {
    let mut rng = Rng::new(9);
    let widths = (30, 1024, 1050, 10);
    let stages = random_stack(&mut rng, widths, 2, Activation::Silu, true);
    let n = 4;
    let x = rng.vec(n * widths.0);
    let want = oracle(&stages, n, &x, None);
    let (layer, x) = (build_stack(&stages), Grid::of(Layout::Tight, n, widths.0, &x));
    for ctx in contexts() {
        for threads in THREADS {
            assert_forward("stack", ctx, threads, &layer, &x, Layout::Tight, &want);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let mut rng = Rng::new(10);
    let widths = (23, 40, 65, 9);
    for phi in [Activation::Relu, Activation::Gelu] {
        let layer = build_stack(&random_stack(&mut rng, widths, 2, phi, true));
        let (n, x) = (65, rng.vec(65 * widths.0));
        for ctx in contexts() {
            let mut ws = Workspace::new();
            let mut all = vec![0.0; n * widths.3];
            layer.infer(&ctx, &mut ws, mat(&x, n, widths.0), mat_mut(&mut all, n, widths.3)).expect("infer");
            for size in [1, 2, 3, 4, 5, 13, 14, 15, 29, 64] {
                for first in (0..n).step_by(size) {
                    let rows = size.min(n - first);
                    let mut part = vec![0.0; rows * widths.3];
                    let x = mat(&x[first * widths.0..][..rows * widths.0], rows, widths.0);
                    layer.infer(&ctx, &mut ws, x, mat_mut(&mut part, rows, widths.3)).expect("infer");
                    let whole = &all[first * widths.3..][..rows * widths.3];
                    assert_same(format_args!("rows {first}.. of batches of {size}, {ctx:?}"), &part, whole);
                }
            }
        }
    }
}

#[test]
fn zeros_of_both_signs_infinities_nans_and_denormals_propagate_as_in_the_oracle() {
    let mut rng = Rng::new(11);
    for phi in ACTIVATIONS {
        for round in 0..4 {
            let (n, d, h) = (17, 19, 34);
            let rarity = [400, 150, 40, 4][round];
            let mut stage = Stage::block(&mut rng, d, h, phi, round % 2 == 0, true);
            let x = rng.wild(n * d, rarity);
            if let Stage::Block { first, second, .. } = &mut stage
                && round % 2 == 1
            {
                first.w = rng.wild(h * d, rarity);
                second.w = rng.wild(d * h, rarity);
                second.b = Some(rng.wild(d, rarity));
            }
            let want = oracle(std::slice::from_ref(&stage), n, &x, None);
            let (layer, x) = (stage.build_block(), Grid::of(Layout::Tight, n, d, &x));
            for ctx in contexts() {
                for blocking in [Blocking::default(), Blocking { rows: 5, hidden: 16, depth: 16 }] {
                    let ctx = ctx.with_blocking(blocking);
                    assert_forward(phi.name(), ctx, Threads::Seq, &layer, &x, Layout::Tight, &want);
                }
            }
        }
    }
}

#[test]
fn zero_times_infinity_is_nan_and_is_not_skipped() {
    let mut rng = Rng::new(12);
    let stage = Stage::linear(&mut rng, 3, 40, Activation::Identity, true);
    let layer = stage.build_linear();
    let mut zero = layer.clone();
    zero.affine_mut(0).expect("a map").weights_mut().read_from(mat(&vec![0.0; 120], 40, 3)).expect("weights");
    for ctx in contexts() {
        let (mut ws, mut y) = (Workspace::new(), vec![0.0; 40]);
        let x = [1.0, f32::INFINITY, 1.0];
        zero.infer(&ctx, &mut ws, mat(&x, 1, 3), mat_mut(&mut y, 1, 40)).expect("infer");
        assert!(y.iter().all(|v| v.is_nan()), "{ctx:?}: weights of 0");
        layer.infer(&ctx, &mut ws, mat(&x, 1, 3), mat_mut(&mut y, 1, 40)).expect("infer");
        assert!(y.iter().all(|v| v.is_infinite()), "{ctx:?}: other weights");
    }
}

#[test]
fn the_sign_of_zero_survives_a_chain_that_starts_from_minus_zero() {
    // fma(0, w, -0) is -0 for negative w; a chain that started from +0 would lose it.
    let affine = resblock::Affine::new(mat(&[-1.0; 20], 20, 1), Some(&[-0.0; 20])).expect("a map");
    let layer = resblock::Linear::new(affine, Activation::Identity);
    for ctx in contexts() {
        let mut y = vec![1.0; 20];
        layer.infer(&ctx, &mut Workspace::new(), mat(&[0.0], 1, 1), mat_mut(&mut y, 1, 20)).expect("infer");
        assert_same(format_args!("{ctx:?}"), &y, &[-0.0; 20]);
    }
}

#[test]
fn one_workspace_serves_layers_and_batches_of_any_size_in_any_order() {
    let mut rng = Rng::new(14);
    let mut ws = Workspace::new();
    for round in 0..60 {
        let (n, d, h) = (rng.below(40), rng.below(50), rng.below(70));
        let phi = ACTIVATIONS[rng.below(ACTIVATIONS.len())];
        let stage = Stage::block(&mut rng, d, h, phi, round % 2 == 0, true);
        let x = rng.vec(n * d);
        let want = oracle(std::slice::from_ref(&stage), n, &x, None);
        let layer = stage.build_block();
        let mut y = vec![f32::NAN; n * d];
        if round % 3 == 0 {
            let pass = layer.forward(&fastest(), &mut ws, mat(&x, n, d), mat_mut(&mut y, n, d)).expect("forward");
            let mut grads = Gradients::new(&layer).expect("gradients");
            pass.backward(mat(&x, n, d), None, &mut grads, resblock::GradMode::Overwrite).expect("backward");
        } else {
            layer.infer(&fastest(), &mut ws, mat(&x, n, d), mat_mut(&mut y, n, d)).expect("infer");
        }
        assert_same(format_args!("round {round}: {n} {d} {h}"), &y, &want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear_equals_the_oracle_for_any_shape_layout_and_blocking(
        (n, k, m) in (size(70), size(70), size(70)),
        phi in prop::sample::select(&ACTIVATIONS[..]),
        (bias, own_skip) in (any::<bool>(), any::<bool>()),
        (x_layout, y_layout) in (input_layout(), prop::sample::select(&LAYOUTS[..])),
        blocking in any_blocking(),
        threads in prop::sample::select(&THREADS[..]),
        seed in any::<u64>(),
    ) {
        let mut rng = Rng::new(seed);
        let m = if own_skip { k } else { m };
        let mut stage = Stage::linear(&mut rng, k, m, phi, bias);
        if let Stage::Linear { skip, .. } = &mut stage {
            *skip = own_skip;
        }
        let x = Grid::of(x_layout, n, k, &rng.vec(n * k));
        let want = oracle(std::slice::from_ref(&stage), n, &x.values(), None);
        let layer = stage.build_linear();
        for ctx in contexts() {
            assert_forward("linear", ctx.with_blocking(blocking), threads, &layer, &x, y_layout, &want);
        }
    }

    #[test]
    fn block_equals_the_oracle_for_any_shape_layout_and_blocking(
        (n, d, h) in (size(70), size(70), size(70)),
        phi in prop::sample::select(&ACTIVATIONS[..]),
        (bias, skip) in (any::<bool>(), any::<bool>()),
        (x_layout, y_layout) in (input_layout(), prop::sample::select(&LAYOUTS[..])),
        blocking in any_blocking(),
        threads in prop::sample::select(&THREADS[..]),
        seed in any::<u64>(),
    ) {
        let mut rng = Rng::new(seed);
        let stage = Stage::block(&mut rng, d, h, phi, skip, bias);
        let x = Grid::of(x_layout, n, d, &rng.vec(n * d));
        let want = oracle(std::slice::from_ref(&stage), n, &x.values(), None);
        let layer = stage.build_block();
        for ctx in contexts() {
            assert_forward("block", ctx.with_blocking(blocking), threads, &layer, &x, y_layout, &want);
        }
    }
}

#[test]
fn an_output_whose_rows_lie_as_those_of_a_panel_keeps_its_gaps() {
    // 16 floats from row to row, as in a panel, but the last of them are not ours.
    let mut rng = Rng::new(1);
    let (n, inputs, outputs) = (7, 5, 11);
    for phi in ACTIVATIONS {
        let stage = Stage::linear(&mut rng, inputs, outputs, phi, true);
        let x = rng.vec(n * inputs);
        let want = oracle_forward(std::slice::from_ref(&stage), n, &x, None).pop().expect("a stage").y;
        let layer = stage.build_linear();
        for ctx in contexts() {
            let mut y = Grid::new(Layout::Padded(16 - outputs), n, outputs);
            layer.infer(&ctx, &mut Workspace::new(), mat(&x, n, inputs), y.view_mut()).expect("infer");
            assert_same(format_args!("{} {ctx:?}", phi.name()), &y.values(), &want);
            y.assert_canaries(phi.name());
        }
    }
}
