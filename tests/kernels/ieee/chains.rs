//! One step of a chain, anywhere in it, and all pairs of special operands.

use super::{DENORMAL, INF, MAX, NAN, NORMAL, SPECIAL};
use crate::common::{
    ACTIVATIONS, Map, Stage, THREADS, assert_same, contexts, mat, mat_mut, oracle_backward, oracle_forward, same,
    values_of, zero_grads,
};
use resblock::Activation::Identity;
use resblock::{Blocking, GradMode, Gradients, Layer, Workspace};

/// (start, a, b, fma(a, b, start)): a step of any chain, forward and backward.
const STEPS: [(f32, f32, f32, f32); 36] = [
    // NaN from any operand; infinity times zero, on either side, of either sign.
    (NAN, 1.0, 1.0, NAN),
    (1.0, NAN, 1.0, NAN),
    (1.0, 1.0, NAN, NAN),
    (1.0, NAN, 0.0, NAN),
    (1.0, 0.0, NAN, NAN),
    (INF, NAN, 0.0, NAN),
    (0.0, INF, 0.0, NAN),
    (0.0, 0.0, INF, NAN),
    (0.0, -INF, 0.0, NAN),
    (0.0, -0.0, INF, NAN),
    (INF, 0.0, -INF, NAN),
    // Infinities add up, or cancel to NaN.
    (0.0, INF, 2.0, INF),
    (0.0, INF, -2.0, -INF),
    (0.0, -INF, -INF, INF),
    (1.0, INF, DENORMAL, INF),
    (INF, 1.0, 1.0, INF),
    (-INF, MAX, 1.0, -INF),
    (INF, INF, 1.0, INF),
    (INF, INF, -1.0, NAN),
    (-INF, 1.0, INF, NAN),
    // Overflow goes to infinity, but not inside a step: the product is exact.
    (0.0, MAX, 2.0, INF),
    (0.0, MAX, -2.0, -INF),
    (-MAX, MAX, 2.0, MAX),
    (MAX, MAX, -2.0, -MAX),
    (MAX, 2e31, 1.0, INF),
    // Zeros: a sum of zeros is -0 only if all are.
    (0.0, -1.0, 0.0, 0.0),
    (-0.0, -1.0, 0.0, -0.0),
    (-0.0, 1.0, 0.0, 0.0),
    (1.0, 1.0, -1.0, 0.0),
    // Denormals are numbers as all others, operands and results; below half of the smallest, the sign stays.
    (0.0, DENORMAL, 1.0, DENORMAL),
    (DENORMAL, DENORMAL, 1.0, f32::from_bits(2)),
    (0.0, NORMAL, 0.5, f32::from_bits(1 << 22)),
    (-NORMAL, NORMAL, 0.5, f32::from_bits(1 << 31 | 1 << 22)),
    (0.0, DENORMAL, 0.75, DENORMAL),
    (0.0, DENORMAL, -0.5, -0.0),
    (0.0, DENORMAL, 8388608.0, NORMAL),
];

/// A layer whose every output has a chain of `k` steps, the given one at step `at`, all others adding 0 · 1 to it, and the table's row
/// given by the column. (0 · 1 turns a start of -0 into 0, so those rows stand alone.)
fn step_layer(k: usize, at: usize, rows: &[(f32, f32, f32, f32)]) -> Stage {
    let mut w = vec![0.0; rows.len() * k];
    for (j, row) in rows.iter().enumerate() {
        w[j * k..(j + 1) * k].fill(0.0);
        w[j * k + at] = row.2;
    }
    let b = rows.iter().map(|row| row.0).collect();
    Stage::Linear { map: Map { inputs: k, outputs: rows.len(), w, b: Some(b) }, phi: Identity, skip: false }
}

#[test]
fn a_step_of_a_chain_gives_what_the_table_says_wherever_it_stands() {
    let mut cases = 0;
    for (k, at) in [(1, 0), (2, 0), (2, 1), (17, 15), (17, 16), (40, 7), (40, 39)] {
        // A chain has one x for all columns of a row: one row of the batch for each row of the table, its own column checked.
        let rows: Vec<_> = STEPS.into_iter().filter(|row| k == 1 || row.3.to_bits() != (-0.0_f32).to_bits()).collect();
        let (n, stage) = (rows.len(), step_layer(k, at, &rows));
        let mut x = vec![1.0; n * k];
        for (i, row) in rows.iter().enumerate() {
            x[i * k + at] = row.1;
        }
        let oracle = oracle_forward(std::slice::from_ref(&stage), n, &x, None).swap_remove(0).y;
        for ctx in contexts() {
            for blocking in [Blocking::default(), Blocking { rows: 3, hidden: 5, depth: 16 }] {
                let (mut y, mut ws) = (vec![0.0; n * n], Workspace::new());
                let ctx = ctx.with_blocking(blocking);
                stage.build_linear().infer(&ctx, &mut ws, mat(&x, n, k), mat_mut(&mut y, n, n)).expect("infer");
                assert_same(format_args!("{ctx:?}"), &y, &oracle);
                for (i, row) in rows.iter().enumerate() {
                    let got = y[i * n + i];
                    assert!(same(got, row.3), "{ctx:?} k {k}: fma{row:?} gives {got:e}");
                    cases += 1;
                }
            }
        }
    }
    println!(
        "proof: a step of a chain follows IEEE 754 (0 * inf, inf - inf, overflow, -0, denormals) | {} expected \
         results, at 7 places, on every set and two block sizes | {cases} results | ok",
        STEPS.len()
    );
}

#[test]
fn every_pair_of_special_operands_is_treated_alike_by_every_instruction_set() {
    // All starts, all weights, all x: 15^3 steps; then each of them again in front of and behind ordinary numbers.
    let count = SPECIAL.len();
    let mut cases = 0;
    for (k, at) in [(1, 0), (3, 1), (33, 20)] {
        let m = count * count;
        let mut w: Vec<f32> = (0..m * k).map(|i| 0.25 + (i % 7) as f32).collect();
        let b: Vec<f32> = (0..m).map(|j| SPECIAL[j / count]).collect();
        (0..m).for_each(|j| w[j * k + at] = SPECIAL[j % count]);
        let mut x: Vec<f32> = (0..count * k).map(|i| 0.5 - (i % 5) as f32).collect();
        (0..count).for_each(|i| x[i * k + at] = SPECIAL[i]);
        for phi in ACTIVATIONS {
            let map = Map { inputs: k, outputs: m, w: w.clone(), b: Some(b.clone()) };
            let stages = [Stage::Linear { map, phi, skip: false }];
            let dy: Vec<f32> = (0..count * m).map(|i| SPECIAL[i / 7 % count]).collect();
            let outs = oracle_forward(&stages, count, &x, None);
            let mut grads = zero_grads(&stages);
            let dx_want = oracle_backward(&stages, count, &x, &outs, &dy, &mut grads).swap_remove(0);
            let layer = stages[0].build_linear();
            for ctx in contexts() {
                for threads in THREADS {
                    let (mut y, mut dx) = (vec![0.0; count * m], vec![0.0; count * k]);
                    let (mut ws, mut found) = (Workspace::new(), Gradients::new(&layer).expect("gradients"));
                    threads.run(ctx, |ctx| {
                        let y = mat_mut(&mut y, count, m);
                        let pass = layer.forward(&ctx, &mut ws, mat(&x, count, k), y).expect("forward");
                        let dx = Some(mat_mut(&mut dx, count, k));
                        pass.backward(mat(&dy, count, m), dx, &mut found, GradMode::Overwrite).expect("backward");
                    });
                    let what = format!("{} k {k} {ctx:?} {threads:?}", phi.name());
                    assert_same(format_args!("{what} y"), &y, &outs[0].y);
                    assert_same(format_args!("{what} dx"), &dx, &dx_want);
                    let found = values_of(&layer, &found);
                    assert_same(format_args!("{what} dw"), &found[0].dw, &grads[0].dw);
                    assert_same(format_args!("{what} db"), &found[0].db, &grads[0].db);
                    cases += y.len();
                }
            }
        }
    }
    println!(
        "proof: specials (NaN, inf, 0, -0, denormals, largest) in any pair, forward and backward, give \
         the bits of the specification | 15^3 starts, x and weights, every activation, set and thread count | {cases} results | ok"
    );
}
