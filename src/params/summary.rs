//! What one pass over values tells: their norm, and how large they are.

use super::gradients::Gradients;
use crate::error::Error;

/// How large gradients are, in one pass over them: [`Gradients::summary`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct GradientSummary {
    /// Euclidean norm, in f64. No square overflows there, so it is finite exactly if every gradient is.
    pub norm: f64,
    /// Largest magnitude, ∞ included; NaN is left out.
    pub largest: f32,
    /// How many are NaN or ±∞.
    pub not_finite: usize,
}

impl Gradients {
    /// Euclidean norm, largest magnitude and number of NaN and ±∞ of all gradients, in one pass: what a trainer logs, clips by and looks
    /// out for. (The number takes a second pass, where it is not 0.)
    pub fn summary(&self) -> GradientSummary {
        let (mut squares, mut largest) = (0.0, 0.0_f32);
        for gradient in self.iter() {
            let sums = gradient.sums();
            squares += sums.squares();
            largest = largest.max(sums.largest());
        }
        let norm = libm::sqrt(squares);
        let finite = |value: f32| value.is_finite();
        let not_finite = if norm.is_finite() { 0 } else { self.iter().map(|g| g.outside(finite).count()).sum() };
        GradientSummary { norm, largest, not_finite }
    }

    /// Euclidean norm over all gradients, in f64.
    pub fn norm(&self) -> f64 {
        self.summary().norm
    }

    /// The norm, if no gradient is NaN or larger than `limit`.
    pub(crate) fn norm_within(&self, limit: f32) -> Result<f64, Error> {
        let GradientSummary { norm, largest, .. } = self.summary();
        if norm.is_finite() && largest <= limit {
            return Ok(norm);
        }
        let within = |value: f32| value.abs() <= limit;
        let mut count = 0;
        let mut first = None;
        for gradient in self.iter() {
            let mut outside = gradient.outside(within).peekable();
            if let (None, Some(&(index, value))) = (&first, outside.peek()) {
                first = Some((gradient.to_string(), index, value));
            }
            count += outside.count();
        }
        // There is one: the sums have seen it.
        let Some((parameter, index, found)) = first else { return Ok(norm) };
        Err(Error::Gradient { parameter, index, limit: format!("{limit:e}"), found: format!("{found:e}"), count })
    }
}
