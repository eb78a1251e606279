//! Skips, dead lanes and zero weights, in layers forward and backward.

use super::{DENORMAL, INF, MAX, NAN};
use crate::common::{
    Map, Stage, THREADS, assert_same, contexts, mat, mat_mut, oracle_backward, oracle_forward, same, values_of,
    zero_grads,
};
use resblock::Activation::{self, Gelu, Identity, LeakyRelu, Relu, Tanh};
use resblock::{GradMode, Gradients, Layer, Workspace};

/// (f, x, f + x): the skip, forward and backward.
const SKIPS: [(f32, f32, f32); 13] = [
    (NAN, 1.0, NAN),
    (1.0, NAN, NAN),
    (INF, -INF, NAN),
    (INF, 1.0, INF),
    (1.0, -INF, -INF),
    (INF, INF, INF),
    (MAX, MAX, INF),
    (MAX, -MAX, 0.0),
    (0.0, 0.0, 0.0),
    (0.0, -0.0, 0.0),
    (-0.0, -0.0, -0.0),
    (DENORMAL, DENORMAL, f32::from_bits(2)),
    (1.0, DENORMAL, 1.0),
];

#[test]
fn a_skip_adds_as_ieee_754_says() {
    let m = SKIPS.len();
    // f is the bias: the weights are 0 and x finite, or there would be NaN; so x comes in as the skip alone.
    let b = SKIPS.map(|row| row.0).to_vec();
    let stage = Stage::Linear { map: Map { inputs: 0, outputs: m, w: vec![], b: Some(b) }, phi: Identity, skip: false };
    let (layer, skip) = (stage.build_linear(), SKIPS.map(|row| row.1));
    for ctx in contexts() {
        let (mut y, mut ws) = (vec![7.0; m], Workspace::new());
        let out = mat_mut(&mut y, 1, m);
        layer.infer_with_skip(&ctx, &mut ws, mat(&[], 1, 0), mat(&skip, 1, m), out).expect("infer");
        for (got, row) in y.iter().zip(SKIPS) {
            assert!(same(*got, row.2), "{row:?} gives {got:e} on {}", ctx.isa());
        }
    }
    println!("proof: the skip adds as IEEE 754 says | explicit table, every set | {m} | ok");
}

/// A block of one feature and one hidden unit, and what one row makes of it: every intermediate result by name.
struct Case {
    what: &'static str,
    phi: Activation,
    /// (w1, b1, w2, b2), x, dy
    params: [f32; 4],
    x: f32,
    dy: f32,
    /// y, dx, dw1, db1, dw2, db2, with the skip.
    want: [f32; 6],
}

/// Nothing is skipped because it is zero: dead lanes and zero weights multiply as all others do.
const CASES: [Case; 14] = [
    Case {
        what: "a dead lane, dy inf",
        phi: Relu,
        params: [1.0, -2.0, 3.0, 0.0],
        x: 1.0,
        dy: INF,
        want: [1.0, NAN, NAN, NAN, NAN, INF],
    },
    Case {
        what: "a dead lane, dy NaN",
        phi: Relu,
        params: [1.0, -2.0, 3.0, 0.0],
        x: 1.0,
        dy: NAN,
        want: [1.0, NAN, NAN, NAN, NAN, NAN],
    },
    Case {
        what: "a dead lane, w2 inf",
        phi: Relu,
        params: [1.0, -2.0, INF, 0.0],
        x: 1.0,
        dy: 1.0,
        want: [NAN, NAN, NAN, NAN, 0.0, 1.0],
    },
    Case {
        what: "a dead lane, all finite",
        phi: Relu,
        params: [1.0, -2.0, 3.0, 0.0],
        x: 1.0,
        dy: 1.0,
        want: [1.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    },
    Case {
        what: "a leak of 0, dy inf",
        phi: LeakyRelu(0.0),
        params: [1.0, -2.0, 3.0, 0.0],
        x: 1.0,
        dy: INF,
        want: [1.0, NAN, NAN, NAN, NAN, INF],
    },
    Case {
        what: "a zero weight w1, x inf",
        phi: Relu,
        params: [0.0, 1.0, 1.0, 0.0],
        x: INF,
        dy: 1.0,
        want: [NAN, 1.0, NAN, 0.0, NAN, 1.0],
    },
    Case {
        what: "a zero weight w2, dy inf",
        phi: Relu,
        params: [1.0, 1.0, 0.0, 0.0],
        x: 1.0,
        dy: INF,
        want: [1.0, NAN, NAN, NAN, INF, INF],
    },
    Case {
        what: "a zero weight w2, h inf",
        phi: Relu,
        params: [1.0, INF, 0.0, 0.0],
        x: 1.0,
        dy: 1.0,
        want: [NAN, 1.0, 0.0, 0.0, INF, 1.0],
    },
    Case {
        what: "a zero x, dy inf",
        phi: Relu,
        params: [1.0, 1.0, 1.0, 0.0],
        x: 0.0,
        dy: INF,
        want: [1.0, INF, NAN, INF, INF, INF],
    },
    Case {
        what: "a zero dy, x inf",
        phi: Relu,
        params: [1.0, 1.0, 1.0, 0.0],
        x: INF,
        dy: 0.0,
        want: [INF, 0.0, NAN, 0.0, NAN, 0.0],
    },
    // ReLU passes NaN on to y and dW2, but its slope at NaN is 0, as the comparison z > 0 is false.
    Case {
        what: "z NaN, ReLU",
        phi: Relu,
        params: [1.0, NAN, 1.0, 0.0],
        x: 1.0,
        dy: 1.0,
        want: [NAN, 1.0, 0.0, 0.0, NAN, 1.0],
    },
    Case {
        what: "z NaN, leaky ReLU",
        phi: LeakyRelu(0.5),
        params: [1.0, NAN, 1.0, 0.0],
        x: 1.0,
        dy: 1.0,
        want: [NAN, 1.5, 0.5, 0.5, NAN, 1.0],
    },
    Case {
        what: "z NaN, GELU",
        phi: Gelu,
        params: [1.0, NAN, 1.0, 0.0],
        x: 1.0,
        dy: 1.0,
        want: [NAN, NAN, NAN, NAN, NAN, 1.0],
    },
    Case {
        what: "z inf, tanh: a slope of 0",
        phi: Tanh,
        params: [1.0, INF, 1.0, 0.0],
        x: 1.0,
        dy: INF,
        want: [2.0, NAN, NAN, NAN, INF, INF],
    },
];

#[test]
fn zeros_are_multiplied_not_skipped_in_dead_lanes_and_zero_weights() {
    let mut cases = 0;
    for case in CASES {
        let [w1, b1, w2, b2] = case.params;
        let map = |w: f32, b: f32| Map { inputs: 1, outputs: 1, w: vec![w], b: Some(vec![b]) };
        let stages = [Stage::Block { first: map(w1, b1), second: map(w2, b2), phi: case.phi, skip: true }];
        let layer = stages[0].build_block();
        for n in [1, 5, 33] {
            // Equal rows, enough to fill tiles and leave a rest.
            let (x, dy) = (vec![case.x; n], vec![case.dy; n]);
            let outs = oracle_forward(&stages, n, &x, None);
            let mut want = zero_grads(&stages);
            let dx_want = oracle_backward(&stages, n, &x, &outs, &dy, &mut want).swap_remove(0);
            for ctx in contexts() {
                for threads in THREADS {
                    let (mut y, mut dx, mut ws) = (vec![7.0; n], vec![7.0; n], Workspace::new());
                    let mut grads = Gradients::new(&layer).expect("gradients");
                    threads.run(ctx, |ctx| {
                        let out = mat_mut(&mut y, n, 1);
                        let pass = layer.forward(&ctx, &mut ws, mat(&x, n, 1), out).expect("forward");
                        let dx = Some(mat_mut(&mut dx, n, 1));
                        pass.backward(mat(&dy, n, 1), dx, &mut grads, GradMode::Overwrite).expect("backward");
                    });
                    let found = values_of(&layer, &grads);
                    let what = format!("{} on {} {threads:?}, {n} rows", case.what, ctx.isa());
                    assert_same(format_args!("{what}: y"), &y, &outs[0].y);
                    assert_same(format_args!("{what}: dx"), &dx, &dx_want);
                    let all = [y[0], dx[0], found[0].dw[0], found[0].db[0], found[1].dw[0], found[1].db[0]];
                    for (i, name) in ["y", "dx", "dW1", "db1", "dW2", "db2"].into_iter().enumerate() {
                        // Sums over n equal rows.
                        let times = if i < 2 { 1.0 } else { n as f32 };
                        assert!(same(all[i], times * case.want[i]), "{what}: {name} is {}", all[i]);
                        cases += 1;
                    }
                    for (found, want) in found.iter().zip(&want) {
                        assert_same(format_args!("{what}: dW"), &found.dw, &want.dw);
                        assert_same(format_args!("{what}: db"), &found.db, &want.db);
                    }
                }
            }
        }
    }
    println!(
        "proof: 0 * inf and 0 * NaN are NaN in dead ReLU lanes and at zero weights, forward, dX, dW, db | explicit table of {} blocks, \
         every set and thread count | {cases} results | ok",
        CASES.len()
    );
}
