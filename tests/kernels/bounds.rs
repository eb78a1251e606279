//! The error bounds of `resblock::bounds` hold, for the kernels of every instruction set against f64, and say something: how near
//! observed errors come is printed.

use crate::common::{
    ACTIVATIONS, Map, MapGrad, Rng, Stage, assert_within, build_stack, contexts, mat, mat_mut, oracle_backward,
    oracle_forward, random_stack, to_running, values_of, zero_grads,
};
use resblock::bounds::{self, Numbers, Running, TINY, UNIT, chain, gamma};
use resblock::reference::{Real, linear};
use resblock::{Activation, Context, GradMode, Gradients, Layer, Workspace};

#[test]
fn gamma_and_ulp_are_what_the_documentation_says() {
    assert_eq!((UNIT, TINY), (2.0_f64.powi(-24), libm::ldexp(1.0, -150)));
    assert_eq!((gamma(0), gamma(1)), (0.0, UNIT / (1.0 - UNIT)));
    assert!(gamma(1000) > 1000.0 * UNIT && gamma(1000) < 1000.1 * UNIT);
    assert_eq!((gamma(1 << 24), gamma(usize::MAX)), (f64::INFINITY, f64::INFINITY));
    assert_eq!((chain(0, 5.0), bounds::sum(0, 5.0), bounds::sum(3, 5.0)), (0.0, 0.0, 5.0 * gamma(3)));
    for x in [1.0_f32, 1.5, f32::MIN_POSITIVE, 1e-40, 3e38, 0.0] {
        assert_eq!(bounds::ulp(f64::from(x)), f64::from(x.next_up()) - f64::from(x), "{x:e}");
    }
}

/// A number whose magnitude is around 2^-range to 2^range.
fn spread(rng: &mut Rng, range: i32) -> f32 {
    let exponent = rng.below(2 * range as usize + 1) as i32 - range;
    rng.unit() * 2.0_f32.powi(exponent)
}

#[test]
fn chains_keep_their_bound_denormals_included_and_come_near_it_where_they_are_short() {
    let (mut cases, mut nearest, mut denormal) = (0, [0.0_f64; 2], 0);
    let mut rng = Rng::new(31);
    for k in [1, 2, 3, 8, 40, 300, 2000] {
        for (range, scale) in [(0, 0), (10, 0), (40, 0), (6, -70)] {
            // The last products are some 2^-140: most results are denormal.
            let scale = 2.0_f32.powi(scale);
            let (n, m) = (3, 17);
            let x: Vec<f32> = (0..n * k).map(|_| scale * spread(&mut rng, range)).collect();
            let w: Vec<f32> = (0..m * k).map(|_| scale * spread(&mut rng, range)).collect();
            let b: Vec<f32> = (0..m).map(|_| scale * scale * spread(&mut rng, range)).collect();
            let map = Map { inputs: k, outputs: m, w: w.clone(), b: Some(b.clone()) };
            let layer = Stage::Linear { map, phi: Activation::Identity, skip: false }.build_linear();
            let (wide_x, wide_w, wide_b) = (to_running(&x), to_running(&w), to_running(&b));
            let want = linear((n, k, m), &wide_x, &wide_w, Some(&wide_b), Activation::Identity, None).y;
            for ctx in contexts() {
                let (mut y, mut ws) = (vec![0.0; n * m], Workspace::new());
                layer.infer(&ctx, &mut ws, mat(&x, n, k), mat_mut(&mut y, n, m)).expect("infer");
                let ratio = assert_within(format_args!("k {k} range {range} {ctx:?}"), &y, &want);
                let long = usize::from(k > 8);
                nearest[long] = nearest[long].max(ratio);
                for (i, (&y, want)) in y.iter().zip(&want).enumerate() {
                    let (row, col) = (&x[i / m * k..][..k], &w[i % m * k..][..k]);
                    let products = row.iter().zip(col).map(|(x, w)| (f64::from(*x) * f64::from(*w)).abs());
                    let terms = f64::from(b[i % m].abs()) + products.sum::<f64>();
                    // The a priori bound holds too, and is never the sharper one.
                    assert!((f64::from(y) - want.value()).abs() <= chain(k, terms));
                    assert!(want.error() <= chain(k, terms) * (1.0 + 1e-6), "k {k}: {want:?}, {:e}", chain(k, terms));
                    cases += 1;
                    denormal += usize::from(y != 0.0 && !y.is_normal());
                }
            }
        }
    }
    assert!(nearest[0] > 0.5, "bounds of short chains are loose: {nearest:?}");
    assert!(nearest[1] > 0.02, "bounds of long chains are absurd: {nearest:?}");
    assert!(denormal > 100, "{denormal} denormal results");
    println!(
        "proof: chains of f32 stay within gamma_k and within their running bound | every set against f64, k 1 to 2000, {denormal} \
         denormal results; largest error / bound {:.2} for k <= 8, {:.3} above | {cases} elements | ok",
        nearest[0], nearest[1]
    );
}

/// Largest error of some tensors as a fraction of one bound for all of it; panics where it is above 1.
#[track_caller]
fn assert_below(what: &str, got: &[f32], want: &[Running], bound: Numbers) -> f64 {
    let mut largest = 0.0_f64;
    for (&got, want) in got.iter().zip(want) {
        let error = (f64::from(got) - want.value()).abs();
        assert!(want.value().abs() <= bound.size * (1.0 + 1e-12), "{what}: {want:?} is larger than {bound:?}");
        assert!(error <= bound.error, "{what}: {got} but {want:?}, off by {error:e}, bound {bound:?}");
        if error > 0.0 {
            largest = largest.max(error / bound.error);
        }
    }
    largest
}

/// How near observed errors come to their bounds: (running, a priori), (number of elements).
#[derive(Default)]
struct Seen {
    running: f64,
    a_priori: f64,
    elements: usize,
}

fn check<L: Layer>(what: &str, ctx: &Context, layer: &L, stages: &[Stage], n: usize, seed: u64, seen: &mut Seen) {
    let mut rng = Rng::new(seed);
    let (x, dy) = (rng.vec(n * layer.inputs()), rng.vec(n * layer.outputs()));
    let largest = |v: &[f32]| v.iter().fold(0.0, |m: f64, v| m.max(f64::from(v.abs())));
    let a_priori = bounds::network(layer, n, largest(&x), largest(&dy)).expect("bounds of bare blocks");

    let (wide_x, wide_dy) = (to_running(&x), to_running(&dy));
    let outs = oracle_forward(stages, n, &wide_x, None);
    let mut grads: Vec<MapGrad<Running>> = zero_grads(stages);
    let dx_want = oracle_backward(stages, n, &wide_x, &outs, &wide_dy, &mut grads).swap_remove(0);
    let y_want = &outs.last().expect("a stage").y;

    let (mut y, mut dx) = (vec![0.0; n * layer.outputs()], vec![0.0; n * layer.inputs()]);
    let (mut ws, mut found) = (Workspace::new(), Gradients::new(layer).expect("gradients"));
    let (x, dy) = (mat(&x, n, layer.inputs()), mat(&dy, n, layer.outputs()));
    let pass = layer.forward(ctx, &mut ws, x, mat_mut(&mut y, n, layer.outputs())).expect("forward");
    let dx_mut = mat_mut(&mut dx, n, layer.inputs());
    pass.backward(dy, Some(dx_mut), &mut found, GradMode::Overwrite).expect("backward");
    let found = values_of(layer, &found);

    let mut pairs = vec![("y", &y, y_want)];
    pairs.push(("dx", &dx, &dx_want));
    pairs.extend(found.iter().zip(&grads).flat_map(|(f, g)| [("dw", &f.dw, &g.dw), ("db", &f.db, &g.db)]));
    for (name, got, want) in &pairs {
        seen.running = seen.running.max(assert_within(format_args!("{what} {name}"), got, want));
        seen.elements += got.len();
    }
    // A priori, gradients of functions with a kink are bounded only if no pre-activation is so near to it that f32 may fall on
    // the other side: `linear_backward` says so. Running bounds know.
    let kinked = |phi: &Activation| matches!(phi, Activation::Relu | Activation::LeakyRelu(_) | Activation::Hardswish);
    let near = |z: &Running| z.value().abs() <= z.error() || (z.value().abs() - 3.0).abs() <= z.error();
    let smooth = stages.iter().zip(&outs).all(|(stage, out)| match stage {
        Stage::Linear { phi, .. } | Stage::Block { phi, .. } => !kinked(phi) || !out.z.iter().any(near),
    });
    let tensors = a_priori.maps.iter().flat_map(|map| [map.dw, map.db]);
    let all = [a_priori.outputs[stages.len() - 1], a_priori.dx].into_iter().chain(tensors);
    for ((name, got, want), bound) in pairs.iter().zip(all).take(if smooth { usize::MAX } else { 1 }) {
        seen.a_priori = seen.a_priori.max(assert_below(&format!("{what} {name}"), got, want, bound));
    }
}

#[test]
fn layers_and_stacks_keep_their_bounds_forward_and_backward_for_every_activation() {
    let mut report = Vec::new();
    let mut elements = 0;
    let mut all = |name: &str, floor: (f64, f64), run: &mut dyn FnMut(Activation, u64, &Context, &mut Seen)| {
        let mut seen = Seen::default();
        for phi in ACTIVATIONS {
            for seed in 0..3 {
                contexts().for_each(|ctx| run(phi, seed, &ctx, &mut seen));
            }
        }
        let Seen { running, a_priori, .. } = seen;
        assert!(running > floor.0 && a_priori > floor.1, "{name}: absurd bounds, {running:e} and {a_priori:e}");
        report.push(format!("{name} {running:.2} and {a_priori:.0e}"));
        elements += seen.elements;
    };
    all("linear", (0.1, 1e-3), &mut |phi, seed, ctx, seen| {
        let mut stages = [Stage::linear(&mut Rng::new(seed), 19, 19, phi, true)];
        let Stage::Linear { skip, .. } = &mut stages[0] else { return };
        *skip = seed == 1;
        check(phi.name(), ctx, &stages[0].build_linear(), &stages, 7, seed, seen);
    });
    all("block", (0.1, 1e-4), &mut |phi, seed, ctx, seen| {
        let stages = [Stage::block(&mut Rng::new(seed), 24, 50, phi, seed != 1, true)];
        check(phi.name(), ctx, &stages[0].build_block(), &stages, 13, seed, seen);
    });
    all("stack of 4", (0.01, 0.0), &mut |phi, seed, ctx, seen| {
        let stages = random_stack(&mut Rng::new(seed), (6, 20, 35, 5), 4, phi, seed != 1);
        check(phi.name(), ctx, &build_stack(&stages), &stages, 9, seed, seen);
    });
    println!(
        "proof: outputs and gradients stay within their a priori and running error bounds | linear, block, stack, every activation \
         and set, against f64; largest error / running bound and / a priori bound: {} | {elements} elements | ok",
        report.join(", ")
    );
}

#[test]
fn bounds_of_a_shape_cover_those_of_its_weights() {
    let mut rng = Rng::new(33);
    let map = Map::random(&mut rng, 30, 20, true);
    let largest = |v: &[f32]| v.iter().fold(0.0, |m: f64, v| m.max(f64::from(v.abs())));
    let shape = bounds::Map::new(30, 20, largest(&map.w), largest(map.b.as_deref().expect("a bias")));
    let these = bounds::Map::of(&map.affine());
    assert_eq!((these.inputs, these.outputs, these.bias), (30, 20, shape.bias));
    assert!(these.row_sum < shape.row_sum && these.col_sum < shape.col_sum, "{these:?} {shape:?}");
    for phi in ACTIVATIONS {
        let (wide, sharp) = (
            bounds::linear(shape, phi, Numbers::exact(1.0), None),
            bounds::linear(these, phi, Numbers::exact(1.0), None),
        );
        assert!(sharp.y.error <= wide.y.error && sharp.y.size <= wide.y.size, "{}", phi.name());
    }
    // No inputs, and no rows: nothing is rounded.
    let empty = bounds::Map::new(0, 3, 1.0, 2.0);
    let out = bounds::linear(empty, Activation::Identity, Numbers::exact(f64::INFINITY), None);
    assert_eq!(out.y, Numbers::exact(2.0));
    let back = bounds::linear_backward(
        0,
        empty,
        Activation::Identity,
        (Numbers::exact(1.0), out.z),
        Numbers::exact(1.0),
        false,
    );
    assert_eq!((back.maps[0].dw, back.maps[0].db), (Numbers::exact(0.0), Numbers::exact(0.0)));
}

#[test]
fn running_bounds_cover_division_and_square_root() {
    let mut rng = Rng::new(34);
    for _ in 0..20_000 {
        let (a, b) = (spread(&mut rng, 30), spread(&mut rng, 30));
        let third = f64::from(a) / 3.0;
        let inexact = Running::rounded(third);
        let narrow = third as f32;
        let close = |got: f32, want: Running| (f64::from(got) - want.value()).abs() <= want.error();
        assert!(close(narrow, inexact));
        assert!(close(narrow / b, inexact / Running::from(b)) && close(b / narrow, Running::from(b) / inexact));
        let square = inexact.mul(inexact);
        assert!(close((narrow * narrow).sqrt(), square.sqrt()), "{a:e}");
    }
    assert_eq!((Running::from(1.0) / Running::rounded(0.0)).error(), f64::INFINITY, "the divisor may be 0");
    assert_eq!(Running::from(0.0).sqrt().value(), 0.0);
}

#[test]
fn an_error_of_the_argument_grows_by_no_more_than_the_largest_slope_and_curvature() {
    let map = bounds::Map::new(1, 1, 1.0, 0.0);
    for phi in ACTIVATIONS {
        for error in [1e-3, 0.1, 1.0] {
            let x = Numbers { size: 4.0, error };
            let out = bounds::linear(map, phi, x, None);
            // dy = 1 over one row: db is the slope.
            let slope = bounds::linear_backward(1, map, phi, (x, out.z), Numbers::exact(1.0), false).maps[0].db;
            let (mut moved, mut turned) = (0.0_f64, 0.0_f64);
            for z in (-4096..=4096).map(|i| f64::from(i) / 1024.0) {
                moved = moved.max((f64::activate(z + error, phi) - z.activate(phi)).abs());
                // Not across a kink.
                let crosses = |kink: f64| (z - kink) * (z + error - kink) <= 0.0;
                let across = match phi {
                    Activation::Relu | Activation::LeakyRelu(_) => crosses(0.0),
                    Activation::Hardswish => crosses(3.0) || crosses(-3.0),
                    _ => false,
                };
                if !across {
                    turned = turned.max((f64::derive(z + error, phi) - z.derive(phi)).abs());
                }
            }
            assert!(
                moved <= out.h.error && turned <= slope.error,
                "{}: {moved} {turned}, {out:?} {slope:?}",
                phi.name()
            );
            // The constants are no larger than they must be.
            let tight = error > 1e-3 || (moved > 0.99 * out.h.error && turned > 0.99 * slope.error - 1e-6);
            assert!(tight, "{}: {moved} {turned}, {out:?} {slope:?}", phi.name());
        }
    }
}
