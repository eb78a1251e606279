//! Activations: values and slopes of any bits are the same on every instruction set, and near those of the f64 reference.

use crate::common::{assert_same, contexts, mat, mat_mut};
use crate::input::Phi;
use arbitrary::Arbitrary;
use resblock::reference::Real;
use resblock::{Activation, Affine, GradMode, Gradients, Layer, Linear, Role, Workspace};

#[derive(Debug, Arbitrary)]
pub struct Case {
    phi: Phi,
    bits: Vec<u32>,
}

pub fn run(case: &Case) {
    let (phi, z): (Activation, Vec<f32>) =
        (case.phi.into(), case.bits.iter().take(64).map(|&b| f32::from_bits(b)).collect());
    let n = z.len();
    for &z in &z {
        near_the_reference(phi, z);
    }
    // A layer without inputs: its pre-activation is the bias, and with dy = 1 the gradient of the bias is phi'.
    let layer = Linear::new(Affine::new(mat(&[], n, 0), Some(&z)).expect("a map"), phi);
    let values: Vec<f32> = z.iter().map(|&z| phi.value(z)).collect();
    let slopes: Vec<f32> = z.iter().map(|&z| 0.0 + phi.derivative(z)).collect();
    let dy = vec![1.0; n];
    for ctx in contexts() {
        let (mut y, mut ws) = (vec![0.0; n], Workspace::new());
        let mut grads = Gradients::new(&layer).expect("gradients");
        let pass = layer.forward(&ctx, &mut ws, mat(&[], 1, 0), mat_mut(&mut y, 1, n)).expect("forward");
        assert_same(format_args!("{phi:?} {ctx:?}"), &y, &values);
        pass.backward(mat(&dy, 1, n), None, &mut grads, GradMode::Overwrite).expect("backward");
        let mut found = vec![0.0; n];
        let db = grads.iter().find(|g| g.role() == Role::Bias).expect("a bias");
        db.write_to(mat_mut(&mut found, 1, n)).expect("a copy");
        assert_same(format_args!("{phi:?}' {ctx:?}"), &found, &slopes);
    }
}

/// Within 8 ULP of the reference, or within 9e-8 where it is small: the loosest of the documented bounds. The piecewise linear
/// functions are correctly rounded.
fn near_the_reference(phi: Activation, z: f32) {
    if !z.is_finite() {
        return;
    }
    let exact = matches!(phi, Activation::Identity | Activation::Relu | Activation::LeakyRelu(_));
    // Of parameters that nobody trains with, results are the same everywhere; how near they are is not promised.
    if !exact && phi.parameter().is_some_and(|x| !(0.0625..=16.0).contains(&x.abs())) {
        return;
    }
    let wide = f64::from(z);
    for (what, found, truth) in
        [("value", phi.value(z), wide.activate(phi)), ("slope", phi.derivative(z), wide.derive(phi))]
    {
        // What is larger than any f32 is infinite.
        let near = if exact || truth.abs() > f64::from(f32::MAX) {
            found == truth as f32 || (found.is_nan() && truth.is_nan())
        } else {
            (f64::from(found) - truth).abs() <= 8.0 * f64::from(f32::EPSILON) * truth.abs() + 9e-8
        };
        assert!(near, "{phi:?} {what} at {z:e}: {found:e}, expected {truth:e}");
    }
}
