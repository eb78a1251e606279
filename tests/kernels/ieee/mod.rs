//! NaN, infinities, signed zeros, denormals and overflow: what every operation makes of them, as tables of expected results
//! (docs/math.md has them in words). Each is checked on every instruction set, and against the specification.

mod activations;
mod chains;
mod layers;
mod training;

pub(crate) const INF: f32 = f32::INFINITY;
pub(crate) const NAN: f32 = f32::NAN;
pub(crate) const MAX: f32 = f32::MAX;
/// The smallest normal number, 2^-126.
pub(crate) const NORMAL: f32 = f32::MIN_POSITIVE;
/// The smallest denormal, 2^-149.
pub(crate) const DENORMAL: f32 = f32::from_bits(1);

/// One of each kind.
pub(crate) const SPECIAL: [f32; 15] =
    [0.0, -0.0, 1.0, -1.5, INF, -INF, NAN, DENORMAL, -DENORMAL, 1e-40, NORMAL, -NORMAL, MAX, -MAX, 0.75];
