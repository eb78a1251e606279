//! The layer API: names and numbers of parameters, initial values, copies in and out, optimisers, losses, the gradient probe,
//! training, and what may cross threads.

use crate::common::{
    self, Grid, Layout, NAMES, Rng, Stage, assert_same, assert_within, build_stack, contexts, fastest, gradients_of,
    mat, mat_mut, oracle_backward, oracle_forward, parameters_of, random_grads, random_stack, to_f64, to_running,
    zero_grads,
};
use resblock::bounds::Running;
use resblock::reference::Real;
use resblock::{
    Activation, AdamW, Affine, Block, Blocking, Context, Error, GradMode, GradientFlow, Gradients, Init, Isa, Layer,
    Linear, MatMut, MatRef, Optimizer, Par, Part, Pass, Scheme, Sgd, Skip, Stack, StackConfig, Weights, Workspace,
    mean_squared_error, softmax_cross_entropy,
};

fn config() -> StackConfig {
    StackConfig { inputs: 3, width: 20, hidden: 33, blocks: 2, outputs: 5, seed: 42, ..StackConfig::default() }
}

/// Makes every weight of affine map `index` the same, in place.
fn fill_weights<L: Layer>(layer: &mut L, index: usize, value: f32) {
    let name = layer.affine_name(index).weight();
    let mut parameters = layer.parameters_mut();
    parameters.find(|p| p.name() == name).expect("weights").into_slice().fill(value);
}

#[test]
fn parameters_have_paths_as_names_in_the_order_that_a_row_meets_them() {
    let stack = Stack::new(&config()).expect("a stack");
    let names: Vec<String> = stack.parameters().map(|p| p.to_string()).collect();
    assert_eq!(names, NAMES);
    let grads = Gradients::new(&stack).expect("gradients");
    assert_eq!(grads.iter().map(|g| g.to_string()).collect::<Vec<_>>(), NAMES, "gradients are named as parameters");
    let shapes: Vec<_> = stack.parameters().map(|p| p.shape()).collect();
    assert_eq!(shapes[..6], [(20, 3), (1, 20), (33, 20), (1, 33), (20, 33), (1, 20)]);
    assert_eq!(grads.iter().map(|g| g.shape()).collect::<Vec<_>>(), shapes);
    let numbers = 3 * 20 + 20 + 2 * (20 * 33 + 33 + 33 * 20 + 20) + 20 * 5 + 5;
    assert_eq!(stack.parameter_count(), numbers);

    let linear = Linear::with_init(3, 2, Activation::Relu, &mut Init::he(1)).expect("a layer");
    assert_eq!(linear.parameters().map(|p| p.to_string()).collect::<Vec<_>>(), ["linear.weight", "linear.bias"]);
    let bare = Linear::new(Affine::new(mat(&[0.0; 6], 2, 3), None).expect("a map"), Activation::Relu);
    assert_eq!(bare.parameters().map(|p| p.to_string()).collect::<Vec<_>>(), ["linear.weight"]);
    assert_eq!((bare.parameter_count(), linear.parameter_count()), (6, 8));
    let block = Block::plain(3, 2, Activation::Relu, &mut Init::he(1)).expect("a block");
    let names: Vec<String> = block.parameters().map(|p| p.to_string()).collect();
    assert_eq!(names, ["first.weight", "first.bias", "second.weight", "second.bias"]);
}

#[test]
fn layers_tell_their_sizes_and_their_maps() {
    let mut stack = Stack::new(&config()).expect("a stack");
    assert_eq!((stack.inputs(), stack.outputs(), stack.affine_count(), stack.blocks().len()), (3, 5, 6, 2));
    let names = ["input", "blocks.0.first", "blocks.0.second", "blocks.1.first", "blocks.1.second", "output"];
    for (i, name) in names.into_iter().enumerate() {
        assert_eq!(stack.affine_name(i).to_string(), name);
        let map = stack.affine(i).expect("a map");
        let sizes = (map.inputs(), map.outputs());
        assert_eq!(stack.affine_mut(i).map(|map| (map.inputs(), map.outputs())), Some(sizes));
    }
    assert!(stack.affine(6).is_none() && stack.affine_mut(6).is_none());
    let block = &stack.blocks()[1];
    assert_eq!((block.inputs(), block.outputs(), block.skip()), (20, 20, Skip::Identity));
    assert_eq!((block.activation(), block.first().outputs(), block.second().inputs()), (Activation::Relu, 33, 33));
    assert!(block.affine(2).is_none());
    let map = stack.affine(1).expect("a map");
    assert_eq!(map.weights().get(32, 19), parameters_of(&stack)[2].last().copied());
    assert_eq!((map.weights().get(33, 0), map.weights().get(0, 20)), (None, None));
    let bias = stack.parameters().nth(1).expect("a bias");
    assert!(bias.name() == Part::Input.bias());
    assert_eq!((bias.get(0, 19), bias.get(0, 20), bias.get(1, 0)), (Some(0.0), None, None));
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_others() {
    let bits = |config: &StackConfig| parameters_of(&Stack::new(config).expect("a stack"));
    assert_eq!(bits(&config()), bits(&config()));
    assert_ne!(bits(&config()), bits(&StackConfig { seed: 43, ..config() }));
}

#[test]
fn the_first_values_of_a_seed_are_these_on_every_platform() {
    let first = |scheme| {
        let map = Init::new(scheme, 2024).affine(3, 2, 1.0).expect("a map");
        parameters_of(&Linear::new(map, Activation::Identity))[0].iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(first(Scheme::HeNormal), [0xbf112a57, 0x3f90ab0c, 0x3eb7b3dc, 0x3f9e0f30, 0x3e9b7940, 0xbc69b248]);
    assert_eq!(first(Scheme::XavierUniform), [0x3f0d3ab7, 0xbf3ac21f, 0x3f82d153, 0x3f874d57, 0x3ebe9b15, 0x3ed05333]);
}

#[test]
fn every_scheme_has_its_spread_and_biases_start_at_zero() {
    let (inputs, outputs) = (300, 200);
    for (scheme, variance, limit) in [
        (Scheme::HeNormal, 2.0 / 300.0, f64::INFINITY),
        (Scheme::HeUniform, 2.0 / 300.0, (6.0_f64 / 300.0).sqrt()),
        (Scheme::XavierNormal, 2.0 / 500.0, f64::INFINITY),
        (Scheme::XavierUniform, 2.0 / 500.0, (6.0_f64 / 500.0).sqrt()),
        (Scheme::Zeros, 0.0, 0.0),
    ] {
        let map = Init::new(scheme, 9).affine(inputs, outputs, 0.5).expect("a map");
        assert_eq!(map.bias(), Some(&[0.0; 200][..]));
        let layer = Linear::new(map, Activation::Identity);
        let w = to_f64(&parameters_of(&layer)[0]);
        let (n, scale) = (w.len() as f64, 0.25 * variance);
        let mean = w.iter().sum::<f64>() / n;
        let found = w.iter().map(|w| w * w).sum::<f64>() / n;
        assert!(mean.abs() <= 5.0 * (scale / n).sqrt(), "{scheme:?}: mean {mean}");
        assert!((found - scale).abs() <= 5.0 * scale * (2.0 / n).sqrt(), "{scheme:?}: variance {found}, not {scale}");
        assert!(w.iter().all(|w| w.abs() <= 0.5 * limit * (1.0 + 1e-6)), "{scheme:?}: beyond {limit}");
    }
}

#[test]
fn parameters_come_out_as_they_went_in_through_any_strides() {
    let mut rng = Rng::new(1);
    for (outputs, inputs) in [(1, 1), (16, 16), (17, 15), (5, 40), (40, 5), (0, 3), (3, 0)] {
        let (w, b) = (rng.vec(outputs * inputs), rng.vec(outputs));
        for layout in [Layout::Tight, Layout::Padded(3), Layout::Transposed(2), Layout::Spread(1)] {
            let grid = Grid::of(layout, outputs, inputs, &w);
            let mut map = Affine::new(grid.view(), Some(&b)).expect("a map");
            let mut out = Grid::new(layout, outputs, inputs);
            map.weights().write_to(out.view_mut()).expect("a copy");
            assert_same("weights", &out.values(), &w);
            out.assert_canaries("weights");
            assert_eq!(map.bias(), Some(&b[..]));
            let other = rng.vec(outputs * inputs);
            map.weights_mut().read_from(Grid::of(layout, outputs, inputs, &other).view()).expect("a copy");
            map.bias_mut().expect("a bias").fill(7.0);
            let layer = Linear::new(map, Activation::Identity);
            assert_eq!(parameters_of(&layer), [other, vec![7.0; outputs]]);
        }
        let weights = Weights::new(mat(&w, outputs, inputs)).expect("weights");
        assert_eq!((weights.outputs(), weights.inputs()), (outputs, inputs));
        assert_eq!((weights.get(outputs, 0), weights.get(0, inputs)), (None, None));
    }
}

/// One backward pass on the fastest set: dx.
fn input_gradient<L: Layer>(layer: &L, n: usize, x: &[f32], dy: &[f32]) -> Result<Vec<f32>, Error> {
    let (mut ws, mut y, mut dx) = (Workspace::new(), vec![0.0; dy.len()], vec![0.0; x.len()]);
    let mut grads = Gradients::new(layer)?;
    let x = mat(x, n, layer.inputs());
    let pass = layer.forward(&fastest(), &mut ws, x, mat_mut(&mut y, n, layer.outputs()))?;
    let dx_mut = mat_mut(&mut dx, n, layer.inputs());
    pass.backward(mat(dy, n, layer.outputs()), Some(dx_mut), &mut grads, GradMode::Overwrite)?;
    Ok(dx)
}

#[test]
fn every_change_of_the_weights_reaches_the_backward_pass() {
    let mut rng = Rng::new(2);
    let (n, d, h) = (4, 18, 35);
    let mut stage = Stage::block(&mut rng, d, h, Activation::Identity, true, true);
    let mut layer = stage.build_block();
    let (x, dy, w1, w2) = (rng.vec(n * d), rng.vec(n * d), rng.vec(h * d), rng.vec(d * h));
    layer.affine_mut(0).expect("a map").weights_mut().read_from(mat(&w1, h, d)).expect("weights");
    fill_weights(&mut layer, 1, 0.5);
    let mut ones = vec![0.5; d * h];
    for change in 0..3 {
        if let Stage::Block { first, second, .. } = &mut stage {
            (first.w, second.w) = (w1.clone(), ones.clone());
        }
        let outs = oracle_forward::<f32>(std::slice::from_ref(&stage), n, &x, None);
        let mut grads = zero_grads(std::slice::from_ref(&stage));
        let want = oracle_backward(std::slice::from_ref(&stage), n, &x, &outs, &dy, &mut grads).swap_remove(0);
        assert_same(format_args!("change {change}"), &input_gradient(&layer, n, &x, &dy).expect("dx"), &want);
        let weights = layer.affine_mut(1).expect("a map").weights_mut();
        if change == 0 {
            weights.read_from(mat(&w2, d, h)).expect("weights");
            ones = w2.clone();
        } else {
            weights.read_from(mat(&w1, d, h)).expect("weights");
            ones = w1.clone();
        }
    }
}

#[test]
fn norms_do_not_count_the_padding_whatever_was_written_there() {
    let (outputs, inputs) = (5, 3);
    let map = Affine::new(mat(&[1.0; 15], outputs, inputs), None).expect("a map");
    let mut layer = Linear::new(map, Activation::Identity);
    fill_weights(&mut layer, 0, 2.0);
    assert_eq!(layer.parameters().next().expect("weights").norm_squared(), 60.0);
    // The factor of a clip to a norm, where the norm is 0: the gradients become NaN, and are overwritten by the next pass.
    let mut grads = Gradients::new(&layer).expect("gradients");
    grads.scale(&fastest(), 1.0 / grads.norm(&fastest()) as f32);
    assert!(grads.norm(&fastest()).is_nan());
    grads.set(Part::Linear.weight(), mat(&[3.0; 15], outputs, inputs)).expect("gradients");
    assert_eq!(grads.norm(&fastest()), 135.0_f64.sqrt());
}

#[test]
fn gradients_can_be_set_read_scaled_and_measured() {
    let mut rng = Rng::new(4);
    let stages = random_stack(&mut rng, (3, 20, 33, 5), 1, Activation::Relu, true);
    let stack = build_stack(&stages);
    let values = random_grads(&mut rng, &stages);
    let mut grads = gradients_of(&stack, &values);
    let squares = |v: &[f32]| v.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let norm = values.iter().map(|g| squares(&g.dw) + squares(&g.db)).sum::<f64>().sqrt();
    assert!((grads.norm(&fastest()) - norm).abs() < 1e-12 * norm);
    let first = grads.iter().next().expect("a gradient");
    assert_eq!((first.get(19, 2), first.get(20, 0)), (values[0].dw.last().copied(), None));
    grads.scale(&fastest(), 0.5);
    assert!((grads.norm(&fastest()) - 0.5 * norm).abs() < 1e-12 * norm);
    let second = Part::Second.in_block(0).bias();
    assert_eq!(grads.decline(|name| name == second || name == Part::Output.weight()), 2);
    assert_eq!(grads.decline(|name| name == second), 0, "once");
    assert_eq!(grads.decline(|name| name.place.block == Some(1)), 0, "there is one block");
    assert_eq!(grads.iter().count(), 6);
    assert_eq!(grads.set(second, mat(&[0.0; 20], 1, 20)), Ok(false), "declined");
    grads.scale(&fastest(), 0.0);
    assert_eq!(grads.norm(&fastest()), 0.0);
}

/// Five steps of an optimiser on the same gradients, on every instruction set: the parameters, which must be the same bits.
fn steps<O: Optimizer>(make: impl Fn() -> O, stages: &[Stage], rng: &mut Rng) -> (Vec<Vec<f32>>, Vec<Vec<Vec<f32>>>) {
    let all: Vec<_> = (0..5).map(|_| random_grads(rng, stages)).collect();
    let mut results = Vec::new();
    for ctx in contexts() {
        let (mut layer, mut optimizer) = (build_stack(stages), make());
        for values in &all {
            let grads = gradients_of(&layer, values);
            optimizer.step(&ctx, &mut layer, &grads).expect("a step");
        }
        results.push(parameters_of(&layer));
    }
    for result in &results {
        for (i, (got, want)) in result.iter().zip(&results[0]).enumerate() {
            assert_same(format_args!("parameter {i} on another instruction set"), got, want);
        }
    }
    let flat = |values: Vec<common::MapGrad<f32>>| values.into_iter().flat_map(|g| [g.dw, g.db]).collect();
    (results.swap_remove(0), all.into_iter().map(flat).collect())
}

/// Within the running error bound, which says something.
#[track_caller]
fn assert_near(what: &str, got: &[f32], want: &[Running]) {
    assert_within(what, got, want);
    assert!(want.iter().all(|w| w.error() < 2e-6 * (1.0 + w.value().abs())), "{what}: {want:?}");
}

#[test]
fn sgd_follows_its_formula_with_the_same_bits_on_every_instruction_set() {
    let mut rng = Rng::new(5);
    let stages = random_stack(&mut rng, (3, 20, 33, 5), 1, Activation::Relu, true);
    let before = parameters_of(&build_stack(&stages));
    for (lr, momentum, weight_decay) in [(0.1_f32, 0.9_f32, 0.01_f32), (0.05, 0.0, 0.0)] {
        let make = || {
            let mut sgd = Sgd::new(lr, momentum);
            sgd.weight_decay = weight_decay;
            sgd
        };
        let (got, grads) = steps(make, &stages, &mut rng);
        for (i, got) in got.iter().enumerate() {
            let decay = Running::from(if i % 2 == 0 { weight_decay } else { 0.0 });
            let mut p = to_running(&before[i]);
            let mut v = vec![Running::ZERO; p.len()];
            for g in &grads {
                for (k, &g) in g[i].iter().enumerate() {
                    v[k] = Running::from(momentum).fma(v[k], decay.fma(p[k], Running::from(g)));
                    p[k] = Running::from(-lr).fma(v[k], p[k]);
                }
            }
            assert_near(&format!("parameter {i}"), got, &p);
        }
    }
}

#[test]
fn plain_descent_is_one_multiply_add() {
    let mut rng = Rng::new(6);
    let stages = [Stage::linear(&mut rng, 7, 21, Activation::Identity, true)];
    let values = random_grads(&mut rng, &stages);
    for ctx in contexts() {
        let mut layer = stages[0].build_linear();
        let (before, grads) = (parameters_of(&layer), gradients_of(&layer, &values));
        Sgd::new(0.1, 0.0).step(&ctx, &mut layer, &grads).expect("a step");
        for ((after, before), g) in parameters_of(&layer).iter().zip(&before).zip([&values[0].dw, &values[0].db]) {
            let want: Vec<f32> = before.iter().zip(g).map(|(p, g)| (-0.1_f32).mul_add(*g, *p)).collect();
            assert_same("p - lr g", after, &want);
        }
    }
}

#[test]
fn adamw_follows_its_formula_with_the_same_bits_on_every_instruction_set() {
    let mut rng = Rng::new(7);
    let stages = random_stack(&mut rng, (3, 20, 33, 5), 1, Activation::Relu, true);
    let before = parameters_of(&build_stack(&stages));
    let (got, grads) = steps(|| AdamW::new(0.01), &stages, &mut rng);
    let (lr, b1, b2, eps) = (0.01_f32, 0.9_f32, 0.999_f32, Running::from(1e-8));
    let wide = Running::from;
    for (i, got) in got.iter().enumerate() {
        // 1 - b is exact in f32 for b in [1/2, 1]; 1 - lr decay, lr / (1 - b1^t) and 1 / sqrt(1 - b2^t) are rounded, the first from
        // a rounded product.
        let keep = if i % 2 == 0 { wide(-lr).mul(wide(0.01)).add(wide(1.0)) } else { wide(1.0) };
        let mut p = to_running(&before[i]);
        let (mut m, mut v) = (vec![Running::ZERO; p.len()], vec![Running::ZERO; p.len()]);
        for (t, g) in (1..).zip(&grads) {
            let rate = Running::rounded(f64::from(lr) / (1.0 - f64::from(b1).powi(t)));
            let root = Running::rounded(1.0 / (1.0 - f64::from(b2).powi(t)).sqrt());
            for (k, &g) in g[i].iter().enumerate() {
                let g = wide(g);
                m[k] = wide(b1).fma(m[k], wide(1.0 - b1).mul(g));
                v[k] = wide(b2).fma(v[k], wide(1.0 - b2).mul(g.mul(g)));
                let step = rate.mul(m[k] / v[k].sqrt().fma(root, eps));
                // One rounding for rate * step and p, where the kernel has a fused one: the product is rounded here in vain.
                p[k] = keep.mul(p[k]).add(wide(-1.0).mul(step));
            }
        }
        assert_near(&format!("parameter {i}"), got, &p);
    }
}

#[test]
fn optimisers_leave_declined_parameters_alone() {
    let mut rng = Rng::new(8);
    let stages = [Stage::block(&mut rng, 7, 21, Activation::Relu, true, true)];
    let mut layer = stages[0].build_block();
    let mut grads = gradients_of(&layer, &random_grads(&mut rng, &stages));
    assert_eq!(grads.decline(|name| name == Part::First.weight() || name == Part::Second.bias()), 2);
    let before = parameters_of(&layer);
    Sgd::new(0.1, 0.9).step(&fastest(), &mut layer, &grads).expect("a step");
    AdamW::new(0.1).step(&fastest(), &mut layer, &grads).expect("a step");
    let after = parameters_of(&layer);
    let changed: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    assert_eq!(changed, [false, true, true, false]);
}

#[test]
fn softmax_cross_entropy_equals_cases_computed_by_hand() {
    let mut d = [0.0; 4];
    let loss = softmax_cross_entropy(mat(&[0.0; 4], 2, 2), &[0, 1], Some(mat_mut(&mut d, 2, 2))).expect("a loss");
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-15);
    assert_eq!(d, [-0.25, 0.25, 0.25, -0.25]);
    // Logits that overflow an exponential, and one that is certain.
    let loss = softmax_cross_entropy(mat(&[1000.0, 0.0, -1000.0, 0.0], 2, 2), &[0, 1], None).expect("a loss");
    assert_eq!(loss, 0.0);
    let loss = softmax_cross_entropy(mat(&[1000.0, 0.0], 1, 2), &[1], None).expect("a loss");
    assert_eq!(loss, 1000.0);
    assert!(softmax_cross_entropy(mat(&[f32::NAN, 0.0], 1, 2), &[1], None).expect("a loss").is_nan());
}

#[test]
fn mean_squared_error_equals_a_case_computed_by_hand() {
    let mut d = [0.0; 4];
    let (y, target) = ([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 3.0]);
    let loss = mean_squared_error(mat(&y, 2, 2), mat(&target, 2, 2), Some(mat_mut(&mut d, 2, 2)));
    assert_eq!((loss, d), (Ok(1.5), [0.5, 0.0, -1.0, 0.5]));
}

#[test]
fn gradients_of_losses_equal_finite_differences() {
    let mut rng = Rng::new(9);
    let (n, m) = (4, 5);
    let (y, target, labels) = (rng.vec(n * m), rng.vec(n * m), [0, 4, 2, 2]);
    let cross = |y: &[f32], d: Option<MatMut<'_>>| softmax_cross_entropy(mat(y, n, m), &labels, d).expect("a loss");
    let squared =
        |y: &[f32], d: Option<MatMut<'_>>| mean_squared_error(mat(y, n, m), mat(&target, n, m), d).expect("a loss");
    let check = |loss: &dyn Fn(&[f32], Option<MatMut<'_>>) -> f64| {
        let mut d = Grid::new(Layout::Padded(2), n, m);
        loss(&y, Some(d.view_mut()));
        d.assert_canaries("gradient");
        for (k, d) in d.values().into_iter().enumerate() {
            let at = |step: f32| {
                let mut y = y.clone();
                y[k] += step;
                (loss(&y, None), f64::from(y[k]))
            };
            let step = 2.0_f64.powi(-10);
            let ((above, y1), (below, y0)) = (at(step as f32), at(-step as f32));
            // The gradient is rounded to f32 once. The third derivative of the log of the sum is below 1/10, the second, which
            // counts as the two steps differ by a rounding of y, below 2; all over n, as those of the mean square are over n m.
            // Losses below 4 are good to 2^-50.
            let truncation = (step * step / 60.0 + 2.0_f64.powi(-24)) / n as f64;
            let bound = 2.0_f64.powi(-24) * f64::from(d.abs()) + truncation + 2.0_f64.powi(-50) / step;
            assert!(((above - below) / (y1 - y0) - f64::from(d)).abs() <= bound, "element {k}: bound {bound:e}");
        }
    };
    check(&cross);
    check(&squared);
}

#[test]
fn the_gradient_probe_measures_the_norm_at_every_stage_with_the_same_bits_however_it_runs() {
    let mut rng = Rng::new(10);
    for skip in [true, false] {
        let stages = random_stack(&mut rng, (6, 20, 35, 5), 4, Activation::Gelu, skip);
        let stack = build_stack(&stages);
        let n = 31;
        let (x, dy) = (rng.vec(n * 6), rng.vec(n * 5));
        let (wide_x, wide_dy) = (to_running(&x), to_running(&dy));
        let outs = oracle_forward(&stages, n, &wide_x, None);
        let mut below = oracle_backward(&stages, n, &wide_x, &outs, &wide_dy, &mut zero_grads(&stages));
        below.push(wide_dy);
        // Norms differ by no more than the norm of the difference.
        let norm = |g: &Vec<Running>, of: fn(Running) -> f64| g.iter().map(|&g| of(g) * of(g)).sum::<f64>().sqrt();
        let want: Vec<[f64; 2]> =
            below[1..].iter().map(|g| [norm(g, Running::value), norm(g, Running::error)]).collect();
        let mut seen: Vec<Vec<f64>> = Vec::new();
        for ctx in contexts() {
            for rows in [1, 7, 112] {
                let ctx = ctx.with_blocking(Blocking { rows, ..Blocking::default() });
                let (mut ws, mut y) = (Workspace::new(), vec![0.0; n * 5]);
                let (mut grads, mut flow) = (Gradients::new(&stack).expect("gradients"), GradientFlow::new());
                let pass = stack.forward(&ctx, &mut ws, mat(&x, n, 6), mat_mut(&mut y, n, 5)).expect("forward");
                let dy = mat(&dy, n, 5);
                pass.backward_probed(dy, None, &mut grads, GradMode::Overwrite, &mut flow).expect("backward");
                seen.push(flow.norms().to_vec());
            }
        }
        assert_eq!(seen[0].len(), 6);
        for (found, [want, bound]) in seen[0].iter().zip(&want) {
            // In a deep stack the bound is a loose one; 1e-5 is what is expected.
            let bound = (bound + 1e-12 * want).min(1e-5 * want);
            assert!((found - want).abs() <= bound, "skip {skip}: {found} but {want}, bound {bound:e}");
        }
        assert!(seen.iter().all(|norms| norms == &seen[0]), "other bits on another set or block size");
    }
}

/// Trains on y = sin-like targets; the losses of the first and the last step, and the parameters.
fn train(ctx: &Context, optimizer: &mut impl Optimizer, steps: usize) -> (f64, f64, Vec<Vec<f32>>) {
    let mut rng = Rng::new(11);
    let config =
        StackConfig { inputs: 4, width: 16, hidden: 24, blocks: 3, outputs: 2, seed: 5, ..StackConfig::default() };
    let mut stack = Stack::new(&config).expect("a stack");
    let n = 40;
    let x = rng.vec(n * 4);
    let target: Vec<f32> = x.chunks(4).flat_map(|x| [x[0] * x[1], x[2] - x[3] * x[3]]).collect();
    let (mut ws, mut grads) = (Workspace::new(), Gradients::new(&stack).expect("gradients"));
    let (mut y, mut dy, mut losses) = (vec![0.0; n * 2], vec![0.0; n * 2], Vec::new());
    for _ in 0..steps {
        let pass = stack.forward(ctx, &mut ws, mat(&x, n, 4), mat_mut(&mut y, n, 2)).expect("forward");
        let loss = mean_squared_error(mat(&y, n, 2), mat(&target, n, 2), Some(mat_mut(&mut dy, n, 2)));
        losses.push(loss.expect("a loss"));
        pass.backward(mat(&dy, n, 2), None, &mut grads, GradMode::Overwrite).expect("backward");
        optimizer.step(ctx, &mut stack, &grads).expect("a step");
    }
    (losses[0], losses[steps - 1], parameters_of(&stack))
}

#[test]
fn training_lowers_the_loss_and_ends_with_the_same_bits_on_every_instruction_set() {
    let mut ends: Vec<Vec<Vec<f32>>> = Vec::new();
    for ctx in contexts() {
        let (first, last, sgd) = train(&ctx, &mut Sgd::new(0.02, 0.9), 60);
        assert!(last < 0.2 * first, "sgd: from {first} to {last}");
        let (first, last, adam) = train(&ctx, &mut AdamW::new(0.01), 60);
        assert!(last < 0.2 * first, "adamw: from {first} to {last}");
        ends.push([sgd, adam].concat());
    }
    assert!(ends.iter().all(|end| end == &ends[0]));
}

#[test]
fn one_network_serves_several_threads_at_once() {
    let mut rng = Rng::new(12);
    let stages = random_stack(&mut rng, (6, 40, 70, 5), 3, Activation::Silu, true);
    let stack = build_stack(&stages);
    let (n, x) = (50, rng.vec(50 * 6));
    let want = oracle_forward(&stages, n, &x, None).pop().expect("a stage").y;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (ctx, mut ws) = (fastest(), Workspace::new());
                for _ in 0..20 {
                    let mut y = vec![0.0; n * 5];
                    stack.infer(&ctx, &mut ws, mat(&x, n, 6), mat_mut(&mut y, n, 5)).expect("infer");
                    assert_same("y", &y, &want);
                }
            });
        }
    });
}

#[test]
fn public_types_cross_threads() {
    fn crosses<T: Send + Sync>() {}
    crosses::<Activation>();
    crosses::<AdamW>();
    crosses::<Affine>();
    crosses::<Block>();
    crosses::<Blocking>();
    crosses::<Context>();
    crosses::<Error>();
    crosses::<GradientFlow>();
    crosses::<Gradients>();
    crosses::<Init>();
    crosses::<Isa>();
    crosses::<Linear>();
    crosses::<MatMut<'_>>();
    crosses::<MatRef<'_>>();
    crosses::<Par>();
    crosses::<resblock::TensorRef<'_>>();
    crosses::<Pass<'_, Stack>>();
    crosses::<Sgd>();
    crosses::<Stack>();
    crosses::<StackConfig>();
    crosses::<Weights>();
    crosses::<Workspace>();
}

#[test]
fn layers_tell_what_they_are_made_of() {
    let mut rng = Rng::new(9);
    let stages = random_stack(&mut rng, (3, 4, 5, 2), 2, Activation::Silu, true);
    let stack = build_stack(&stages);
    let (input, output) = (stack.input().expect("a projection"), stack.output().expect("a projection"));
    assert_eq!((input.inputs(), input.outputs(), output.inputs(), output.outputs()), (3, 4, 4, 2));
    assert_eq!((input.activation(), input.skip()), (Activation::Identity, Skip::None));
    assert_eq!(input.affine_map().weights().get(1, 2), stack.affine(0).expect("a map").weights().get(1, 2));
    let alone = Stack::from_blocks(stack.blocks().to_vec()).expect("a stack");
    assert!(alone.input().is_none() && alone.output().is_none());
    let square = Stage::linear(&mut rng, 3, 3, Activation::Gelu, true).build_linear().with_skip().expect("a skip");
    assert_eq!((square.activation(), square.skip()), (Activation::Gelu, Skip::Identity));
    assert_eq!(square.affine_map().bias(), square.affine(0).expect("a map").bias());
}
