//! Losses: the mean over the batch, in f64 in a fixed order, and its gradient.

use crate::error::{Error, expect_len, expect_shape};
use crate::mat::{MatMut, MatRef};

/// Softmax cross-entropy, the mean over rows of log(sum_j e^(l_j)) - l_label; `dlogits`, if given, becomes
/// (softmax(l) - onehot(label)) / n. An empty batch has loss 0.
///
/// # Errors
/// [`Error::Length`] unless there is a label for each row, [`Error::Class`] for a label that is no column,
/// [`Error::Shape`] naming `dlogits`. `dlogits` is then untouched.
pub fn softmax_cross_entropy(
    logits: MatRef<'_>,
    labels: &[usize],
    mut dlogits: Option<MatMut<'_>>,
) -> Result<f64, Error> {
    let (n, classes) = logits.shape();
    expect_len("labels", n, labels.len())?;
    if let Some((index, &found)) = labels.iter().enumerate().find(|&(_, &label)| label >= classes) {
        return Err(Error::Class { operand: "labels", index, classes, found });
    }
    if let Some(d) = &dlogits {
        expect_shape("dlogits", logits.shape(), d.shape())?;
    }
    let mut loss = 0.0;
    for (i, &label) in labels.iter().enumerate() {
        let logit = |j| f64::from(logits.get(i, j).unwrap_or(f32::NAN));
        // Shifted by the maximum, no exponential overflows. NaN logits make the sum, and so the loss, NaN.
        let max = (0..classes).map(logit).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..classes).map(|j| libm::exp(logit(j) - max)).sum();
        loss += libm::log(sum) + max - logit(label);
        if let Some(d) = &mut dlogits {
            for j in 0..classes {
                let p = libm::exp(logit(j) - max) / sum - if j == label { 1.0 } else { 0.0 };
                d.set(i, j, (p / n as f64) as f32);
            }
        }
    }
    Ok(if n == 0 { 0.0 } else { loss / n as f64 })
}

/// Mean squared error, the mean over all elements of (y - target)²; `dy`, if given, becomes 2 (y - target) / elements. Of no
/// elements it is 0.
///
/// # Errors
/// [`Error::Shape`] naming `target` or `dy`. `dy` is then untouched.
pub fn mean_squared_error(y: MatRef<'_>, target: MatRef<'_>, mut dy: Option<MatMut<'_>>) -> Result<f64, Error> {
    expect_shape("target", y.shape(), target.shape())?;
    if let Some(dy) = &dy {
        expect_shape("dy", y.shape(), dy.shape())?;
    }
    let (n, m) = y.shape();
    let count = n as f64 * m as f64;
    if count == 0.0 {
        return Ok(0.0);
    }
    let mut sum = 0.0;
    for i in 0..n {
        for j in 0..m {
            let value = |mat: &MatRef<'_>| f64::from(mat.get(i, j).unwrap_or(f32::NAN));
            let error = value(&y) - value(&target);
            sum += error * error;
            if let Some(dy) = &mut dy {
                dy.set(i, j, (2.0 * error / count) as f32);
            }
        }
    }
    Ok(sum / count)
}
