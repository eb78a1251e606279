//! Losses and optimisers.

use super::{DENORMAL, INF, MAX, NAN};
use crate::common::{Map, MapGrad, Stage, contexts, gradients_of, mat, mat_mut, parameters_of, same};
use resblock::Activation::Identity;
use resblock::{
    AdamW, BinaryCrossEntropy, CrossEntropy, Huber, Optimizer, Sgd, mean_squared_error, softmax_cross_entropy,
};

fn same_f64(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

#[test]
fn the_mean_squared_error_at_specials_is_that_of_the_table() {
    // (y, target, loss, dy)
    let table: [(f32, f32, f64, f32); 9] = [
        (NAN, 0.0, f64::NAN, NAN),
        (0.0, NAN, f64::NAN, NAN),
        (INF, 0.0, f64::INFINITY, INF),
        (0.0, INF, f64::INFINITY, -INF),
        (INF, INF, f64::NAN, NAN),
        (INF, -INF, f64::INFINITY, INF),
        // In f64 nothing overflows before the result.
        (MAX, 0.0, f64::from(MAX) * f64::from(MAX), INF),
        (0.0, -0.0, 0.0, 0.0),
        (DENORMAL, 0.0, libm::ldexp(1.0, -298), 2.0 * DENORMAL),
    ];
    for (y, target, loss, gradient) in table {
        let mut dy = [7.0];
        let found = mean_squared_error(mat(&[y], 1, 1), mat(&[target], 1, 1), Some(mat_mut(&mut dy, 1, 1)));
        let found = found.expect("a loss");
        assert!(same_f64(found, loss) && same(dy[0], gradient), "({y:e}, {target:e}): {found:e}, {:e}", dy[0]);
    }
    println!("proof: mean squared error at NaN, inf, denormals | explicit table | {} | ok", table.len());
}

#[test]
fn the_cross_entropy_at_specials_is_that_of_the_table() {
    // Logits of two classes, label 0: loss, gradient.
    let table: [([f32; 2], f64, [f32; 2]); 10] = [
        ([NAN, 0.0], f64::NAN, [NAN, NAN]),
        ([0.0, NAN], f64::NAN, [NAN, NAN]),
        ([NAN, NAN], f64::NAN, [NAN, NAN]),
        // inf - inf in the shift by the maximum.
        ([INF, 0.0], f64::NAN, [NAN, NAN]),
        ([0.0, INF], f64::NAN, [NAN, NAN]),
        ([-INF, -INF], f64::NAN, [NAN, NAN]),
        // A class that cannot be: harmless unless it is the label, which then costs infinitely much, with a finite gradient.
        ([0.0, -INF], 0.0, [0.0, 0.0]),
        ([-INF, 0.0], f64::INFINITY, [-1.0, 1.0]),
        ([MAX, -MAX], 0.0, [0.0, 0.0]),
        ([-MAX, MAX], 2.0 * MAX as f64, [-1.0, 1.0]),
    ];
    for (logits, loss, gradient) in table {
        let mut d = [7.0; 2];
        let found = softmax_cross_entropy(mat(&logits, 1, 2), &[0], Some(mat_mut(&mut d, 1, 2))).expect("a loss");
        assert!(same_f64(found, loss), "{logits:?}: loss {found:e}, not {loss:e}");
        assert!(same(d[0], gradient[0]) && same(d[1], gradient[1]), "{logits:?}: gradient {d:?}");
    }
    println!("proof: softmax cross-entropy at NaN, inf and the largest logits | explicit table | {} | ok", table.len());
}

#[test]
fn the_smoothed_cross_entropy_at_specials_is_that_of_the_table() {
    // Logits of two classes, label 0, smoothing 1/2: every class has a target, and what is impossible costs infinitely much.
    let table: [([f32; 2], f64, [f32; 2]); 7] = [
        ([NAN, 0.0], f64::NAN, [NAN, NAN]),
        ([0.0, NAN], f64::NAN, [NAN, NAN]),
        ([INF, 0.0], f64::NAN, [NAN, NAN]),
        ([0.0, INF], f64::NAN, [NAN, NAN]),
        ([-INF, -INF], f64::NAN, [NAN, NAN]),
        ([0.0, -INF], f64::INFINITY, [0.25, -0.25]),
        ([-INF, 0.0], f64::INFINITY, [-0.75, 0.75]),
    ];
    for (logits, loss, gradient) in table {
        let mut d = [7.0; 2];
        let smooth = CrossEntropy { label_smoothing: 0.5, ..CrossEntropy::default() };
        let found = smooth.evaluate(mat(&logits, 1, 2), &[0], Some(mat_mut(&mut d, 1, 2))).expect("a loss");
        assert!(same_f64(found, loss), "{logits:?}: loss {found:e}, not {loss:e}");
        assert!(same(d[0], gradient[0]) && same(d[1], gradient[1]), "{logits:?}: gradient {d:?}");
    }
    println!("proof: smoothed cross-entropy at NaN and inf | explicit table | {} | ok", table.len());
}

#[test]
fn the_binary_cross_entropy_and_hubers_loss_at_specials_are_those_of_the_tables() {
    // (logit, target, loss, gradient)
    let ln_2 = std::f64::consts::LN_2;
    let binary: [(f32, f32, f64, f32); 13] = [
        (NAN, 0.0, f64::NAN, NAN),
        (NAN, 1.0, f64::NAN, NAN),
        (INF, 1.0, 0.0, 0.0),
        (INF, 0.0, f64::INFINITY, 1.0),
        (-INF, 0.0, 0.0, 0.0),
        (-INF, 1.0, f64::INFINITY, -1.0),
        (INF, 0.5, f64::INFINITY, 0.5),
        (-INF, 0.5, f64::INFINITY, -0.5),
        (MAX, 0.0, MAX as f64, 1.0),
        (-MAX, 1.0, MAX as f64, -1.0),
        (MAX, 1.0, 0.0, 0.0),
        (0.0, 0.0, ln_2, 0.5),
        (-0.0, 1.0, ln_2, -0.5),
    ];
    // (y, target, loss, dy), δ = 1.
    let huber: [(f32, f32, f64, f32); 8] = [
        (NAN, 0.0, f64::NAN, NAN),
        (0.0, NAN, f64::NAN, NAN),
        (INF, 0.0, f64::INFINITY, 1.0),
        (0.0, INF, f64::INFINITY, -1.0),
        (INF, INF, f64::NAN, NAN),
        (MAX, -MAX, 2.0 * MAX as f64 - 0.5, 1.0),
        (0.0, -0.0, 0.0, 0.0),
        (DENORMAL, 0.0, libm::ldexp(1.0, -299), DENORMAL),
    ];
    let evaluate = |huber: bool, y: f32, target: f32| {
        let mut d = [7.0];
        let (y, target, dy) = ([y], [target], mat_mut(&mut d, 1, 1));
        let (y, target) = (mat(&y, 1, 1), mat(&target, 1, 1));
        let found = match huber {
            true => Huber::default().evaluate(y, target, Some(dy)),
            false => BinaryCrossEntropy::default().evaluate(y, target, Some(dy)),
        };
        (found.expect("a loss"), d[0])
    };
    for (is_huber, table) in [(false, &binary[..]), (true, &huber)] {
        for &(y, target, loss, gradient) in table {
            let (found, d) = evaluate(is_huber, y, target);
            assert!(
                same_f64(found, loss) && same(d, gradient),
                "huber {is_huber}, ({y:e}, {target:e}): {found:e}, {d:e}"
            );
        }
    }
    println!(
        "proof: binary cross-entropy and Huber's loss at NaN, inf, the largest and denormals | explicit tables | {} | ok",
        binary.len() + huber.len()
    );
}

/// (gradient, parameter after one step, parameter after a second step with gradient 0), from 1.0.
type Steps = (f32, f32, f32);

fn check(name: &str, make: impl Fn() -> AnyOptimizer, table: &[Steps]) -> usize {
    let m = table.len();
    let map = Map { inputs: 1, outputs: m, w: vec![1.0; m], b: Some(vec![1.0; m]) };
    let stage = Stage::Linear { map, phi: Identity, skip: false };
    let g: Vec<f32> = table.iter().map(|row| row.0).collect();
    for ctx in contexts() {
        let (mut layer, mut optimizer) = (stage.build_linear(), make());
        for (step, g) in [g.clone(), vec![0.0; m]].into_iter().enumerate() {
            let grads = gradients_of(&layer, &[MapGrad { dw: g.clone(), db: g }]);
            match &mut optimizer {
                AnyOptimizer::Sgd(sgd) => sgd.step(&ctx, &mut layer, &grads),
                AnyOptimizer::AdamW(adam) => adam.step(&ctx, &mut layer, &grads),
            }
            .expect("a step");
            for (kind, found) in parameters_of(&layer).iter().enumerate() {
                for (row, got) in table.iter().zip(found) {
                    let want = if step == 0 { row.1 } else { row.2 };
                    let what = format!("{name}, gradient {:e}, step {step}, kind {kind}, {}", row.0, ctx.isa());
                    assert!(same(*got, want), "{what}: {got:?} ({:08x}), not {want:?}", got.to_bits());
                }
            }
        }
    }
    4 * m * contexts().count()
}

enum AnyOptimizer {
    Sgd(Sgd),
    AdamW(AdamW),
}

#[test]
fn optimisers_at_special_gradients_do_what_the_tables_say() {
    // v = g, p = 1 - 0.5 v; then v = 0.5 v. The decay of 0 multiplies p, so an infinite p turns into NaN.
    let sgd = check(
        "sgd",
        || AnyOptimizer::Sgd(Sgd::new(0.5, 0.5)),
        &[
            (NAN, NAN, NAN),
            (INF, -INF, NAN),
            (-INF, INF, NAN),
            (MAX, -0.5 * MAX, -0.75 * MAX),
            (0.0, 1.0, 1.0),
            (-0.0, 1.0, 1.0),
            (DENORMAL, 1.0, 1.0),
            (2.0, 0.0, -0.5),
        ],
    );
    // inf: m / sqrt(v) is inf / inf. MAX: g^2 overflows, and m / inf is 0: no step, now and ever after. Denormal: g^2 is 0, and m / eps
    // is small beside 1 (a gradient of 1e-20 would move p).
    let adam = check(
        "adamw",
        || {
            let mut adam = AdamW::new(0.5);
            (adam.weight_decay, adam.betas) = (0.0, (0.5, 0.75));
            AnyOptimizer::AdamW(adam)
        },
        &[
            (NAN, NAN, NAN),
            (INF, NAN, NAN),
            (-INF, NAN, NAN),
            (MAX, 1.0, 1.0),
            (0.0, 1.0, 1.0),
            (-0.0, 1.0, 1.0),
            (1e-40, 1.0, 1.0),
        ],
    );
    println!(
        "proof: SGD and AdamW at NaN, inf, the largest, 0 and denormal gradients | explicit tables, every set, two steps | {} | ok",
        sgd + adam
    );
}
