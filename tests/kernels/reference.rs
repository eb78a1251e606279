//! The specification itself (`resblock::reference`) against hand-computed cases, finite differences in f64, and itself in the
//! other precision. Everything else is tested against the specification, so it comes first.

use crate::common::{ACTIVATIONS, Rng, assert_within, to_running};
use resblock::Activation;
use resblock::bounds::Running;
use resblock::reference::{
    BlockGrads, BlockOut, BlockParams, LinearGrads, LinearOut, Real, block, block_backward, linear, linear_backward,
};

#[test]
fn linear_equals_a_case_computed_by_hand() {
    let (x, w, b, skip) = ([1.0, 2.0, -1.0, 0.5], [3.0, 4.0, 5.0, -6.0], [0.5, -1.0], [10.0, 20.0, 30.0, 40.0]);
    // Row 0: 3 + 8 + 0.5, 5 - 12 - 1. Row 1: -3 + 2 + 0.5, -5 - 3 - 1.
    let z = vec![11.5, -8.0, -0.5, -9.0];
    let out = linear((2, 2, 2), &x, &w, Some(&b), Activation::Relu, Some(&skip));
    assert_eq!(out, LinearOut { z: z.clone(), y: vec![21.5, 20.0, 30.0, 40.0] });
    let out = linear((2, 2, 2), &x, &w, Some(&b), Activation::Identity, None);
    assert_eq!(out, LinearOut { z: z.clone(), y: z });
    let out = linear((2, 2, 2), &x, &w, None, Activation::LeakyRelu(0.5), None);
    assert_eq!(out.y, vec![11.0, -3.5, -0.5, -4.0]);
    // The same in f32: every number here is exact.
    let out = linear((2, 2, 2), &x.map(|v| v as f32), &w.map(|v| v as f32), None, Activation::LeakyRelu(0.5), None);
    assert_eq!(out.y, vec![11.0_f32, -3.5, -0.5, -4.0]);
}

#[test]
fn linear_backward_equals_a_case_computed_by_hand() {
    let (x, w, dy) = ([1.0, 2.0, -1.0, 0.5], [3.0, 4.0, 5.0, -6.0], [1.0, 2.0, 3.0, 4.0]);
    let z = [11.5, -8.0, 0.0, 9.0];
    let mut grads = LinearGrads { dx: vec![], dw: vec![100.0; 4], db: vec![200.0; 2] };
    linear_backward((2, 2, 2), &x, &w, Activation::Relu, &z, &dy, true, &mut grads);
    // dz = [1, 0; 0, 4]: the derivative of ReLU at 0 is 0.
    assert_eq!(grads.dx, vec![3.0 + 1.0, 4.0 + 2.0, 20.0 + 3.0, -24.0 + 4.0]);
    assert_eq!(grads.dw, vec![101.0, 102.0, 96.0, 102.0]);
    assert_eq!(grads.db, vec![201.0, 204.0]);
    linear_backward((2, 2, 2), &x, &w, Activation::Identity, &z, &dy, false, &mut grads);
    assert_eq!(grads.dx, vec![13.0, -8.0, 29.0, -12.0]);
}

#[test]
fn block_and_its_backward_equal_a_case_computed_by_hand() {
    let (w1, b1, w2, b2) = ([1.0, -1.0], [0.0, 1.0], [3.0, 5.0], [0.5]);
    for skip in [true, false] {
        let p = BlockParams { w1: &w1, b1: &b1, w2: &w2, b2: &b2, phi: Activation::Relu, skip };
        let out = block((1, 1, 2), &[2.0], p);
        let y = 6.5 + if skip { 2.0 } else { 0.0 };
        assert_eq!(out, BlockOut { z: vec![2.0, -1.0], h: vec![2.0, 0.0], y: vec![y] });
        let mut grads = BlockGrads::zeros((1, 1, 2));
        grads.dw2[1] = 7.0; // chains go on from what is there
        block_backward((1, 1, 2), &[2.0], p, &out, &[1.0], &mut grads);
        let dx = 3.0 + if skip { 1.0 } else { 0.0 };
        let (dw1, db1, dw2, db2) = (vec![6.0, 0.0], vec![3.0, 0.0], vec![2.0, 7.0], vec![1.0]);
        assert_eq!(grads, BlockGrads { dx: vec![dx], dw1, db1, dw2, db2 });
    }
}

#[test]
fn a_chain_starts_from_the_bias_and_runs_in_increasing_k() {
    // 1e8 swallows 1 and 2: what survives tells the order.
    let chain = |x: [f32; 3], b: f32| linear((1, 3, 1), &x, &[1.0; 3], Some(&[b]), Activation::Identity, None).y[0];
    assert_eq!(chain([1e8, 1.0, -1e8], 0.0), 0.0);
    assert_eq!(chain([1e8, -1e8, 1.0], 0.0), 1.0);
    assert_eq!(chain([1e8, -1e8, 1.0], 2.0), 1.0, "the bias comes first, and is swallowed");
}

#[test]
fn a_chain_over_the_batch_runs_in_row_order_and_continues() {
    let mut grads = LinearGrads { dx: vec![], dw: vec![2.0_f32], db: vec![2.0] };
    let dy = [1e8, -1e8, 1.0];
    linear_backward((3, 1, 1), &[1.0; 3], &[1.0], Activation::Identity, &[0.0; 3], &dy, false, &mut grads);
    assert_eq!((grads.dw[0], grads.db[0]), (1.0, 1.0));
}

#[test]
fn a_step_of_a_chain_rounds_once() {
    let a = 1.0 + 1.0 / 4096.0; // a * a = 1 + 2^-11 + 2^-24, which an f32 product would lose
    let y = linear((1, 1, 1), &[a], &[a], Some(&[-(1.0 + 1.0 / 2048.0)]), Activation::Identity, None).y;
    assert_eq!(y, vec![2.0_f32.powi(-24)]);
}

#[test]
fn the_skip_is_added_after_the_chain_in_a_rounding_of_its_own() {
    let p = |skip| BlockParams { w1: &[1.0], b1: &[0.0], w2: &[1.0], b2: &[-1e8], phi: Activation::Identity, skip };
    // chain: fma(1, 1, -1e8) = -1e8; + 1 = -1e8.
    assert_eq!(block((1, 1, 1), &[1.0_f32], p(true)).y, vec![-1e8]);
    assert_eq!(block((1, 1, 1), &[1.0_f32], p(false)).y, vec![-1e8]);
}

/// Step of the central differences (f(v + step e_i) - f(v - step e_i)) / (2 step): a power of two, so that f32 data of at most 23
/// binary places move exactly.
const STEP: f32 = 1.0 / (1 << 17) as f32;

/// f64 rounds where f32 does, 2^29 times finer: running bounds of f32, scaled, are those of the f64 values beside them.
const FINER: f64 = 1.0 / (1u64 << 29) as f64;

/// Checks `grad` against central differences of the loss `f` by each number of `v`, none of which is above 1 in magnitude.
#[track_caller]
fn assert_gradient(name: &str, phi: Activation, v: &[f32], grad: &[Running], f: impl Fn(&[Running]) -> Running) {
    // Truncation is step^2 / 6 times the third derivative. Each path from the number to the loss has one phi in it, and factors
    // below 1; there are 15 paths at most (block: 5 hidden units, 3 outputs), and |phi'''| <= 2 (tanh at 0).
    let truncation = f64::from(STEP * STEP) / 6.0 * 15.0 * 2.0;
    assert_eq!(v.len(), grad.len());
    for i in 0..v.len() {
        let at = |delta: f32| {
            let mut moved = to_running(v);
            moved[i] = Running::from(v[i] + delta);
            f(&moved)
        };
        let (above, below) = (at(STEP), at(-STEP));
        let slope = (above.value() - below.value()) / f64::from(2.0 * STEP);
        let rounding = (above.error() + below.error()) / f64::from(2.0 * STEP) + grad[i].error();
        let (error, bound) = ((slope - grad[i].value()).abs(), truncation + FINER * rounding);
        assert!(bound < 1e-8, "a bound that says something: {bound:e}");
        assert!(error <= bound, "{} {name}[{i}]: {:?} but slope {slope}, bound {bound:e}", phi.name(), grad[i]);
    }
}

fn dot(a: &[Running], b: &[f32]) -> Running {
    a.iter().zip(b).fold(Running::ZERO, |sum, (&a, &b)| a.fma(Running::from(b), sum))
}

/// Draws data until no pre-activation is near the kink of a piecewise linear activation.
fn smooth<T>(draw: impl Fn(&mut Rng) -> T, z: impl Fn(&T) -> Vec<Running>) -> T {
    let mut rng = Rng::new(7);
    loop {
        let data = draw(&mut rng);
        if z(&data).iter().all(|z| z.value().abs() > 1e-2) {
            return data;
        }
    }
}

#[test]
fn linear_backward_equals_finite_differences_for_every_activation() {
    let (n, k, m) = (3, 4, 4);
    for phi in ACTIVATIONS {
        for skip in [true, false] {
            let run =
                |x: &[Running], w: &[Running], b: &[Running]| linear((n, k, m), x, w, Some(b), phi, skip.then_some(x));
            let draw = |rng: &mut Rng| [n * k, m * k, m, n * m].map(|len| rng.vec(len));
            let wide = |data: &[Vec<f32>; 4]| data.clone().map(|v| to_running(&v));
            let data = smooth(draw, |data| {
                let [x, w, b, _] = wide(data);
                run(&x, &w, &b).z
            });
            let [x, w, b, dy] = wide(&data);
            let out = run(&x, &w, &b);
            let mut g = LinearGrads { dx: vec![], dw: vec![Running::ZERO; m * k], db: vec![Running::ZERO; m] };
            linear_backward((n, k, m), &x, &w, phi, &out.z, &dy, skip, &mut g);
            let dy = &data[3];
            assert_gradient("dx", phi, &data[0], &g.dx, |x| dot(&run(x, &w, &b).y, dy));
            assert_gradient("dw", phi, &data[1], &g.dw, |w| dot(&run(&x, w, &b).y, dy));
            assert_gradient("db", phi, &data[2], &g.db, |b| dot(&run(&x, &w, b).y, dy));
        }
    }
}

#[test]
fn block_backward_equals_finite_differences_for_every_activation() {
    let (n, d, h) = (3, 3, 5);
    for phi in ACTIVATIONS {
        for skip in [true, false] {
            let run = |x: &[Running], w1: &[Running], b1: &[Running], w2: &[Running], b2: &[Running]| {
                block((n, d, h), x, BlockParams { w1, b1, w2, b2, phi, skip })
            };
            let draw = |rng: &mut Rng| [n * d, h * d, h, d * h, d, n * d].map(|len| rng.vec(len));
            let wide = |data: &[Vec<f32>; 6]| data.clone().map(|v| to_running(&v));
            let data = smooth(draw, |data| {
                let [x, w1, b1, w2, b2, _] = wide(data);
                run(&x, &w1, &b1, &w2, &b2).z
            });
            let [x, w1, b1, w2, b2, dy] = wide(&data);
            let p = BlockParams { w1: &w1, b1: &b1, w2: &w2, b2: &b2, phi, skip };
            let mut g = BlockGrads::zeros((n, d, h));
            block_backward((n, d, h), &x, p, &block((n, d, h), &x, p), &dy, &mut g);
            let dy = &data[5];
            assert_gradient("dx", phi, &data[0], &g.dx, |x| dot(&run(x, &w1, &b1, &w2, &b2).y, dy));
            assert_gradient("dw1", phi, &data[1], &g.dw1, |w1| dot(&run(&x, w1, &b1, &w2, &b2).y, dy));
            assert_gradient("db1", phi, &data[2], &g.db1, |b1| dot(&run(&x, &w1, b1, &w2, &b2).y, dy));
            assert_gradient("dw2", phi, &data[3], &g.dw2, |w2| dot(&run(&x, &w1, &b1, w2, &b2).y, dy));
            assert_gradient("db2", phi, &data[4], &g.db2, |b2| dot(&run(&x, &w1, &b1, &w2, b2).y, dy));
        }
    }
}

#[test]
fn the_f32_oracle_is_within_its_error_bounds_of_f64() {
    let (n, d, h) = (5, 40, 60);
    for phi in ACTIVATIONS {
        let mut rng = Rng::new(11);
        let data =
            [n * d, h * d, h, d * h, d, n * d].map(|len| rng.vec(len).iter().map(|v| 0.2 * v).collect::<Vec<f32>>());
        let wide = data.clone().map(|v| to_running(&v));
        let [x, w1, b1, w2, b2, dy] = &data;
        let p = BlockParams { w1, b1, w2, b2, phi, skip: true };
        let out = block((n, d, h), x, p);
        let mut g = BlockGrads::zeros((n, d, h));
        block_backward((n, d, h), x, p, &out, dy, &mut g);
        let [x, w1, b1, w2, b2, dy] = &wide;
        let p = BlockParams { w1, b1, w2, b2, phi, skip: true };
        let out64 = block((n, d, h), x, p);
        let mut g64 = BlockGrads::zeros((n, d, h));
        block_backward((n, d, h), x, p, &out64, dy, &mut g64);
        let pairs = [
            ("y", &out.y, &out64.y),
            ("dx", &g.dx, &g64.dx),
            ("dw1", &g.dw1, &g64.dw1),
            ("db1", &g.db1, &g64.db1),
            ("dw2", &g.dw2, &g64.dw2),
            ("db2", &g.db2, &g64.db2),
        ];
        for (name, narrow, wide) in pairs {
            assert_within(format_args!("{} {name}", phi.name()), narrow, wide);
            // Through two layers of chains of 60 terms below 0.2: no bound is larger than this.
            assert!(wide.iter().all(|w| w.error() < 480.0 * 2.0_f64.powi(-24)), "{} {name}: {wide:?}", phi.name());
        }
    }
}
