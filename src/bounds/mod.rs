//! A priori error bounds: how far an f32 result can lie from the exact one, from shapes and magnitudes alone.
//!
//! Everything here is f64 and in the units of the quantity that it bounds. The bounds are rigorous, denormals included, under three
//! conditions: round to nearest with denormals kept (the state that every thread starts in), operands that are the finite f32 they are said
//! to be, and **no overflow**: a chain that leaves the range of f32 is out of scope.
//!
//! **The model** (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., sections 2.1, 2.2, 3.1). An operation that rounds once
//! gives `r (1 + δ) + η` with |δ| <= u = 2^-24 and |η| <= 2^-150, one of the two being 0: δ where the result is normal, η (half of the
//! smallest denormal) where it is not. A fused multiply-add rounds once. Sums of two floats that are denormal are exact: η is 0.
//!
//! **A chain** `s = fma(a[k-1], b[k-1], ... fma(a[0], b[0], c))` rounds k times, and each term passes through k roundings at most:
//!
//! ```text
//! |s - exact| <= γ_k (|c| + Σ |a[i] b[i]|) + k 2^-150 (1 + γ_k),       γ_k = k u / (1 - k u)
//! ```
//!
//! which is [`chain`]: the bound of a dot product with the start counted as a term. Operands that are themselves off by `e_a`, `e_b`
//! add `Σ (|a| e_b + |b| e_a + e_a e_b)`.
//!
//! Two ways to use it:
//!
//! - **a priori**: [`linear`], [`block`] and their backward twins take shapes, the sums of absolute weights and the largest magnitudes;
//!   [`network`] does so for any [`crate::Layer`]. One number for each tensor, known before anything is computed.
//! - **running**: [`Running`] is a number with an error bound, and a [`crate::reference::Real`]: the specification itself, read in this
//!   type, gives a bound for every single element (Wilkinson's running error analysis; Higham, section 3.3). Sharper, since it knows
//!   every partial sum.
//!
//! Both are worst cases. Roundings mostly cancel: errors grow like the square root of k, and observed ones are some hundredths of the
//! bound for long chains. But not where all terms have one sign and are alike: docs/numerics.md has a table of how far a long chain drifts,
//! beside what is said here, and what to do.
//!
//! Losses are computed in f64; [`loss`] bounds them.

mod activation;
pub mod loss;
mod network;
mod running;

pub use activation::{Accuracy, slope_accuracy, value_accuracy};
pub use network::{
    BackwardBounds, ForwardBounds, Map, MapBounds, NetworkBounds, Numbers, block, block_backward, linear,
    linear_backward, network,
};
pub use running::Running;

/// Unit roundoff of f32, u = 2^-24: the largest relative error of one rounding to nearest.
pub const UNIT: f64 = f32::EPSILON as f64 / 2.0;

/// Half of the smallest denormal, 2^-150: the largest absolute error of one rounding of a result below 2^-126.
pub const TINY: f64 = UNIT * f32::MIN_POSITIVE as f64;

/// γ_k = k u / (1 - k u): what k roundings make of a relative error. Infinite from k u = 1 on (16 777 216 terms), where the model says
/// nothing any more.
pub fn gamma(k: usize) -> f64 {
    let ku = k as f64 * UNIT;
    if ku < 1.0 { ku / (1.0 - ku) } else { f64::INFINITY }
}

/// Error of a chain of `k` fused multiply-adds, `terms` being `|start| + Σ |a[i] b[i]|` over the operands as computed:
/// γ_k terms + k 2^-150 (1 + γ_k). A chain of no steps is exact.
pub fn chain(k: usize, terms: f64) -> f64 {
    if k == 0 { 0.0 } else { gamma(k) * terms + k as f64 * TINY * (1.0 + gamma(k)) }
}

/// Error of a chain of `k` additions (bias gradients), `terms` being `|start| + Σ |a[i]|`: γ_k terms. Sums do not underflow.
pub fn sum(k: usize, terms: f64) -> f64 {
    if k == 0 { 0.0 } else { gamma(k) * terms }
}

/// Distance of neighbouring f32 at magnitude `size`: the unit in the last place, 2^-149 below the smallest normal number.
pub fn ulp(size: f64) -> f64 {
    let exponent = ((size.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    libm::ldexp(1.0, exponent.max(-126) - 23)
}

/// Error of one rounding of a result of magnitude `size` at most: max(u size, 2^-150).
fn rounding(size: f64) -> f64 {
    (UNIT * size).max(TINY)
}
