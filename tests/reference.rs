//! The specification itself (`resblock::reference`) against hand-computed cases, finite differences in f64, and itself in the
//! other precision. Everything else is tested against the specification, so it comes first.

mod common;

use common::{ACTIVATIONS, Rng, to_f64};
use resblock::Activation;
use resblock::reference::{
    BlockGrads, BlockOut, BlockParams, LinearGrads, LinearOut, block, block_backward, linear, linear_backward,
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

/// (f(v + step e_i) - f(v - step e_i)) / (2 step).
fn central(v: &[f64], i: usize, f: impl Fn(&[f64]) -> f64) -> f64 {
    let step = 1e-5;
    let at = |delta: f64| {
        let mut moved = v.to_vec();
        moved[i] += delta;
        f(&moved)
    };
    (at(step) - at(-step)) / (2.0 * step)
}

/// Truncation of a central difference is about step^2, rounding about 1e-16 / step.
const TOLERANCE: f64 = 1e-8;

#[track_caller]
fn assert_gradient(name: &str, phi: Activation, v: &[f64], grad: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_eq!(v.len(), grad.len());
    for i in 0..v.len() {
        let slope = central(v, i, &f);
        let error = (slope - grad[i]).abs();
        assert!(error < TOLERANCE * (1.0 + slope.abs()), "{} {name}[{i}]: {} but slope {slope}", phi.name(), grad[i]);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Draws data until no pre-activation is near the kink of a piecewise linear activation.
fn smooth<T>(draw: impl Fn(&mut Rng) -> T, z: impl Fn(&T) -> Vec<f64>) -> T {
    let mut rng = Rng::new(7);
    loop {
        let data = draw(&mut rng);
        if z(&data).iter().all(|z| z.abs() > 1e-2) {
            return data;
        }
    }
}

#[test]
fn linear_backward_equals_finite_differences_for_every_activation() {
    let (n, k, m) = (3, 4, 4);
    for phi in ACTIVATIONS {
        for skip in [true, false] {
            let run = |x: &[f64], w: &[f64], b: &[f64]| linear((n, k, m), x, w, Some(b), phi, skip.then_some(x));
            let draw = |rng: &mut Rng| [n * k, m * k, m, n * m].map(|len| to_f64(&rng.vec(len)));
            let [x, w, b, dy] = smooth(draw, |[x, w, b, _]| run(x, w, b).z);
            let out = run(&x, &w, &b);
            let mut g = LinearGrads { dx: vec![], dw: vec![0.0; m * k], db: vec![0.0; m] };
            linear_backward((n, k, m), &x, &w, phi, &out.z, &dy, skip, &mut g);
            assert_gradient("dx", phi, &x, &g.dx, |x| dot(&run(x, &w, &b).y, &dy));
            assert_gradient("dw", phi, &w, &g.dw, |w| dot(&run(&x, w, &b).y, &dy));
            assert_gradient("db", phi, &b, &g.db, |b| dot(&run(&x, &w, b).y, &dy));
        }
    }
}

#[test]
fn block_backward_equals_finite_differences_for_every_activation() {
    let (n, d, h) = (3, 3, 5);
    for phi in ACTIVATIONS {
        for skip in [true, false] {
            let run = |x: &[f64], w1: &[f64], b1: &[f64], w2: &[f64], b2: &[f64]| {
                block((n, d, h), x, BlockParams { w1, b1, w2, b2, phi, skip })
            };
            let draw = |rng: &mut Rng| [n * d, h * d, h, d * h, d, n * d].map(|len| to_f64(&rng.vec(len)));
            let [x, w1, b1, w2, b2, dy] = smooth(draw, |[x, w1, b1, w2, b2, _]| run(x, w1, b1, w2, b2).z);
            let p = BlockParams { w1: &w1, b1: &b1, w2: &w2, b2: &b2, phi, skip };
            let mut g = BlockGrads::zeros((n, d, h));
            block_backward((n, d, h), &x, p, &block((n, d, h), &x, p), &dy, &mut g);
            assert_gradient("dx", phi, &x, &g.dx, |x| dot(&run(x, &w1, &b1, &w2, &b2).y, &dy));
            assert_gradient("dw1", phi, &w1, &g.dw1, |w1| dot(&run(&x, w1, &b1, &w2, &b2).y, &dy));
            assert_gradient("db1", phi, &b1, &g.db1, |b1| dot(&run(&x, &w1, b1, &w2, &b2).y, &dy));
            assert_gradient("dw2", phi, &w2, &g.dw2, |w2| dot(&run(&x, &w1, &b1, w2, &b2).y, &dy));
            assert_gradient("db2", phi, &b2, &g.db2, |b2| dot(&run(&x, &w1, &b1, &w2, b2).y, &dy));
        }
    }
}

#[test]
fn the_f32_oracle_is_close_to_f64() {
    let (n, d, h) = (5, 40, 60);
    for phi in ACTIVATIONS {
        let mut rng = Rng::new(11);
        let data =
            [n * d, h * d, h, d * h, d, n * d].map(|len| rng.vec(len).iter().map(|v| 0.2 * v).collect::<Vec<f32>>());
        let wide = data.clone().map(|v| to_f64(&v));
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
        // A chain of 60 roundings of numbers below 4, through two layers: 2 * 60 * 2^-24 * 4 at the very worst.
        let pairs = [
            ("y", &out.y, &out64.y),
            ("dx", &g.dx, &g64.dx),
            ("dw1", &g.dw1, &g64.dw1),
            ("db1", &g.db1, &g64.db1),
            ("dw2", &g.dw2, &g64.dw2),
            ("db2", &g.db2, &g64.db2),
        ];
        for (name, narrow, wide) in pairs {
            for (a, b) in narrow.iter().zip(wide) {
                let error = (f64::from(*a) - b).abs();
                assert!(error < 480.0 * 2.0_f64.powi(-24), "{} {name}: {a} but {b}", phi.name());
            }
        }
    }
}
