//! The tables of docs/numerics.md, computed again: how far a long chain of f32 drifts, beside other orders of summation.

use crate::common::{Map, Rng, Stage, fastest, mat, mat_mut, values_of};
use resblock::bounds::{Running, gamma};
use resblock::reference::Real;
use resblock::{Activation, GradMode, Gradients, Layer, MatRef, Workspace};
use std::fmt::Write;

/// One chain of fused multiply-adds: what the kernels compute.
fn chain(terms: &[f32]) -> f32 {
    terms.iter().fold(0.0, |sum, &t| t.mul_add(1.0, sum))
}

/// Partial sums of every 64th term, added in pairs: 16 lanes in 4 registers, as a dot product has them.
fn lanes(terms: &[f32]) -> f32 {
    let mut sums = [0.0; 64];
    terms.chunks(64).for_each(|chunk| sums.iter_mut().zip(chunk).for_each(|(sum, &t)| *sum += t));
    pairwise(&sums)
}

/// Chains of 256, added one after the other: the k blocks of a matrix product.
fn blocks(terms: &[f32]) -> f32 {
    terms.chunks(256).fold(0.0, |sum, block| sum + chain(block))
}

fn pairwise(terms: &[f32]) -> f32 {
    match terms.len() {
        0..=1 => terms.iter().sum(),
        n => pairwise(&terms[..n / 2]) + pairwise(&terms[n / 2..]),
    }
}

/// Chains of 1024, each rounded to f32 at its end, added in f64: what a caller can do.
fn pieces(terms: &[f32]) -> f64 {
    terms.chunks(1024).map(|piece| f64::from(chain(piece))).sum()
}

/// k.
const LENGTHS: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

fn table() -> String {
    let mut rng = Rng::new(1);
    let uniform = rng.vec(LENGTHS[4]);
    let positive = uniform.iter().map(|t| t.abs()).collect();
    let data = [("all 0.1", vec![0.1; LENGTHS[4]]), ("uniform in [0, 1)", positive), ("uniform in [-1, 1)", uniform)];
    let mut text = String::from(
        "| terms | k | one chain | 64 lanes | blocks of 256 | pairwise | pieces of 1024, in f64 | γ_k | running |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, terms) in &data {
        for k in LENGTHS {
            let terms = &terms[..k];
            let exact: f64 = terms.iter().map(|&t| f64::from(t)).sum();
            let size: f64 = terms.iter().map(|&t| f64::from(t.abs())).sum();
            let off = |sum: f64| (sum - exact).abs() / size;
            let narrow = |sum: f32| off(f64::from(sum));
            let one = Running::from(1.0);
            let running = terms.iter().fold(Running::ZERO, |sum, &t| Running::from(t).fma(one, sum)).error() / size;
            assert!(narrow(chain(terms)) <= running && running <= gamma(k) * 1.000_001, "{name}, {k}");
            let row = [chain(terms), lanes(terms), blocks(terms), pairwise(terms)].map(narrow);
            write!(text, "| {name} | 1e{} |", k.ilog10()).expect("text");
            for value in row.into_iter().chain([off(pieces(terms)), gamma(k), running]) {
                write!(text, " {value:.0e} |").expect("text");
            }
            text.push('\n');
        }
    }
    text
}

#[test]
fn the_table_of_long_chains_is_that_of_the_documentation() {
    let table = table();
    let document = include_str!("../../docs/numerics.md");
    assert!(document.contains(&table), "docs/numerics.md should have:\n{table}");
    println!(
        "proof: the table of long chains in docs/numerics.md is right | computed again | {} rows | ok",
        table.lines().count() - 2
    );
}

#[test]
fn a_million_inputs_of_one_sign_drift_as_documented_and_pieces_do_not() {
    let (k, exact) = (1_000_000, 1e6 * f64::from(0.1_f32));
    let tenths = vec![0.1; k];
    let layer = |inputs: usize| {
        let map = Map { inputs, outputs: 1, w: vec![1.0; inputs], b: Some(vec![0.0]) };
        Stage::Linear { map, phi: Activation::Identity, skip: false }.build_linear()
    };
    let (ctx, mut ws, mut y) = (fastest(), Workspace::new(), [0.0]);
    layer(k).infer(&ctx, &mut ws, mat(&tenths, 1, k), mat_mut(&mut y, 1, 1)).expect("infer");
    assert_eq!(y, [chain(&tenths)]);
    assert_eq!(y, [100_958.34], "0.96 % off");

    // Maps of a thousand inputs each, whose outputs are added in f64.
    let (short, mut sum) = (layer(1000), 0.0);
    for x in tenths.chunks(1000) {
        short.infer(&ctx, &mut ws, mat(x, 1, 1000), mat_mut(&mut y, 1, 1)).expect("infer");
        sum += f64::from(y[0]);
    }
    assert!((sum / exact - 1.0).abs() < 2e-5, "{sum}");

    // Bias gradients over a million rows are the same chain, however the batch is cut, unless every piece has its own.
    let (net, rows) = (layer(1), 10_000);
    let mut grads = Gradients::new(&net).expect("gradients");
    let mut db = |mode| {
        let mut y = vec![0.0; rows];
        let repeated = |x: &'static [f32; 1]| MatRef::with_strides(x, rows, 1, 0, 1).expect("a view");
        let pass = net.forward(&ctx, &mut ws, repeated(&[1.0]), mat_mut(&mut y, rows, 1)).expect("forward");
        pass.backward(repeated(&[0.1]), None, &mut grads, mode).expect("backward");
        values_of(&net, &grads)[0].db[0]
    };
    let mut whole = db(GradMode::Overwrite);
    (1..k / rows).for_each(|_| whole = db(GradMode::Accumulate));
    assert_eq!(whole, 100_958.34);
    let apart: f64 = (0..k / rows).map(|_| f64::from(db(GradMode::Overwrite))).sum();
    assert!((apart / exact - 1.0).abs() < 1e-4, "{apart}");
}
