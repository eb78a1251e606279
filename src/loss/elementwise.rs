//! Losses that are a sum over elements: binary cross-entropy, squared error, Huber.

use super::sum::Sum;
use super::{Divisor, check_weights, weighted};
use crate::error::{Error, expect_len, expect_shape};
use crate::mat::{MatMut, MatRef};

/// Σ value / divisor over all elements, and their slopes / divisor, where `of(y, target, column)` is (value, slope). The mean is over elements.
/// Of no elements it is 0. Shapes have been checked.
fn evaluate(
    y: MatRef<'_>,
    target: MatRef<'_>,
    divisor: Divisor,
    mut dy: Option<MatMut<'_>>,
    of: impl Fn(f64, f64, usize) -> (f64, f64),
) -> f64 {
    let (rows, cols) = y.shape();
    if rows == 0 || cols == 0 {
        return 0.0;
    }
    let divisor = divisor.or(|| rows as f64 * cols as f64);
    let at = |mat: &MatRef<'_>, i, j| f64::from(mat.get(i, j).unwrap_or(f32::NAN));
    let mut loss = Sum::default();
    for i in 0..rows {
        for j in 0..cols {
            let (value, slope) = of(at(&y, i, j), at(&target, i, j), j);
            loss.add(value);
            if let Some(dy) = &mut dy {
                dy.set(i, j, (slope / divisor) as f32);
            }
        }
    }
    loss.total() / divisor
}

/// That target and gradient, which errors name so, have the shape of the prediction.
fn check(
    y: MatRef<'_>,
    (target_name, target): (&'static str, MatRef<'_>),
    (dy_name, dy): (&'static str, Option<&MatMut<'_>>),
) -> Result<(), Error> {
    expect_shape(target_name, y.shape(), target.shape())?;
    dy.map_or(Ok(()), |dy| expect_shape(dy_name, y.shape(), dy.shape()))
}

/// Squared error: Σ (y - target)² / divisor, over all elements; dy = 2 (y - target) / divisor. By default the mean squared error.
///
/// In f64: exact to a relative 2^-50, the gradient before it is rounded to f32 ([`crate::bounds::loss`]). NaN and infinities propagate.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SquaredError {
    /// What the sum over elements is divided by.
    pub divisor: Divisor,
}

impl SquaredError {
    /// The loss; `dy`, if given, becomes its gradient. Of no elements it is 0.
    ///
    /// # Errors
    /// [`Error::Setting`] naming `divisor`, [`Error::Shape`] naming `target` or `dy`. `dy` is then untouched.
    pub fn evaluate(&self, y: MatRef<'_>, target: MatRef<'_>, dy: Option<MatMut<'_>>) -> Result<f64, Error> {
        self.divisor.check()?;
        check(y, ("target", target), ("dy", dy.as_ref()))?;
        let of = |y: f64, target: f64, _| ((y - target) * (y - target), 2.0 * (y - target));
        Ok(evaluate(y, target, self.divisor, dy, of))
    }
}

/// Huber's loss of r = y - target: Σ (r² / 2 where |r| <= δ, else δ (|r| - δ / 2)) / divisor, over all elements; dy = r, cut to [-δ, δ], /
/// divisor. As `HuberLoss` of PyTorch (<https://docs.pytorch.org/docs/stable/generated/torch.nn.HuberLoss.html>); for δ = 1 it is smooth L1.
///
/// In f64: exact to a relative 2^-50, the gradient before it is rounded to f32 ([`crate::bounds::loss`]). An infinite r has loss ∞ and a
/// gradient of ±δ / divisor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Huber {
    /// What the sum over elements is divided by.
    pub divisor: Divisor,
    /// δ, where the square turns into a line. Positive and finite.
    pub delta: f32,
}

impl Default for Huber {
    /// The mean, with δ = 1.
    fn default() -> Self {
        Self { divisor: Divisor::Mean, delta: 1.0 }
    }
}

impl Huber {
    /// The loss; `dy`, if given, becomes its gradient. Of no elements it is 0.
    ///
    /// # Errors
    /// [`Error::Setting`] naming `divisor` or `delta`, [`Error::Shape`] naming `target` or `dy`. `dy` is then untouched.
    pub fn evaluate(&self, y: MatRef<'_>, target: MatRef<'_>, dy: Option<MatMut<'_>>) -> Result<f64, Error> {
        self.divisor.check()?;
        if !(self.delta > 0.0 && self.delta.is_finite()) {
            return Err(Error::Setting { operand: "delta", reason: "must be positive and finite" });
        }
        check(y, ("target", target), ("dy", dy.as_ref()))?;
        let delta = f64::from(self.delta);
        let of = |y: f64, target: f64, _| {
            let r = y - target;
            let value = if r.abs() <= delta { 0.5 * r * r } else { delta * (r.abs() - 0.5 * delta) };
            (value, r.clamp(-delta, delta))
        };
        Ok(evaluate(y, target, self.divisor, dy, of))
    }
}

/// Binary cross-entropy of logits `l` with targets t in [0, 1], every element a question of its own, as `BCEWithLogitsLoss` of PyTorch
/// (<https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html>):
///
/// ```text
/// loss   = Σ (w t softplus(-l) + (1 - t) softplus(l)) / divisor      softplus(l) = log(1 + e^l), w: weight of the column
/// dl     = ((1 - t) σ(l) - w t σ(-l)) / divisor                      σ(l) = 1 / (1 + e^-l)
/// ```
///
/// In f64, with softplus(l) = max(l, 0) + log1p(e^-|l|) and σ from e^-|l|, so that no term cancels: the loss is exact to a relative 2^-49,
/// and so are the terms of the gradient; for targets of 0 and 1 it has only one ([`crate::bounds::loss`]). A NaN logit makes loss and
/// gradient NaN; an infinite one on the side of a target of 0 or 1 has loss 0, on the other ∞.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BinaryCrossEntropy<'a> {
    /// What the sum over elements is divided by.
    pub divisor: Divisor,
    /// w, a weight of the positive answer for each column, finite and not negative. None: all are 1.
    pub pos_weights: Option<&'a [f32]>,
}

impl BinaryCrossEntropy<'_> {
    /// The loss; `dlogits`, if given, becomes its gradient. Of no elements it is 0.
    ///
    /// # Errors
    /// [`Error::Setting`] naming `divisor`, [`Error::Length`] naming `pos_weights`, [`Error::Element`] for a weight that is negative or not
    /// finite or a target outside of [0, 1], [`Error::Shape`] naming `targets` or `dlogits`. `dlogits` is then untouched.
    pub fn evaluate(&self, logits: MatRef<'_>, targets: MatRef<'_>, dlogits: Option<MatMut<'_>>) -> Result<f64, Error> {
        self.divisor.check()?;
        let (rows, cols) = logits.shape();
        if let Some(weights) = self.pos_weights {
            expect_len("pos_weights", cols, weights.len())?;
            check_weights("pos_weights", weights)?;
        }
        check(logits, ("targets", targets), ("dlogits", dlogits.as_ref()))?;
        if rows == 0 || cols == 0 {
            return Ok(0.0);
        }
        for i in 0..rows {
            for j in 0..cols {
                let target = targets.get(i, j).unwrap_or(f32::NAN);
                if !(0.0..=1.0).contains(&target) {
                    return Err(Error::element("targets", (i, j), "must lie in [0, 1]", target));
                }
            }
        }
        let of = |l: f64, t: f64, j: usize| {
            let (yes, no) = (self.pos_weights.map_or(1.0, |weights| f64::from(weights[j])) * t, 1.0 - t);
            let e = libm::exp(-l.abs());
            let (large, small) = (1.0 / (1.0 + e), e / (1.0 + e));
            let (sigma, one_minus) = if l >= 0.0 { (large, small) } else { (small, large) };
            let tail = libm::log1p(e);
            let value = weighted(yes, (-l).max(0.0) + tail) + weighted(no, l.max(0.0) + tail);
            (value, no * sigma - yes * one_minus)
        };
        Ok(evaluate(logits, targets, self.divisor, dlogits, of))
    }
}
