//! What one pass over values tells: their norm, and how large they are.

use super::gradients::Gradients;
use crate::error::Error;
use crate::gemm::panels::PANEL;

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

/// Sums of squares in [`PANEL`] chains, element j of each line in chain j, so that they go on side by side; and the largest magnitude of
/// each.
pub(super) struct Sums {
    squares: [f64; PANEL],
    largest: [f32; PANEL],
}

impl Sums {
    /// Over lines of at most [`PANEL`] values.
    pub(super) fn of<'a>(lines: impl Iterator<Item = &'a [f32]>) -> Self {
        let mut sums = Self { squares: [0.0; PANEL], largest: [0.0; PANEL] };
        for line in lines {
            match <&[f32; PANEL]>::try_from(line) {
                Ok(line) => (0..PANEL).for_each(|j| sums.add(j, line[j])),
                Err(_) => line.iter().enumerate().for_each(|(j, &value)| sums.add(j, value)),
            }
        }
        sums
    }

    #[inline(always)]
    fn add(&mut self, j: usize, value: f32) {
        self.squares[j] += f64::from(value) * f64::from(value);
        self.largest[j] = if value.abs() > self.largest[j] { value.abs() } else { self.largest[j] };
    }

    /// The chains, added in order.
    pub(super) fn squares(&self) -> f64 {
        self.squares.iter().sum()
    }

    fn largest(&self) -> f32 {
        self.largest.iter().fold(0.0, |a, &b| a.max(b))
    }
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
