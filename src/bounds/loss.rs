//! How exactly losses and their gradients are computed, against the exact value of their formulas.
//!
//! Losses work in f64: u = 2^-53, and half of the smallest denormal is 2^-1075. What goes into the constants, in units of u, to first order
//! (the second is below 2^-20 of it), everything else being below 1 for each operation:
//!
//! - `exp` and `log1p` of the libm crate, which are those of musl: below 1 ulp, so 2. A relative error of x becomes no larger in log1p(x),
//!   for x >= 0.
//! - **Cross-entropy.** l - max rounds by |l - max|, and below -746 its exponential is 0: 748 for an exponential. Sums of them 751, log1p of one
//!   753. A target t_c takes 4 operations and a sum of them 2 more: 760 for Σ t_c times the logarithm, 7 for Σ t_c (max - l_c), 764 with the sum
//!   over rows and the divisor. That is below 1024 u = 2^-43. A probability is a quotient of such sums, 1501; times a sum of targets, over
//!   the divisor: 1515. Where p_k <= 1/2 the gradient is computed as p_k T - t_k, and p_k T + t_k <= 3 (p_k Σ_{c≠k} t_c + t_k (1 - p_k)). 4545 is
//!   below 8192 u = 2^-40.
//! - **Binary cross-entropy.** |l| is exact. Value: 2 + 2 for the logarithm, and 6 operations; gradient: 6 for σ, and 4. Below 16 u = 2^-49.
//! - **Squared error, Huber.** 4 to 7. Below 8 u = 2^-50.
//!
//! Sums over classes, rows and elements carry their rounding errors along. They are of terms of one sign, so that n terms add
//! ((n u) / (1 - n u))², which is below u up to 9 · 10^7 terms, and no more than 2^-40 up to 8 · 10^9.
//!
//! Overflow of f32 is outside, as in all of [`crate::bounds`].

use super::rounding;

/// Unit roundoff of f64.
const UNIT: f64 = f64::EPSILON / 2.0;

/// The smallest denormal of f64.
const DENORMAL: f64 = f64::from_bits(1);

/// How exactly a loss is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossAccuracy {
    /// Largest error of the loss, relative to it.
    pub value: f64,
    /// Largest error beside that, from what underflows in f64. If weights are larger than the divisor, so many times as much.
    pub underflow: f64,
    /// Largest error of a gradient before it is rounded to f32, relative to the sum of its terms.
    pub gradient: f64,
}

impl LossAccuracy {
    /// Largest error of a loss that is `exact`.
    pub fn value_error(self, exact: f64) -> f64 {
        self.value * exact + self.underflow
    }

    /// Largest error of the gradient of an element, in f32, where the exact one is `plus - minus`, both >= 0, divided by the divisor: for
    /// cross-entropy p_k Σ_{c≠k} t_c and t_k (1 - p_k), of which one is 0 without smoothing; for binary cross-entropy
    /// (1 - t) σ(l) and w t σ(-l), of which one is 0 for targets of 0 and 1; for the others the gradient, if it is positive, or 0, and 0, or
    /// its magnitude.
    pub fn gradient_error(self, plus: f64, minus: f64) -> f64 {
        let before = self.gradient * (plus + minus) + self.underflow;
        before + rounding((plus - minus).abs() + before)
    }
}

/// What n terms of one sign add to the relative error of their sum.
fn terms(n: f64) -> f64 {
    let nu = n * UNIT;
    if nu < 1.0 { (nu / (1.0 - nu)).powi(2) } else { f64::INFINITY }
}

/// [`crate::CrossEntropy`] of so many rows and classes.
pub fn cross_entropy(rows: usize, classes: usize) -> LossAccuracy {
    let (n, c) = (rows as f64, classes as f64);
    let sums = 2.0 * (terms(n) + terms(c));
    LossAccuracy {
        value: libm::ldexp(1.0, -43) + sums,
        underflow: (n * (c + 2.0) + 1.0) * DENORMAL,
        gradient: libm::ldexp(1.0, -40) + 3.0 * sums,
    }
}

/// [`crate::BinaryCrossEntropy`] of so many elements.
pub fn binary_cross_entropy(elements: usize) -> LossAccuracy {
    elementwise(elements, libm::ldexp(1.0, -49))
}

/// [`crate::SquaredError`] of so many elements.
pub fn squared_error(elements: usize) -> LossAccuracy {
    elementwise(elements, libm::ldexp(1.0, -50))
}

/// [`crate::Huber`] of so many elements.
pub fn huber(elements: usize) -> LossAccuracy {
    elementwise(elements, libm::ldexp(1.0, -50))
}

fn elementwise(elements: usize, relative: f64) -> LossAccuracy {
    let n = elements as f64;
    LossAccuracy { value: relative + terms(n), underflow: (2.0 * n + 1.0) * DENORMAL, gradient: relative }
}
