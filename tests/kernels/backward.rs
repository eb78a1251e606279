//! Backward passes equal the sequential f32 oracle bit for bit: every gradient of every layer, overwritten, accumulated and
//! declined, for every activation, instruction set, thread count, block size and memory layout.

use crate::common::{
    ACTIVATIONS, Grid, LAYOUTS, Layout, MapGrad, Rng, Stage, THREADS, Threads, any_blocking, assert_same,
    assert_same_grads, blockings, build_stack, contexts, existing, fastest, gradients_of, input_layout, mat, mat_mut,
    oracle_backward, oracle_forward, random_grads, random_stack, size, values_of, zero_grads,
};
use proptest::prelude::*;
use resblock::{Activation, Blocking, Context, GradMode, Gradients, Layer, MatRef, Stack, Workspace};

/// A batch with what the oracle makes of it.
struct Case {
    x: Grid,
    dy: Grid,
    /// What the parameter gradients hold before.
    preset: Vec<MapGrad<f32>>,
    y: Vec<f32>,
    dx: Vec<f32>,
    overwritten: Vec<MapGrad<f32>>,
    accumulated: Vec<MapGrad<f32>>,
}

impl Case {
    fn new(stages: &[Stage], rng: &mut Rng, n: usize) -> Self {
        let (inputs, outputs) = (stages[0].inputs(), stages[stages.len() - 1].outputs());
        let x = Grid::of(Layout::Tight, n, inputs, &rng.vec(n * inputs));
        let dy = Grid::of(Layout::Tight, n, outputs, &rng.vec(n * outputs));
        Self::of(stages, rng, x, dy)
    }

    fn of(stages: &[Stage], rng: &mut Rng, x: Grid, dy: Grid) -> Self {
        let n = x.view().rows();
        let (xs, dys) = (x.values(), dy.values());
        let preset = random_grads(rng, stages);
        let (mut overwritten, mut accumulated) = (zero_grads(stages), preset.clone());
        let mut outs = oracle_forward(stages, n, &xs, None);
        let dx = oracle_backward(stages, n, &xs, &outs, &dys, &mut overwritten).swap_remove(0);
        oracle_backward(stages, n, &xs, &outs, &dys, &mut accumulated);
        Self { x, dy, preset, y: outs.pop().expect("a stage").y, dx, overwritten, accumulated }
    }

    /// Forward and backward on `layer` give the oracle's bits in both modes, with dx and without.
    #[track_caller]
    fn assert<L: Layer + Sync>(&self, what: &str, ctx: Context, threads: Threads, layer: &L, dx_layout: Layout) {
        let n = self.x.view().rows();
        let what = format!("{what}, {threads:?}, {ctx:?}");
        threads.run(ctx, |ctx| {
            let mut ws = Workspace::new();
            for (mode, want) in [(GradMode::Overwrite, &self.overwritten), (GradMode::Accumulate, &self.accumulated)] {
                let mut grads = gradients_of(layer, &self.preset);
                let mut dx = Grid::new(dx_layout, n, layer.inputs());
                let mut y = vec![f32::NAN; n * layer.outputs()];
                let y_mut = mat_mut(&mut y, n, layer.outputs());
                let pass = layer.forward(&ctx, &mut ws, self.x.view(), y_mut).expect("forward");
                pass.backward(self.dy.view(), Some(dx.view_mut()), &mut grads, mode).expect("backward");
                assert_same(format_args!("{what}: y"), &y, &self.y);
                assert_same(format_args!("{what}: dx"), &dx.values(), &self.dx);
                dx.assert_canaries(&what);
                assert_same_grads(format_args!("{what}, {mode:?}"), &values_of(layer, &grads), &existing(layer, want));
            }
            // The gradient of the input declined: the others are the same.
            let mut grads = gradients_of(layer, &self.preset);
            let mut y = vec![f32::NAN; n * layer.outputs()];
            let y_mut = mat_mut(&mut y, n, layer.outputs());
            let pass = layer.forward(&ctx, &mut ws, self.x.view(), y_mut).expect("forward");
            pass.backward(self.dy.view(), None, &mut grads, GradMode::Overwrite).expect("backward");
            assert_same_grads(
                format_args!("{what}, without dx"),
                &values_of(layer, &grads),
                &existing(layer, &self.overwritten),
            );
        });
    }
}

#[test]
fn linear_equals_the_oracle_for_every_activation_bias_and_skip() {
    let mut rng = Rng::new(1);
    for phi in ACTIVATIONS {
        for (bias, own_skip) in [(true, false), (false, false), (true, true), (false, true)] {
            let k = 37;
            let mut stage = Stage::linear(&mut rng, k, if own_skip { k } else { 50 }, phi, bias);
            if let Stage::Linear { skip, .. } = &mut stage {
                *skip = own_skip;
            }
            let layer = stage.build_linear();
            let case = Case::new(&[stage], &mut rng, 9);
            for ctx in contexts() {
                case.assert(phi.name(), ctx, Threads::Seq, &layer, Layout::Tight);
            }
        }
    }
}

#[test]
fn linear_with_a_skip_from_outside_passes_no_skip_gradient_to_its_input() {
    let mut rng = Rng::new(2);
    let (n, k) = (15, 20);
    for phi in ACTIVATIONS {
        // As many outputs as inputs: here a wrong skip gradient would fit.
        let stage = Stage::linear(&mut rng, k, k, phi, true);
        let layer = stage.build_linear();
        let case = Case::new(&[stage], &mut rng, n);
        let skip = rng.vec(n * k);
        for ctx in contexts() {
            let (mut ws, mut y, mut dx) = (Workspace::new(), vec![0.0; n * k], vec![f32::NAN; n * k]);
            let mut grads = gradients_of(&layer, &case.preset);
            let pass = layer.forward_with_skip(&ctx, &mut ws, case.x.view(), mat(&skip, n, k), mat_mut(&mut y, n, k));
            let dx_mut = mat_mut(&mut dx, n, k);
            let pass = pass.expect("forward");
            pass.backward(case.dy.view(), Some(dx_mut), &mut grads, GradMode::Overwrite).expect("backward");
            assert_same(format_args!("{} dx {ctx:?}", phi.name()), &dx, &case.dx);
            assert_same_grads(phi.name(), &values_of(&layer, &grads), &case.overwritten);
        }
    }
}

#[test]
fn block_equals_the_oracle_for_every_activation_skip_and_bias() {
    let mut rng = Rng::new(3);
    for phi in ACTIVATIONS {
        for (skip, bias) in [(true, true), (false, true), (true, false), (false, false)] {
            let stage = Stage::block(&mut rng, 35, 70, phi, skip, bias);
            let layer = stage.build_block();
            let case = Case::new(&[stage], &mut rng, 19);
            for ctx in contexts() {
                for blocking in blockings() {
                    case.assert(phi.name(), ctx.with_blocking(blocking), Threads::Seq, &layer, Layout::Tight);
                }
            }
        }
    }
}

#[test]
fn block_equals_the_oracle_at_every_combination_of_edge_sizes() {
    let mut rng = Rng::new(4);
    for n in [0, 1, 2, 7, 13, 14, 15, 17] {
        for d in [0, 1, 15, 16, 17, 33] {
            for h in [0, 1, 15, 16, 17, 33] {
                let stage = Stage::block(&mut rng, d, h, Activation::Relu, true, true);
                let layer = stage.build_block();
                let case = Case::new(&[stage], &mut rng, n);
                for ctx in contexts() {
                    case.assert(&format!("n {n}, d {d}, h {h}"), ctx, Threads::Seq, &layer, Layout::Padded(3));
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
            let layer = build_stack(&stages);
            let case = Case::new(&stages, &mut rng, 11);
            for ctx in contexts() {
                for blocking in blockings() {
                    let what = format!("{} {blocks} blocks of {widths:?}", phi.name());
                    case.assert(&what, ctx.with_blocking(blocking), Threads::Seq, &layer, Layout::Transposed(1));
                }
            }
        }
    }
}

#[test]
fn any_number_of_threads_that_share_rows_gives_the_bits_of_one() {
    let mut rng = Rng::new(6);
    for phi in [Activation::Relu, Activation::Silu] {
        let stage = Stage::block(&mut rng, 128, 160, phi, true, true);
        let layer = stage.build_block();
        let case = Case::new(&[stage], &mut rng, 300);
        for ctx in contexts() {
            for threads in THREADS {
                case.assert(phi.name(), ctx, threads, &layer, Layout::Tight);
            }
            let small = ctx.with_blocking(Blocking { rows: 17, ..Blocking::default() });
            case.assert(phi.name(), small, Threads::Rayon(3), &layer, Layout::Transposed(2));
        }
    }
}

#[test]
fn any_number_of_threads_that_share_columns_gives_the_bits_of_one() {
    let mut rng = Rng::new(7);
    for (phi, skip) in [(Activation::Relu, true), (Activation::GeluTanh, false)] {
        let stage = Stage::block(&mut rng, 1500, 1600, phi, skip, true);
        let layer = stage.build_block();
        let case = Case::new(&[stage], &mut rng, 3);
        for ctx in contexts() {
            for threads in [Threads::Seq, Threads::Rayon(3), Threads::Rayon(8)] {
                case.assert(phi.name(), ctx, threads, &layer, Layout::Padded(9));
            }
        }
    }
}

#[test]
fn threads_that_share_the_columns_of_a_stack_give_the_bits_of_one() {
    let mut rng = Rng::new(8);
    let stages = random_stack(&mut rng, (30, 1024, 1050, 10), 2, Activation::Silu, true);
    let layer = build_stack(&stages);
    let case = Case::new(&stages, &mut rng, 4);
    for ctx in contexts() {
        case.assert("stack", ctx, Threads::Rayon(3), &layer, Layout::Tight);
    }
}

#[test]
fn slabs_and_groups_of_stages_on_several_threads_give_the_bits_of_one() {
    // Enough work that threads take the batch in more than one slab and the network in more than one group of stages.
    let mut rng = Rng::new(16);
    let (n, d, h) = (600, 160, 208);
    let stages = Vec::from_iter((0..4).map(|_| Stage::block(&mut rng, d, h, Activation::GeluTanh, true, true)));
    let stack = Stack::from_blocks(stages.iter().map(Stage::build_block).collect()).expect("a stack");
    let (x, dy, preset) = (rng.vec(n * d), rng.vec(n * d), random_grads(&mut rng, &stages));
    let step = |ctx: &Context| {
        let (mut ws, mut grads) = (Workspace::new(), gradients_of(&stack, &preset));
        let (mut y, mut dx) = (vec![0.0; n * d], vec![0.0; n * d]);
        let pass = stack.forward(ctx, &mut ws, mat(&x, n, d), mat_mut(&mut y, n, d)).expect("forward");
        let dx_mut = mat_mut(&mut dx, n, d);
        pass.backward(mat(&dy, n, d), Some(dx_mut), &mut grads, GradMode::Accumulate).expect("backward");
        (y, dx, values_of(&stack, &grads))
    };
    let ctx = fastest();
    let (y, dx, grads) = step(&ctx);
    for threads in THREADS {
        for rows in [0, 100] {
            let ctx = ctx.with_blocking(Blocking { rows, ..Blocking::default() });
            threads.run(ctx, |ctx| {
                let got = step(&ctx);
                assert_same(format_args!("{threads:?} y"), &got.0, &y);
                assert_same(format_args!("{threads:?} dx"), &got.1, &dx);
                assert_same_grads(format_args!("{threads:?}"), &got.2, &grads);
            });
        }
    }
}

#[test]
fn few_rows_equal_the_oracle_on_whole_and_on_cut_panels() {
    let mut rng = Rng::new(17);
    for n in 1..=9 {
        for (d, h) in [(16, 32), (48, 33), (35, 64), (150, 16)] {
            let stages = random_stack(&mut rng, (d, d, h, d), 1, Activation::Silu, true);
            let (stack, case) = (build_stack(&stages), Case::new(&stages, &mut rng, n));
            for ctx in contexts() {
                case.assert("few rows", ctx, Threads::Seq, &stack, Layout::Tight);
            }
        }
    }
}

#[test]
fn gradients_written_past_the_caches_equal_the_oracle() {
    let mut rng = Rng::new(18);
    for n in [1, 2, 3, 4, 5, 7] {
        let stage = Stage::linear(&mut rng, 1024, 1031, Activation::Identity, true);
        let (layer, case) = (stage.build_linear(), Case::new(std::slice::from_ref(&stage), &mut rng, n));
        for ctx in contexts() {
            for threads in [Threads::Seq, Threads::Rayon(3)] {
                case.assert("a large gradient", ctx, threads, &layer, Layout::Tight);
            }
        }
    }
}

#[test]
fn each_gradient_can_be_declined_and_the_others_keep_their_bits() {
    let mut rng = Rng::new(9);
    let stages = random_stack(&mut rng, (5, 18, 33, 4), 1, Activation::Gelu, true);
    let layer = build_stack(&stages);
    let case = Case::new(&stages, &mut rng, 21);
    for ctx in contexts() {
        for declined in 0..2 * layer.affine_count() {
            let (map, bias) = (declined / 2, declined % 2 == 1);
            let name = layer.affine_name(map);
            let mut grads = gradients_of(&layer, &case.preset);
            let tensor = if bias { name.bias() } else { name.weight() };
            assert_eq!(grads.decline(|name| name == tensor), 1);
            let mut want = case.accumulated.clone();
            *(if bias { &mut want[map].db } else { &mut want[map].dw }) = Vec::new();
            let (mut y, mut dx, mut ws) = (vec![0.0; 21 * 4], vec![0.0; 21 * 5], Workspace::new());
            let pass = layer.forward(&ctx, &mut ws, case.x.view(), mat_mut(&mut y, 21, 4)).expect("forward");
            let dx_mut = mat_mut(&mut dx, 21, 5);
            pass.backward(case.dy.view(), Some(dx_mut), &mut grads, GradMode::Accumulate).expect("backward");
            assert_same("dx", &dx, &case.dx);
            assert_same_grads(format_args!("without {name}, bias {bias}"), &values_of(&layer, &grads), &want);
        }
    }
}

#[test]
fn everything_declined_leaves_dx_alone_to_compute() {
    let mut rng = Rng::new(10);
    let stages = vec![Stage::block(&mut rng, 18, 33, Activation::Silu, true, true)];
    let layer = stages[0].build_block();
    let case = Case::new(&stages, &mut rng, 21);
    let mut grads = Gradients::new(&layer).expect("gradients");
    assert_eq!(grads.decline(|_| true), 4);
    assert_eq!(grads.iter().count(), 0);
    let (mut y, mut dx, mut ws) = (vec![0.0; 21 * 18], vec![0.0; 21 * 18], Workspace::new());
    let pass = layer.forward(&fastest(), &mut ws, case.x.view(), mat_mut(&mut y, 21, 18)).expect("forward");
    pass.backward(case.dy.view(), Some(mat_mut(&mut dx, 21, 18)), &mut grads, GradMode::Overwrite).expect("backward");
    assert_same("dx", &dx, &case.dx);
}

/// Some rows of a tight matrix.
fn rows(data: &[f32], cols: usize, first: usize, count: usize) -> MatRef<'_> {
    mat(&data[first * cols..][..count * cols], count, cols)
}

#[test]
fn micro_batches_of_any_sizes_accumulate_to_the_bits_of_the_whole_batch() {
    let mut rng = Rng::new(11);
    let (n, inputs, outputs) = (61, 19, 7);
    for phi in [Activation::Relu, Activation::Tanh] {
        let stages = random_stack(&mut rng, (inputs, 33, 48, outputs), 2, phi, true);
        let layer = build_stack(&stages);
        let case = Case::new(&stages, &mut rng, n);
        let (x, dy) = (case.x.values(), case.dy.values());
        for ctx in contexts() {
            for round in 0..6 {
                let mut grads = gradients_of(&layer, &case.preset);
                let (mut ws, mut dx, mut at) = (Workspace::new(), vec![0.0; n * inputs], 0);
                while at < n {
                    // Sizes 1, 2, 4, 8, 16 and random ones, an empty batch now and then among these.
                    let count = if round < 5 { 1 << round } else { rng.below(20) }.min(n - at);
                    let mut y = vec![0.0; count * outputs];
                    let y_mut = mat_mut(&mut y, count, outputs);
                    let pass = layer.forward(&ctx, &mut ws, rows(&x, inputs, at, count), y_mut).expect("forward");
                    let dx_mut = mat_mut(&mut dx[at * inputs..][..count * inputs], count, inputs);
                    let dy = rows(&dy, outputs, at, count);
                    // The first one replaces in one of the rounds: the whole batch from zero.
                    let mode = if round == 1 && at == 0 { GradMode::Overwrite } else { GradMode::Accumulate };
                    pass.backward(dy, Some(dx_mut), &mut grads, mode).expect("backward");
                    at += count;
                }
                let want = if round == 1 { &case.overwritten } else { &case.accumulated };
                assert_same_grads(
                    format_args!("{} round {round} {ctx:?}", phi.name()),
                    &values_of(&layer, &grads),
                    want,
                );
                assert_same("dx", &dx, &case.dx);
            }
        }
    }
}

#[test]
fn an_empty_batch_overwrites_with_zeros_and_accumulates_nothing() {
    let mut rng = Rng::new(12);
    let stages = random_stack(&mut rng, (5, 18, 33, 4), 1, Activation::Relu, true);
    let layer = build_stack(&stages);
    for ctx in contexts() {
        for mode in [GradMode::Overwrite, GradMode::Accumulate] {
            let preset = random_grads(&mut rng, &stages);
            let mut grads = gradients_of(&layer, &preset);
            let mut ws = Workspace::new();
            let pass = layer.forward(&ctx, &mut ws, mat(&[], 0, 5), mat_mut(&mut [], 0, 4)).expect("forward");
            pass.backward(mat(&[], 0, 4), Some(mat_mut(&mut [], 0, 5)), &mut grads, mode).expect("backward");
            let want = if mode == GradMode::Overwrite { zero_grads(&stages) } else { preset };
            assert_same_grads(format_args!("{mode:?}"), &values_of(&layer, &grads), &want);
        }
    }
}

#[test]
fn the_gradient_of_a_row_is_the_same_alone_and_in_any_batch() {
    let mut rng = Rng::new(13);
    let stages = vec![Stage::block(&mut rng, 40, 65, Activation::Gelu, true, true)];
    let layer = stages[0].build_block();
    let (n, d) = (47, 40);
    let case = Case::new(&stages, &mut rng, n);
    let (x, dy) = (case.x.values(), case.dy.values());
    for ctx in contexts() {
        let (mut ws, mut grads) = (Workspace::new(), Gradients::new(&layer).expect("gradients"));
        for i in 0..n {
            let (mut y, mut dx) = (vec![0.0; d], vec![0.0; d]);
            let pass = layer.forward(&ctx, &mut ws, rows(&x, d, i, 1), mat_mut(&mut y, 1, d)).expect("forward");
            let dx_mut = mat_mut(&mut dx, 1, d);
            pass.backward(rows(&dy, d, i, 1), Some(dx_mut), &mut grads, GradMode::Overwrite).expect("backward");
            assert_same(format_args!("y of row {i} {ctx:?}"), &y, &case.y[i * d..][..d]);
            assert_same(format_args!("dx of row {i} {ctx:?}"), &dx, &case.dx[i * d..][..d]);
        }
    }
}

#[test]
fn zeros_of_both_signs_infinities_nans_and_denormals_propagate_as_in_the_oracle() {
    let mut rng = Rng::new(14);
    for phi in ACTIVATIONS {
        for rarity in [400, 100, 20, 4] {
            let stages = vec![Stage::block(&mut rng, 19, 34, phi, true, true)];
            let layer = stages[0].build_block();
            let x = Grid::of(Layout::Tight, 17, 19, &rng.wild(17 * 19, rarity));
            let dy = Grid::of(Layout::Tight, 17, 19, &rng.wild(17 * 19, rarity));
            let case = Case::of(&stages, &mut rng, x, dy);
            for ctx in contexts() {
                case.assert(phi.name(), ctx, Threads::Seq, &layer, Layout::Tight);
                let small = ctx.with_blocking(Blocking { rows: 5, hidden: 16, depth: 16 });
                case.assert(phi.name(), small, Threads::Seq, &layer, Layout::Tight);
            }
        }
    }
}

#[test]
fn a_linear_layer_carries_special_values_back_as_in_the_oracle() {
    let mut rng = Rng::new(15);
    for phi in ACTIVATIONS {
        for rarity in [50, 4] {
            let stages = vec![Stage::linear(&mut rng, 19, 34, phi, true)];
            let layer = stages[0].build_linear();
            let x = Grid::of(Layout::Tight, 17, 19, &rng.wild(17 * 19, rarity));
            let dy = Grid::of(Layout::Tight, 17, 34, &rng.wild(17 * 34, rarity));
            let case = Case::of(&stages, &mut rng, x, dy);
            for ctx in contexts() {
                case.assert(phi.name(), ctx, Threads::Seq, &layer, Layout::Tight);
            }
        }
    }
}

#[test]
fn a_dropped_pass_leaves_no_trace() {
    let mut rng = Rng::new(16);
    let stages = vec![Stage::block(&mut rng, 19, 34, Activation::Silu, true, true)];
    let layer = stages[0].build_block();
    let (first, second) = (Case::new(&stages, &mut rng, 40), Case::new(&stages, &mut rng, 13));
    let (ctx, mut ws) = (fastest(), Workspace::new());
    let mut y = vec![0.0; 40 * 19];
    drop(layer.forward(&ctx, &mut ws, first.x.view(), mat_mut(&mut y, 40, 19)).expect("forward"));
    let mut grads = gradients_of(&layer, &second.preset);
    let y_mut = mat_mut(&mut y[..13 * 19], 13, 19);
    let pass = layer.forward(&ctx, &mut ws, second.x.view(), y_mut).expect("forward");
    pass.backward(second.dy.view(), None, &mut grads, GradMode::Accumulate).expect("backward");
    assert_same_grads("second pass", &values_of(&layer, &grads), &second.accumulated);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear_equals_the_oracle_for_any_shape_layout_and_blocking(
        (n, k, m) in (size(60), size(60), size(60)),
        phi in prop::sample::select(&ACTIVATIONS[..]),
        (bias, own_skip) in (any::<bool>(), any::<bool>()),
        (x_layout, dy_layout, dx_layout) in (input_layout(), input_layout(), prop::sample::select(&LAYOUTS[..])),
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
        let layer = stage.build_linear();
        let x = Grid::of(x_layout, n, k, &rng.vec(n * k));
        let dy = Grid::of(dy_layout, n, m, &rng.vec(n * m));
        let case = Case::of(&[stage], &mut rng, x, dy);
        for ctx in contexts() {
            case.assert("linear", ctx.with_blocking(blocking), threads, &layer, dx_layout);
        }
    }

    #[test]
    fn block_equals_the_oracle_for_any_shape_layout_and_blocking(
        (n, d, h) in (size(60), size(60), size(60)),
        phi in prop::sample::select(&ACTIVATIONS[..]),
        (bias, skip) in (any::<bool>(), any::<bool>()),
        (x_layout, dy_layout, dx_layout) in (input_layout(), input_layout(), prop::sample::select(&LAYOUTS[..])),
        blocking in any_blocking(),
        threads in prop::sample::select(&THREADS[..]),
        seed in any::<u64>(),
    ) {
        let mut rng = Rng::new(seed);
        let stage = Stage::block(&mut rng, d, h, phi, skip, bias);
        let layer = stage.build_block();
        let x = Grid::of(x_layout, n, d, &rng.vec(n * d));
        let dy = Grid::of(dy_layout, n, d, &rng.vec(n * d));
        let case = Case::of(&[stage], &mut rng, x, dy);
        for ctx in contexts() {
            case.assert("block", ctx.with_blocking(blocking), threads, &layer, dx_layout);
        }
    }
}
