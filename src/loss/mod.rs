//! Losses and their gradients: in f64, in a fixed order, every element of a gradient rounded to f32 once.

mod cross_entropy;
mod elementwise;
mod sum;

use crate::error::Error;
use crate::mat::{MatMut, MatRef};
pub use cross_entropy::CrossEntropy;
pub use elementwise::{BinaryCrossEntropy, Huber, SquaredError};

/// What the sum over rows or elements is divided by, and the gradient with it.
///
/// **Micro-batches.** A gradient depends on its own row (or element), the settings of the loss and the divisor, and on nothing else. So a
/// batch may be cut anywhere: where every piece has the divisor of the whole batch and gradients accumulate, they are those of the whole
/// batch, bit for bit. (The means of 3 rows and of 2 rows are not to be averaged: that gives the rows of the smaller piece more weight.)
/// The losses of the pieces add up to that of the batch, but for the roundings of f64: one of 2^-53 for each addition, and those of
/// [`crate::bounds::loss`].
///
/// ```
/// use resblock::{Activation, CrossEntropy, Divisor, GradMode, Gradients, Init, Layer, Linear, MatMut, MatRef, Context, Workspace};
///
/// # fn main() -> Result<(), resblock::Error> {
/// # let (n, d, classes) = (5, 4, 3);
/// # let x: Vec<f32> = (0..n * d).map(|i| (i as f32 * 0.7).sin()).collect();
/// # let (labels, weights) = ([2, 0, 9, 1, 1], [1.0, 0.5, 3.0]);
/// # let (ctx, mut ws) = (Context::new()?, Workspace::new());
/// # let net = Linear::with_init(d, classes, Activation::Identity, &mut Init::he(1))?;
/// # let bits = |grads: &Gradients| -> Vec<u32> {
/// #     let values = |p: resblock::TensorRef<'_>| -> Vec<u32> {
/// #         let (rows, cols) = p.shape();
/// #         (0..rows * cols).map(|k| p.get(k / cols, k % cols).unwrap_or(f32::NAN).to_bits()).collect()
/// #     };
/// #     grads.iter().flat_map(values).collect()
/// # };
/// let loss = CrossEntropy { ignore: Some(9), class_weights: Some(&weights), ..CrossEntropy::default() };
///
/// // The whole batch at once.
/// let (mut whole, mut y, mut dy) = (Gradients::new(&net)?, vec![0.0; n * classes], vec![0.0; n * classes]);
/// let pass = net.forward(&ctx, &mut ws, MatRef::new(&x, n, d)?, MatMut::new(&mut y, n, classes)?)?;
/// let value = loss.evaluate(MatRef::new(&y, n, classes)?, &labels, Some(MatMut::new(&mut dy, n, classes)?))?;
/// pass.backward(MatRef::new(&dy, n, classes)?, None, &mut whole, GradMode::Overwrite)?;
///
/// // The same as micro-batches of 3 rows and of 2. What Mean divides by is known from the labels alone.
/// let piece = CrossEntropy { divisor: Divisor::Given(loss.total_weight(&labels)?), ..loss };
/// let (mut grads, mut mode, mut sum) = (Gradients::new(&net)?, GradMode::Overwrite, 0.0);
/// for (x, labels) in x.chunks(3 * d).zip(labels.chunks(3)) {
///     let rows = labels.len();
///     let (y, dy) = (&mut y[..rows * classes], &mut dy[..rows * classes]);
///     let pass = net.forward(&ctx, &mut ws, MatRef::new(x, rows, d)?, MatMut::new(y, rows, classes)?)?;
///     sum += piece.evaluate(MatRef::new(y, rows, classes)?, labels, Some(MatMut::new(dy, rows, classes)?))?;
///     pass.backward(MatRef::new(dy, rows, classes)?, None, &mut grads, mode)?;
///     mode = GradMode::Accumulate;
/// }
///
/// assert_eq!(bits(&grads), bits(&whole));
/// assert!((sum - value).abs() <= 1e-15 * value);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Divisor {
    /// What makes it a mean over the batch at hand: the number of elements; for [`CrossEntropy`], [`CrossEntropy::total_weight`].
    #[default]
    Mean,
    /// So much: the divisor of the whole batch, for each of its pieces. Positive and finite.
    Given(f64),
    /// 1: the sum.
    Sum,
}

impl Divisor {
    fn check(self) -> Result<(), Error> {
        let usable = !matches!(self, Divisor::Given(divisor) if !(divisor > 0.0 && divisor.is_finite()));
        if usable { Ok(()) } else { Err(Error::Setting { operand: "divisor", reason: "must be positive and finite" }) }
    }

    /// The number. 0 if this is the mean of nothing.
    fn or(self, mean: impl FnOnce() -> f64) -> f64 {
        match self {
            Divisor::Mean => mean(),
            Divisor::Given(divisor) => divisor,
            Divisor::Sum => 1.0,
        }
    }
}

/// Weights, one for each column: so many, finite and not negative.
fn check_weights(operand: &'static str, weights: &[f32]) -> Result<(), Error> {
    match weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        None => Ok(()),
        Some(col) => Err(Error::element(operand, (0, col), "must be finite and not negative", weights[col])),
    }
}

/// `weight * x`, where what weighs nothing costs nothing, even if x is infinite. NaN stays NaN.
fn weighted(weight: f64, x: f64) -> f64 {
    if weight == 0.0 && x.is_infinite() { 0.0 } else { weight * x }
}

/// Softmax cross-entropy, the mean over rows of log(Σ_j e^(l_j)) - l_label; `dlogits`, if given, becomes
/// (softmax(l) - onehot(label)) / n. An empty batch has loss 0. This is [`CrossEntropy`] by default.
///
/// # Errors
/// [`Error::Length`] unless there is a label for each row, [`Error::Class`] for a label that is no column,
/// [`Error::Shape`] naming `dlogits`. `dlogits` is then untouched.
pub fn softmax_cross_entropy(logits: MatRef<'_>, labels: &[usize], dlogits: Option<MatMut<'_>>) -> Result<f64, Error> {
    CrossEntropy::default().evaluate(logits, labels, dlogits)
}

/// Mean squared error, the mean over all elements of (y - target)²; `dy`, if given, becomes 2 (y - target) / elements. Of no
/// elements it is 0. This is [`SquaredError`] by default.
///
/// # Errors
/// [`Error::Shape`] naming `target` or `dy`. `dy` is then untouched.
pub fn mean_squared_error(y: MatRef<'_>, target: MatRef<'_>, dy: Option<MatMut<'_>>) -> Result<f64, Error> {
    SquaredError::default().evaluate(y, target, dy)
}
