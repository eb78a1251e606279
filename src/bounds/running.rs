//! Running error analysis: the specification read in a number type that carries its error bound along.

use super::activation::{from_kink, kink, largest_curvature, largest_slope, slope_accuracy, value_accuracy};
use super::{UNIT, rounding};
use crate::Activation;
use crate::reference::Real;

/// What f64 rounds itself (2^-53 of a result, and of each step of a bound) is 2^-29 of what f32 does: added here.
const SLACK: f64 = 1.0 + 1.0 / (1u64 << 28) as f64;

/// A value in f64 and a bound on how far the f32 that the kernels compute in its place lies from it.
///
/// `reference::block::<Running>` (or any other part of the specification) gives bounds for every element: each operation adds what its
/// operands' errors make, by the triangle inequality, and its own rounding, max(u |r|, 2^-150).
///
/// ```
/// use resblock::bounds::Running;
/// use resblock::reference::Real;
/// let third = Running::from(1.0) / Running::from(3.0);
/// let z = third.fma(Running::from(3.0), Running::from(-1.0)); // fma(1/3, 3, -1): all error
/// assert!(f64::from((1.0_f32 / 3.0).mul_add(3.0, -1.0)).abs() <= z.error() && z.error() < 1e-7);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Running {
    value: f64,
    error: f64,
}

impl From<f32> for Running {
    /// An operand: exact.
    fn from(value: f32) -> Self {
        Self { value: f64::from(value), error: 0.0 }
    }
}

impl Running {
    /// A number computed in f64 and rounded to f32 once.
    pub fn rounded(value: f64) -> Self {
        Self { value, error: rounding(value.abs()) * SLACK }
    }

    /// The value, in f64.
    pub fn value(self) -> f64 {
        self.value
    }

    /// The bound: |computed in f32 - value| is at most this.
    pub fn error(self) -> f64 {
        self.error
    }

    /// Both together: no computed value is larger in magnitude.
    pub fn size(self) -> f64 {
        self.value.abs() + self.error
    }

    /// The square root, rounded once. |√(x + e) - √x| <= min(√e, e / √x) for x >= 0.
    pub fn sqrt(self) -> Self {
        let value = libm::sqrt(self.value);
        let passed = if self.error == 0.0 { 0.0 } else { libm::sqrt(self.error).min(self.error / value) };
        Self::computed(value, passed, rounding(value + passed))
    }

    /// From what the operands' errors make and what the operation adds.
    fn computed(value: f64, passed: f64, own: f64) -> Self {
        Self { value, error: (passed + own) * SLACK }
    }

    /// Largest |φ'| anywhere within the bound, and the error of φ' there.
    fn slope(self, phi: Activation) -> (f64, f64) {
        let Self { value, error } = self;
        let slope = value.derive(phi).abs();
        if kink(phi) > 0.0 && error > 0.0 && from_kink(phi, value) <= error {
            // f32 may be on the other side of the kink.
            return (largest_slope(phi, self.size()), kink(phi));
        }
        let moved = largest_curvature(phi) * error;
        ((slope + moved).min(largest_slope(phi, self.size())), moved)
    }
}

impl std::ops::Div for Running {
    type Output = Self;

    /// Rounded once. The bound is infinite where the divisor may be 0.
    fn div(self, divisor: Self) -> Self {
        let value = self.value / divisor.value;
        let least = divisor.value.abs() - divisor.error;
        let passed = if least > 0.0 { (self.error + value.abs() * divisor.error) / least } else { f64::INFINITY };
        Self::computed(value, passed, rounding(value.abs() + passed))
    }
}

impl Real for Running {
    // What is kept in f64 is bounded as if it were f32.
    type Wide = Self;
    fn wide(self) -> Self {
        self
    }
    fn narrow(wide: Self) -> Self {
        wide
    }

    const ZERO: Self = Self { value: 0.0, error: 0.0 };

    fn fma(self, a: Self, b: Self) -> Self {
        let value = self.value.mul_add(a.value, b.value);
        let passed = self.value.abs() * a.error + a.value.abs() * self.error + self.error * a.error + b.error;
        Self::computed(value, passed, rounding(value.abs() + passed))
    }

    fn add(self, a: Self) -> Self {
        let (value, passed) = (self.value + a.value, self.error + a.error);
        Self::computed(value, passed, UNIT * (value.abs() + passed))
    }

    fn mul(self, a: Self) -> Self {
        self.fma(a, Self::ZERO)
    }

    fn sub(self, a: Self) -> Self {
        self.add(a.neg())
    }

    fn div(self, a: Self) -> Self {
        self / a
    }

    fn neg(self) -> Self {
        Self { value: -self.value, error: self.error }
    }

    fn sqrt(self) -> Self {
        Running::sqrt(self)
    }

    fn number(x: f32) -> Self {
        Self::from(x)
    }

    fn activate(self, phi: Activation) -> Self {
        if phi == Activation::Identity {
            return self;
        }
        let value = self.value.activate(phi);
        let passed = self.slope(phi).0 * self.error;
        Self::computed(value, passed, value_accuracy(phi).error((value.abs() + passed) * SLACK))
    }

    fn derive(self, phi: Activation) -> Self {
        let value = self.value.derive(phi);
        let passed = self.slope(phi).1;
        Self::computed(value, passed, slope_accuracy(phi).error((value.abs() + passed) * SLACK))
    }
}
