//! Activations against f64: a sample of all floats in every run, all 2^32 of them in the ignored test, which prints the bounds
//! that the documentation states:
//!
//! ```text
//! cargo test --release --test kernels activation:: -- --ignored --nocapture
//! ```

use crate::common::{ACTIVATIONS, assert_same, contexts, mat, mat_mut, same};
use resblock::bounds::{Accuracy, slope_accuracy, ulp, value_accuracy};
use resblock::reference::Real;
use resblock::{Activation, Affine, GradMode, Gradients, Layer, Linear, Role, Workspace};

/// Bits from one sampled float to the next: a prime, so that all low bits occur.
const STRIDE: u64 = 4099;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Value,
    Derivative,
}

impl What {
    fn kernel(self, phi: Activation, z: f32) -> f32 {
        match self {
            What::Value => phi.value(z),
            What::Derivative => phi.derivative(z),
        }
    }

    fn truth(self, phi: Activation, z: f32) -> f64 {
        match self {
            What::Value => f64::from(z).activate(phi),
            What::Derivative => f64::from(z).derive(phi),
        }
    }
}

/// 2^n for a normal result.
fn exp2(n: i64) -> f64 {
    f64::from_bits(((1023 + n) as u64) << 52)
}

/// floor(log2 |x|), at least -127 (which stands for everything below 2^-126).
fn exponent(x: f64) -> i64 {
    (((x.to_bits() >> 52) & 0x7ff) as i64 - 1023).max(-127)
}

/// Errors over some floats, by the binade of the true value.
#[derive(Debug, Clone)]
struct Errors {
    /// (largest error in ULP, where) for true values in [2^e, 2^(e+1)), e = -127 (below 2^-126) ..= 128.
    binades: Vec<(f64, f32)>,
}

impl Errors {
    fn none() -> Self {
        Self { binades: vec![(0.0, 0.0); 256] }
    }

    fn add(&mut self, z: f32, got: f32, want: f64) {
        let error = (f64::from(got) - want).abs() / ulp(want);
        let worst = &mut self.binades[(exponent(want) + 127) as usize];
        // A NaN compares as nothing does; it must count as the worst.
        if error > worst.0 || error.is_nan() {
            *worst = (if error.is_nan() { f64::INFINITY } else { error }, z);
        }
    }

    fn merge(mut self, other: Self) -> Self {
        for (a, b) in self.binades.iter_mut().zip(other.binades) {
            if b.0 > a.0 {
                *a = b;
            }
        }
        self
    }

    /// (largest error in ULP, where) for true values of at least 2^e in magnitude.
    fn ulps_from(&self, e: i64) -> (f64, f32) {
        self.binades[(e + 127) as usize..].iter().fold((0.0, 0.0), |a, &b| if b.0 > a.0 { b } else { a })
    }

    /// (largest absolute error, where) for true values below 2^e in magnitude.
    fn absolute_below(&self, e: i64) -> (f64, f32) {
        let errors = self.binades.iter().zip(-127_i64..).take((e + 127) as usize);
        errors.map(|(&(ulps, z), e)| (ulps * exp2(e.max(-126) - 23), z)).fold(
            (0.0, 0.0),
            |a, b| {
                if b.0 > a.0 { b } else { a }
            },
        )
    }
}

/// Errors over every `stride`-th float from `first` on, NaN and infinities left out.
fn measure(phi: Activation, what: What, first: u64, stride: u64) -> Errors {
    let mut errors = Errors::none();
    let mut bits = first;
    while bits < 1 << 32 {
        let z = f32::from_bits(bits as u32);
        if z.is_finite() {
            let (got, want) = (what.kernel(phi, z), what.truth(phi, z));
            // What rounds to infinity has no units in the last place.
            if want.abs() < f64::from(f32::MAX) * (1.0 + 0.5 * f64::from(f32::EPSILON)) {
                errors.add(z, got, want);
            } else {
                assert!(got.is_infinite(), "{} {what:?} at {z:e}: {got}", phi.name());
            }
        }
        bits += stride;
    }
    errors
}

/// A promise: what `resblock::bounds` says of the value or the derivative.
#[derive(Debug, Clone, Copy)]
struct Bound {
    phi: Activation,
    what: What,
}

fn bounds() -> impl Iterator<Item = Bound> {
    ACTIVATIONS.into_iter().flat_map(|phi| [What::Value, What::Derivative].map(|what| Bound { phi, what }))
}

impl Bound {
    fn check(self, errors: &Errors) {
        let Self { phi, what } = self;
        let Accuracy { ulps, from, absolute } = match what {
            What::Value => value_accuracy(phi),
            What::Derivative => slope_accuracy(phi),
        };
        let (worst, z) = errors.ulps_from(from.into());
        assert!(worst <= ulps, "{} {what:?}: {worst} ULP at {z:e}, promised {ulps}", phi.name());
        let (worst, z) = errors.absolute_below(from.into());
        assert!(worst <= absolute, "{} {what:?}: off by {worst:e} at {z:e}, promised {absolute:e}", phi.name());
    }
}

#[test]
fn values_and_derivatives_keep_their_bounds_on_a_sample_of_all_floats() {
    let mut cases = 0;
    for bound in bounds() {
        bound.check(&measure(bound.phi, bound.what, 0, STRIDE));
        cases += (1 << 32) / STRIDE;
    }
    println!(
        "proof: phi and phi' keep the accuracy that `bounds` states | against f64, every {STRIDE}th float, {} activations | \
         {cases} results | ok",
        ACTIVATIONS.len()
    );
}

#[test]
#[ignore = "an hour: all 2^32 floats, 28 times"]
fn values_and_derivatives_keep_their_bounds_on_all_floats() {
    for bound in bounds() {
        let errors = std::thread::scope(|scope| {
            let halves = [0, 1].map(|first| scope.spawn(move || measure(bound.phi, bound.what, first, 2)));
            halves.map(|half| half.join().expect("no panic")).into_iter().fold(Errors::none(), Errors::merge)
        });
        print!("{} {:?}:", bound.phi.name(), bound.what);
        for from in [-126, -120, -100, -24, -12, -6, -5, -4, -3, -2] {
            let ((ulps, at), (absolute, z)) = (errors.ulps_from(from), errors.absolute_below(from));
            print!(" from 2^{from}: {ulps:.3} ULP at {at:e}, below off by {absolute:.3e} at {z:e};");
        }
        println!();
        bound.check(&errors);
    }
}

/// Every `STRIDE`-th float of all kinds, and those that matter one by one.
fn sample() -> Vec<f32> {
    let mut all = vec![0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MAX, f32::MIN];
    all.extend([f32::MIN_POSITIVE, -f32::MIN_POSITIVE, f32::from_bits(1), -f32::from_bits(1)]);
    for edge in [9.02, 10.0, 10.1, 10.5, 10.7, 15.0, 87.34, 88.72, 88.73, 104.0_f32] {
        all.extend([edge, edge.next_up(), edge.next_down(), -edge, -edge.next_up(), -edge.next_down()]);
    }
    all.extend((0..1_u64 << 32).step_by(STRIDE as usize).map(|bits| f32::from_bits(bits as u32)));
    all
}

#[test]
fn kernels_of_every_instruction_set_give_the_bits_of_value_and_derivative() {
    let z = sample();
    let n = z.len();
    // A layer without inputs: its pre-activation is the bias, and with dy = 1 the gradient of the bias is phi'.
    for phi in ACTIVATIONS {
        let layer = Linear::new(Affine::new(mat(&[], n, 0), Some(&z)).expect("a map"), phi);
        let values: Vec<f32> = z.iter().map(|&z| phi.value(z)).collect();
        let derivatives: Vec<f32> = z.iter().map(|&z| 0.0 + phi.derivative(z)).collect();
        for ctx in contexts() {
            let (mut y, mut ws) = (vec![0.0; n], Workspace::new());
            let mut grads = Gradients::new(&layer).expect("gradients");
            let pass = layer.forward(&ctx, &mut ws, mat(&[], 1, 0), mat_mut(&mut y, 1, n)).expect("forward");
            assert_same(format_args!("{} {ctx:?}", phi.name()), &y, &values);
            let dy = vec![1.0; n];
            pass.backward(mat(&dy, 1, n), None, &mut grads, GradMode::Overwrite).expect("backward");
            let db = grads.iter().find(|g| g.role() == Role::Bias).expect("a bias");
            let mut found = vec![0.0; n];
            db.write_to(mat_mut(&mut found, 1, n)).expect("a copy");
            if phi == Activation::Identity {
                assert_same("identity'", &found, &dy);
            } else {
                assert_same(format_args!("{}' {ctx:?}", phi.name()), &found, &derivatives);
            }
        }
    }
}

#[test]
fn identity_relu_and_leaky_relu_are_correctly_rounded_on_every_sampled_float() {
    for z in sample().into_iter().filter(|z| !z.is_nan()) {
        assert!(same(Activation::Identity.value(z), z));
        assert_eq!(Activation::Identity.derivative(z), 1.0);
        assert!(same(Activation::Relu.value(z), if z > 0.0 || z.to_bits() == (-0.0_f32).to_bits() { z } else { 0.0 }));
        assert_eq!(Activation::Relu.derivative(z), f32::from(u8::from(z > 0.0)));
        for slope in [0.01, 0.2, -1.5, 0.0] {
            // A product of two f32 is exact in f64, so this rounds once.
            let want = if z > 0.0 { z } else { (f64::from(z) * f64::from(slope)) as f32 };
            assert!(same(Activation::LeakyRelu(slope).value(z), want), "{slope} * {z:e}");
            assert_eq!(Activation::LeakyRelu(slope).derivative(z), if z > 0.0 { 1.0 } else { slope });
        }
    }
}

#[test]
fn limits_at_infinity_are_reached() {
    use Activation::{
        Elu, Gelu, GeluTanh, Hardswish, Identity, LeakyRelu, Mish, Relu, ReluSquared, Sigmoid, Silu, SiluBeta,
        Softplus, Tanh,
    };
    let inf = f32::INFINITY;
    for phi in
        [Identity, Relu, LeakyRelu(0.01), Gelu, GeluTanh, Silu, SiluBeta(1.702), Mish, Hardswish, Elu(1.0), Softplus]
    {
        assert_eq!(phi.value(inf), inf, "{}", phi.name());
        assert_eq!(phi.derivative(inf), 1.0, "{}", phi.name());
        assert_eq!(phi.value(f32::MAX), f32::MAX, "{}", phi.name());
    }
    for phi in [Relu, Gelu, GeluTanh, Silu, Sigmoid, ReluSquared, SiluBeta(1.702), Mish, Hardswish, Softplus] {
        for z in [-inf, f32::MIN, -1e4, -200.0] {
            assert_eq!((phi.value(z), phi.derivative(z)), (0.0, 0.0), "{} at {z}", phi.name());
        }
    }
    assert_eq!((ReluSquared.value(inf), ReluSquared.derivative(inf)), (inf, inf));
    assert_eq!((Elu(0.5).value(-inf), Elu(0.5).derivative(-inf)), (-0.5, 0.0));
    assert_eq!((SiluBeta(-2.0).value(inf), SiluBeta(-2.0).value(-inf)), (0.0, -inf));
    assert_eq!((Identity.value(-inf), LeakyRelu(0.01).value(-inf)), (-inf, -inf));
    assert_eq!([Tanh.value(inf), Tanh.value(-inf), Sigmoid.value(inf)], [1.0, -1.0, 1.0]);
    assert_eq!([Tanh.derivative(inf), Tanh.derivative(-inf), Sigmoid.derivative(inf)], [0.0; 3]);
}

#[test]
fn nan_in_gives_nan_out_but_for_the_derivatives_of_piecewise_linear_functions() {
    for phi in ACTIVATIONS {
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)] {
            assert!(phi.value(nan).is_nan(), "{}", phi.name());
            match phi {
                Activation::Identity => assert_eq!(phi.derivative(nan), 1.0),
                Activation::Relu => assert_eq!(phi.derivative(nan), 0.0),
                Activation::LeakyRelu(slope) => assert_eq!(phi.derivative(nan), slope),
                _ => assert!(phi.derivative(nan).is_nan(), "{}", phi.name()),
            }
        }
    }
}

#[test]
fn values_and_derivatives_at_zero_are_exact_and_the_sign_of_zero_is_kept() {
    for phi in ACTIVATIONS {
        let (value, derivative) = match phi {
            Activation::Sigmoid => (0.5, 0.25),
            Activation::Identity | Activation::Tanh => (0.0, 1.0),
            Activation::LeakyRelu(slope) => (0.0, slope),
            Activation::Relu | Activation::ReluSquared => (0.0, 0.0),
            Activation::Elu(alpha) => (0.0, alpha),
            Activation::Mish => (0.0, 0.6),
            Activation::Softplus => (std::f32::consts::LN_2, 0.5),
            _ => (0.0, 0.5),
        };
        for zero in [0.0, -0.0] {
            let signed = if value == 0.0 && phi != Activation::ReluSquared { zero } else { value };
            assert!(same(phi.value(zero), signed), "{} at {zero}: {}", phi.name(), phi.value(zero));
            assert_eq!(phi.derivative(zero), derivative, "{}' at {zero}", phi.name());
        }
    }
}

#[test]
fn tanh_is_odd_and_derivatives_of_tanh_and_sigmoid_are_even_bit_for_bit() {
    for z in sample().into_iter().filter(|z| !z.is_nan()) {
        assert!(same(Activation::Tanh.value(-z), -Activation::Tanh.value(z)), "tanh({z:e})");
        for phi in [Activation::Tanh, Activation::Sigmoid] {
            assert!(same(phi.derivative(-z), phi.derivative(z)), "{}' at {z:e}", phi.name());
        }
    }
}

#[test]
fn bounded_functions_stay_within_their_bounds() {
    for z in sample().into_iter().filter(|z| !z.is_nan()) {
        assert!((-1.0..=1.0).contains(&Activation::Tanh.value(z)), "tanh({z:e})");
        assert!((0.0..=1.0).contains(&Activation::Sigmoid.value(z)), "sigmoid({z:e})");
        // Near their maxima, 1 and 1/4, the derivatives may be above by the error that they are promised.
        assert!(Activation::Tanh.derivative(z) >= 0.0, "tanh'({z:e})");
        assert!(Activation::Sigmoid.derivative(z) >= 0.0, "sigmoid'({z:e})");
    }
}

#[test]
fn monotone_functions_rise_where_a_step_is_larger_than_their_error() {
    // Closer to saturation, a step of 1/64 is less than a few ULP.
    let cases = [
        (Activation::Relu, 20),
        (Activation::LeakyRelu(0.01), 20),
        (Activation::Tanh, 6),
        (Activation::Sigmoid, 10),
        (Activation::Elu(1.0), 6),
        (Activation::Softplus, 10),
        (Activation::ReluSquared, 20),
    ];
    for (phi, limit) in cases {
        let values: Vec<f32> = (-64 * limit..=64 * limit).map(|i: i16| phi.value(f32::from(i) / 64.0)).collect();
        assert!(values.is_sorted(), "{}", phi.name());
    }
}

#[test]
fn activations_have_names_of_their_own() {
    let names = ACTIVATIONS.map(Activation::name);
    let all: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(all.len(), ACTIVATIONS.len());
    let first = ["identity", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"];
    assert_eq!(names[..first.len()], first); // as files have them
}
