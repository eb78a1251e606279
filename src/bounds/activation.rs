//! What an activation does to an error: how exactly it is computed, and how much it magnifies an error of its argument.

use super::ulp;
use crate::Activation;

/// How exactly a function is computed: at most `ulps` units in the last place where its true value is at least 2^`from` in magnitude,
/// off by at most `absolute` where it is smaller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    /// Largest error in units in the last place of the true value, where that is not small.
    pub ulps: f64,
    /// Binary exponent from which on `ulps` holds.
    pub from: i32,
    /// Largest error below.
    pub absolute: f64,
}

impl Accuracy {
    const EXACT: Self = Self { ulps: 0.0, from: -126, absolute: 0.0 };

    /// Largest error where the true value is at most `size` in magnitude.
    pub fn error(self, size: f64) -> f64 {
        if size < libm::ldexp(1.0, self.from) { self.absolute } else { self.absolute.max(self.ulps * ulp(size)) }
    }
}

/// Accuracy of [`Activation::value`] over all finite f32: measured exhaustively against f64 and rounded up
/// (`tests/kernels/activation.rs`; of the functions from ReLU² on every 64th float, and those with a parameter at its usual value), not
/// derived; those of the piecewise linear functions are theorems.
pub fn value_accuracy(phi: Activation) -> Accuracy {
    let (ulps, from, absolute) = match phi {
        Activation::Identity | Activation::Relu => return Accuracy::EXACT,
        Activation::LeakyRelu(_) => (0.5, -126, super::TINY),
        Activation::Gelu => (6.2, -126, 3.5e-45),
        Activation::GeluTanh => (5.8, -6, 5.9e-9),
        Activation::Silu => (3.3, -120, 1.4e-43),
        Activation::Tanh => (2.6, -126, 0.0),
        Activation::Sigmoid => (2.5, -126, 1.5e-45),
        Activation::ReluSquared => (0.5, -126, super::TINY),
        Activation::SiluBeta(_) => (3.4, -120, 1.4e-43),
        Activation::Mish => (4.3, -120, 1.8e-43),
        Activation::Hardswish => (2.0, -126, 1.5e-45),
        Activation::Elu(_) => (1.1, -126, 1.5e-45),
        Activation::Softplus => (2.7, -126, 2.9e-45),
    };
    Accuracy { ulps, from, absolute }
}

/// Accuracy of [`Activation::derivative`], measured as [`value_accuracy`]. Derivatives that cross zero have no relative accuracy
/// there: `from` says from where on they have.
pub fn slope_accuracy(phi: Activation) -> Accuracy {
    let (ulps, from, absolute) = match phi {
        Activation::Identity | Activation::Relu | Activation::LeakyRelu(_) => return Accuracy::EXACT,
        Activation::Gelu => (7.5, -3, 8.9e-8),
        Activation::GeluTanh => (5.9, -3, 7.5e-8),
        Activation::Silu => (2.8, -3, 4.5e-8),
        Activation::Tanh => (4.3, -126, 3.5e-45),
        Activation::Sigmoid => (4.3, -126, 1.5e-45),
        Activation::ReluSquared => return Accuracy::EXACT,
        Activation::SiluBeta(_) => (2.9, -3, 5.7e-8),
        Activation::Mish => (3.7, -2, 1.0e-7),
        Activation::Hardswish => (1.1, -126, 1.5e-45),
        Activation::Elu(_) => (1.2, -126, 1.5e-45),
        Activation::Softplus => (2.5, -126, 1.5e-45),
    };
    Accuracy { ulps, from, absolute }
}

/// Largest |φ(z)| for |z| <= `size`.
pub(super) fn largest_value(phi: Activation, size: f64) -> f64 {
    match phi {
        Activation::Tanh => size.min(1.0),
        Activation::Sigmoid => 1.0,
        Activation::ReluSquared => size * size,
        Activation::Elu(alpha) => size * f64::from(alpha).abs().max(1.0),
        // ln 2 more than max(z, 0), at most.
        Activation::Softplus => size + 0.6932,
        _ => size * largest_slope(phi, size).min(1.0).max(leak(phi)),
    }
}

/// |slope| of a leaky ReLU, 0 of the others.
fn leak(phi: Activation) -> f64 {
    if let Activation::LeakyRelu(slope) = phi { f64::from(slope).abs() } else { 0.0 }
}

/// Largest |φ'| for |z| <= `size`, the Lipschitz constant of φ there. Rounded up; GELU has its at z = √2, φ' = Φ(√2) + √2 φ₀(√2).
pub(super) fn largest_slope(phi: Activation, size: f64) -> f64 {
    match phi {
        Activation::Identity | Activation::Relu | Activation::Tanh => 1.0,
        Activation::LeakyRelu(_) => leak(phi).max(1.0),
        Activation::Gelu | Activation::GeluTanh => 1.1291,
        Activation::Silu => 1.0999,
        Activation::Sigmoid => 0.25,
        Activation::ReluSquared => 2.0 * size,
        Activation::SiluBeta(_) => 1.0999,
        Activation::Mish => 1.0886,
        Activation::Hardswish => 1.5,
        Activation::Elu(alpha) => f64::from(alpha).abs().max(1.0),
        Activation::Softplus => 1.0 / (1.0 + libm::exp(-size)),
    }
}

/// Largest |φ''|, the Lipschitz constant of φ', away from a kink. Rounded up from √(2/π) (GELU and tanh-GELU, at 0), 1/2 (SiLU, at 0),
/// 4 / (3√3) (tanh) and 1 / (6√3) (sigmoid).
pub(super) fn largest_curvature(phi: Activation) -> f64 {
    match phi {
        Activation::Identity | Activation::Relu | Activation::LeakyRelu(_) => 0.0,
        Activation::Gelu | Activation::GeluTanh => 0.7979,
        Activation::Silu => 0.5,
        Activation::Tanh => 0.7699,
        Activation::Sigmoid => 0.0963,
        Activation::ReluSquared => 2.0,
        Activation::SiluBeta(beta) => 0.5 * f64::from(beta).abs(),
        Activation::Mish => 0.6443,
        Activation::Hardswish => 0.3334,
        Activation::Elu(alpha) => f64::from(alpha).abs(),
        Activation::Softplus => 0.25,
    }
}

/// By how much φ' jumps, where it does.
pub(super) fn kink(phi: Activation) -> f64 {
    match phi {
        Activation::Relu => 1.0,
        Activation::LeakyRelu(slope) => (1.0 - f64::from(slope)).abs(),
        Activation::Elu(alpha) => (1.0 - f64::from(alpha)).abs(),
        Activation::Hardswish => 0.5,
        _ => 0.0,
    }
}

/// The distance of z from the nearest jump of φ', of a function that has one.
pub(super) fn from_kink(phi: Activation, z: f64) -> f64 {
    if phi == Activation::Hardswish { (z.abs() - 3.0).abs() } else { z.abs() }
}
