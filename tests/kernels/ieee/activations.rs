//! Values and slopes of the activations.

use super::{DENORMAL, INF, MAX, NAN, NORMAL};
use crate::common::{ACTIVATIONS, Map, Stage, contexts, mat, mat_mut, same, values_of};
use resblock::Activation::{
    self, Elu, Gelu, GeluTanh, Hardswish, Identity, LeakyRelu, Mish, Relu, ReluSquared, Sigmoid, Silu, SiluBeta,
    Softplus, Tanh,
};
use resblock::bounds::{slope_accuracy, value_accuracy};
use resblock::reference::Real;
use resblock::{Context, GradMode, Gradients, Layer, Workspace};
use std::f32::consts::LN_2;

/// (z, φ(z), φ'(z)).
type Row = (f32, f32, f32);

/// Values and slopes where they are exact: at NaN, the infinities, the zeros and the largest numbers.
fn table(phi: Activation) -> [Row; 7] {
    let row = |value: [f32; 7], slope: [f32; 7]| {
        let z = [NAN, INF, -INF, 0.0, -0.0, MAX, -MAX];
        std::array::from_fn(|i| (z[i], value[i], slope[i]))
    };
    match phi {
        Identity => row([NAN, INF, -INF, 0.0, -0.0, MAX, -MAX], [1.0; 7]),
        Relu => row([NAN, INF, 0.0, 0.0, -0.0, MAX, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
        LeakyRelu(a) => row([NAN, INF, -INF, 0.0, -0.0, MAX, a * -MAX], [a, 1.0, a, a, a, 1.0, a]),
        Gelu => row([NAN, INF, 0.0, 0.0, -0.0, MAX, 0.0], [NAN, 1.0, -0.0, 0.5, 0.5, 1.0, -0.0]),
        GeluTanh | Silu => row([NAN, INF, -0.0, 0.0, -0.0, MAX, -0.0], [NAN, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0]),
        Tanh => row([NAN, 1.0, -1.0, 0.0, -0.0, 1.0, -1.0], [NAN, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]),
        Sigmoid => row([NAN, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0], [NAN, 0.0, 0.0, 0.25, 0.25, 0.0, 0.0]),
        ReluSquared => row([NAN, INF, 0.0, 0.0, 0.0, INF, 0.0], [NAN, INF, 0.0, 0.0, -0.0, INF, 0.0]),
        SiluBeta(_) | Hardswish => row([NAN, INF, -0.0, 0.0, -0.0, MAX, -0.0], [NAN, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0]),
        Mish => row([NAN, INF, -0.0, 0.0, -0.0, MAX, -0.0], [NAN, 1.0, 0.0, 0.6, 0.6, 1.0, 0.0]),
        Elu(a) => row([NAN, INF, -a, 0.0, -0.0, MAX, -a], [NAN, 1.0, 0.0, a, a, 1.0, 0.0]),
        Softplus => row([NAN, INF, 0.0, LN_2, LN_2, MAX, 0.0], [NAN, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0]),
        _ => unreachable!("ACTIVATIONS has no other"),
    }
}

/// Values and slopes of φ at `z` as a layer computes them. The bias is z, since there are no inputs; the gradient of the bias is
/// 0 + 1 φ'(z).
fn layer_at(ctx: &Context, phi: Activation, z: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let m = z.len();
    let stage = Stage::Linear { map: Map { inputs: 0, outputs: m, w: vec![], b: Some(z.to_vec()) }, phi, skip: false };
    let (layer, dy) = (stage.build_linear(), vec![1.0; m]);
    let (mut y, mut ws) = (vec![7.0; m], Workspace::new());
    let mut grads = Gradients::new(&layer).expect("gradients");
    let pass = layer.forward(ctx, &mut ws, mat(&[], 1, 0), mat_mut(&mut y, 1, m)).expect("forward");
    pass.backward(mat(&dy, 1, m), None, &mut grads, GradMode::Overwrite).expect("backward");
    let slopes = values_of(&layer, &grads).swap_remove(0).db;
    (y, slopes)
}

#[test]
fn values_and_slopes_at_specials_are_those_of_the_table() {
    let mut cases = 0;
    let agree = |wide: f64, narrow: f32| wide as f32 == narrow || (wide.is_nan() && narrow.is_nan());
    for phi in ACTIVATIONS {
        let rows = table(phi);
        for ctx in contexts() {
            let (values, slopes) = layer_at(&ctx, phi, &rows.map(|row| row.0));
            for (i, (z, value, slope)) in rows.into_iter().enumerate() {
                let what = format!("{} at {z} on {}", phi.name(), ctx.isa());
                assert!(same(values[i], value) && same(phi.value(z), value), "{what}: {:?}, not {value:?}", values[i]);
                // The gradient of the bias starts from 0, which a slope of -0 leaves.
                assert!(
                    same(slopes[i], 0.0 + slope) && same(phi.derivative(z), slope),
                    "{what}: slope {:?}",
                    slopes[i]
                );
                let wide = f64::from(z);
                assert!(agree(wide.activate(phi), value) && agree(wide.derive(phi), slope), "{what}: other in f64");
                cases += 2;
            }
        }
    }
    println!(
        "proof: phi and phi' at NaN, +-inf, +-0 and the largest numbers | a table of {} activations, on every set and in the f64 \
         reference | {cases} results | ok",
        ACTIVATIONS.len()
    );
}

#[test]
fn values_at_denormals_keep_their_sign_and_accuracy_and_are_not_flushed() {
    let mut cases = 0;
    let largest = NORMAL.next_down();
    let z: Vec<f32> = [DENORMAL, 2.0 * DENORMAL, 1e-44, 1e-40, largest, NORMAL, 2.0 * NORMAL]
        .into_iter()
        .flat_map(|z| [z, -z])
        .collect();
    for phi in ACTIVATIONS {
        for ctx in contexts() {
            let (values, slopes) = layer_at(&ctx, phi, &z);
            for ((&z, &value), &slope) in z.iter().zip(&values).zip(&slopes) {
                let what = format!("{} at {z:e} on {}", phi.name(), ctx.isa());
                let (want, want_slope) = (f64::from(z).activate(phi), f64::from(z).derive(phi));
                let error = (f64::from(value) - want).abs();
                assert!(error <= value_accuracy(phi).error(want.abs()), "{what}: {value:e}, not {want:e}");
                let error = (f64::from(slope) - want_slope).abs();
                assert!(error <= slope_accuracy(phi).error(want_slope.abs()), "{what}: slope {slope:e}");
                // GELU of the smallest negative denormal, a tie, is +0.
                if !matches!(phi, Sigmoid | Softplus) && value != 0.0 {
                    assert_eq!(value.is_sign_negative(), z.is_sign_negative(), "{what}: {value:e}");
                }
                // Half of the smallest denormal is a tie; from twice that on, no function but ReLU may give 0.
                assert!(value != 0.0 || want.abs() < f64::from(DENORMAL), "{what}: flushed to 0, not {want:e}");
                cases += 2;
            }
        }
    }
    // The left tails end in denormals, not in zeros that came too early: the last z whose result is not 0.
    let values = [(Sigmoid, -103.0), (Silu, -103.0), (Gelu, -14.1)].map(|(phi, z)| (phi, phi.value(z)));
    let slopes = [(Tanh, 51.5), (Sigmoid, 103.0), (Gelu, -14.3)].map(|(phi, z)| (phi, phi.derivative(z)));
    for (phi, tail) in values.into_iter().chain(slopes) {
        assert!(tail != 0.0 && !tail.is_normal(), "{}: {tail:e}", phi.name());
        cases += 1;
    }
    println!(
        "proof: denormal arguments and results of activations are kept | every activation and set | {cases} results | ok"
    );
}
