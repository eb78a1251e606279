//! Gradients of the kernels against f64: a whole block and a stack of four, every activation, within their running error bounds;
//! and the f64 gradients themselves against directional finite differences.

use crate::common::{
    ACTIVATIONS, MapGrad, Rng, Stage, assert_within, build_stack, contexts, mat, mat_mut, oracle_backward,
    oracle_forward, random_stack, to_f64, values_of, zero_grads,
};
use resblock::bounds::Running;
use resblock::reference::Real;
use resblock::{Activation, Context, GradMode, Gradients, Layer, Workspace};

/// Loss of a batch and its gradients: L = sum of c * y, so that dL/dy = c. In f64, or with running error bounds.
struct Truth<T> {
    y: Vec<T>,
    dx: Vec<T>,
    grads: Vec<MapGrad<T>>,
}

fn truth<T: Real + From<f32>>(stages: &[Stage], n: usize, x: &[f32], c: &[f32]) -> Truth<T> {
    let wide = |v: &[f32]| v.iter().map(|&v| T::from(v)).collect::<Vec<T>>();
    let (x, c) = (wide(x), wide(c));
    let mut outs = oracle_forward(stages, n, &x, None);
    let mut grads = zero_grads(stages);
    let dx = oracle_backward(stages, n, &x, &outs, &c, &mut grads).swap_remove(0);
    Truth { y: outs.pop().expect("a stage").y, dx, grads }
}

/// Data whose pre-activations stay away from the kinks of piecewise linear activations, where f32 and f64 may differ in sign.
fn smooth_data(make: impl Fn(&mut Rng) -> Vec<Stage>, n: usize) -> (Vec<Stage>, Vec<f32>, Vec<f32>) {
    let mut rng = Rng::new(17);
    loop {
        let stages = make(&mut rng);
        let x = rng.vec(n * stages[0].inputs());
        let c = rng.vec(n * stages[stages.len() - 1].outputs());
        let outs = oracle_forward(&stages, n, &to_f64(&x), None);
        let far = |(stage, z): (&Stage, &Vec<f64>)| match stage {
            Stage::Linear { phi: Activation::Identity, .. } => true,
            _ => z.iter().all(|z| z.abs() > 1e-5),
        };
        if stages.iter().zip(outs.iter().map(|out| &out.z)).all(far) {
            return (stages, x, c);
        }
    }
}

/// |got - want| <= tolerance * the largest |want|: rounding is relative to the terms of a chain, not to its sum.
#[track_caller]
fn assert_close(what: &str, got: &[f32], want: &[Running], tolerance: f64) {
    let scale = want.iter().fold(0.0, |m: f64, v| m.max(v.value().abs()));
    for (i, (&g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w.value()).abs();
        assert!(error <= tolerance * scale, "{what}[{i}]: {g} but {w:?}, off by {:.2e} of the largest", error / scale);
    }
}

fn check<L: Layer>(what: &str, ctx: &Context, layer: &L, stages: &[Stage], n: usize, x: &[f32], c: &[f32]) {
    let (inputs, outputs) = (layer.inputs(), layer.outputs());
    let want = truth::<Running>(stages, n, x, c);
    let (mut y, mut dx) = (vec![0.0; n * outputs], vec![0.0; n * inputs]);
    let (mut ws, mut grads) = (Workspace::new(), Gradients::new(layer).expect("gradients"));
    let pass = layer.forward(ctx, &mut ws, mat(x, n, inputs), mat_mut(&mut y, n, outputs)).expect("forward");
    let dx_mut = mat_mut(&mut dx, n, inputs);
    pass.backward(mat(c, n, outputs), Some(dx_mut), &mut grads, GradMode::Overwrite).expect("backward");

    // The bound of each element is a theorem, but in a deep stack a loose one: it takes all errors to add up. What is expected
    // beside it: a chain of K roundings is off by about sqrt(K) 2^-24 of the size of its terms. A gradient has passed through 2
    // chains for each affine map, there and back, and an activation of a few ULP for each: with m maps and chains of up to K,
    // 2 m (sqrt(K) + 4) 2^-24; terms add up to some times their sum: 8.
    let maps = layer.affine_count() as f64;
    let longest = stages.iter().flat_map(Stage::maps).map(|m| m.inputs.max(m.outputs)).max().unwrap_or(0).max(n);
    let expected = 8.0 * 2.0 * maps * ((longest as f64).sqrt() + 4.0) * 2.0_f64.powi(-24);
    let both = |name: &str, got: &[f32], want: &[Running]| {
        assert_within(format_args!("{what} {name}"), got, want);
        assert_close(&format!("{what} {name}"), got, want, expected);
    };
    both("y", &y, &want.y);
    both("dx", &dx, &want.dx);
    for (i, (got, want)) in values_of(layer, &grads).iter().zip(&want.grads).enumerate() {
        both(&format!("dW of map {i}"), &got.dw, &want.dw);
        both(&format!("db of map {i}"), &got.db, &want.db);
    }
}

#[test]
fn gradients_of_a_block_are_those_of_f64_for_every_activation() {
    for phi in ACTIVATIONS {
        for skip in [true, false] {
            let n = 21;
            let (stages, x, c) = smooth_data(|rng| vec![Stage::block(rng, 24, 50, phi, skip, true)], n);
            for ctx in contexts() {
                let what = format!("{} skip {skip} {}", phi.name(), ctx.isa());
                check(&what, &ctx, &stages[0].build_block(), &stages, n, &x, &c);
            }
        }
    }
}

#[test]
fn gradients_of_a_stack_of_four_blocks_are_those_of_f64_for_every_activation() {
    for phi in ACTIVATIONS {
        for skip in [true, false] {
            let n = 13;
            let (stages, x, c) = smooth_data(|rng| random_stack(rng, (6, 20, 35, 5), 4, phi, skip), n);
            for ctx in contexts() {
                let what = format!("{} skip {skip} {}", phi.name(), ctx.isa());
                check(&what, &ctx, &build_stack(&stages), &stages, n, &x, &c);
            }
        }
    }
}

/// Everything that a gradient can be taken by, as one long vector: x, then W and b of each map.
fn moved(stages: &[Stage], x: &[f32], direction: &[f32], step: f32) -> (Vec<Stage>, Vec<f32>) {
    let mut along = direction.iter();
    let mut shift = |values: &mut [f32]| {
        for v in values {
            *v += step * along.next().expect("a component for each number");
        }
    };
    let (mut stages, mut x) = (stages.to_vec(), x.to_vec());
    shift(&mut x);
    for stage in &mut stages {
        let maps = match stage {
            Stage::Linear { map, .. } => vec![map],
            Stage::Block { first, second, .. } => vec![first, second],
        };
        for map in maps {
            shift(&mut map.w);
            shift(map.b.as_mut().expect("a bias"));
        }
    }
    (stages, x)
}

#[test]
fn f64_gradients_of_a_stack_are_the_slopes_of_the_loss_in_random_directions() {
    for phi in ACTIVATIONS {
        let n = 5;
        // Numbers of few bits, steps a power of two: parameters are moved exactly, though they are kept in f32.
        let coarse = |v: f32| (v * 1024.0).round() / 1024.0;
        let make = |rng: &mut Rng| {
            let mut stages = random_stack(rng, (4, 8, 12, 3), 4, phi, true);
            for stage in &mut stages {
                let maps = match stage {
                    Stage::Linear { map, .. } => vec![map],
                    Stage::Block { first, second, .. } => vec![first, second],
                };
                for map in maps {
                    map.w.iter_mut().chain(map.b.iter_mut().flatten()).for_each(|v| *v = coarse(*v));
                }
            }
            stages
        };
        let (stages, x, c) = smooth_data(make, n);
        let x: Vec<f32> = x.into_iter().map(coarse).collect();
        let want = truth::<f64>(&stages, n, &x, &c);
        let gradient: Vec<f64> = want.grads.iter().fold(want.dx, |mut all, g| {
            all.extend(&g.dw);
            all.extend(&g.db);
            all
        });
        // The loss at some distance, and on which side of their kinks the pre-activations are there.
        let loss = |step: f32, direction: &[f32]| -> (f64, Vec<bool>) {
            let (stages, x) = moved(&stages, &x, direction, step);
            let outs = oracle_forward(&stages, n, &to_f64(&x), None);
            let sides = outs.iter().flat_map(|out| out.z.iter().map(|&z| z > 0.0)).collect();
            let y = &outs.last().expect("a stage").y;
            (y.iter().zip(&c).map(|(y, c)| y * f64::from(*c)).sum(), sides)
        };
        let kinked = matches!(phi, Activation::Relu | Activation::LeakyRelu(_));
        let mut rng = Rng::new(18);
        let mut directions = 0;
        while directions < 4 {
            let direction: Vec<f32> = gradient.iter().map(|_| if rng.next() & 1 == 0 { 1.0 } else { -1.0 }).collect();
            let step = 2.0_f32.powi(-13);
            let points = [step, -step, step / 2.0, -step / 2.0].map(|step| loss(step, &direction));
            if kinked && points.iter().any(|(_, sides)| *sides != points[0].1) {
                continue; // a kink lies within the step: there is no slope to be measured
            }
            directions += 1;
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * f64::from(*d)).sum();
            let size: f64 = gradient.iter().map(|g| g.abs()).sum();
            // Richardson's combination of two central differences D(s) = slope + a s^2 + b s^4 + ... cancels a s^2, which is
            // 4/3 of their difference; what is left, of order s^4, is allowed a tenth of that, and a little where a is 0 by
            // chance. Rounding: the loss is good to some 2^-50 of itself, over a step of 2^-14.
            let [above, below, half_above, half_below] = points.map(|(loss, _)| loss);
            let (wide, narrow) = ((above - below) / f64::from(2.0 * step), (half_above - half_below) / f64::from(step));
            let measured = (4.0 * narrow - wide) / 3.0;
            let rounding = 2.0_f64.powi(-34) * above.abs().max(1.0);
            let tolerance = (0.1 * (wide - narrow).abs() + rounding + 1e-9 * size).min(1e-6 * size);
            let error = (measured - slope).abs();
            assert!(error <= tolerance, "{}: slope {measured}, gradient {slope}, off by {error:e}", phi.name());
        }
    }
}
