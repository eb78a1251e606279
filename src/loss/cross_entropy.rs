//! Softmax cross-entropy. No step subtracts numbers that have been rounded and are nearly equal, so nothing is lost for any logits.

use super::sum::Sum;
use super::{Divisor, check_weights, weighted};
use crate::error::{Error, expect_len, expect_shape};
use crate::mat::{MatMut, MatRef};

/// Softmax cross-entropy of logits `l` (`rows x classes`) with a label for each row, as `CrossEntropyLoss` of PyTorch has it
/// (<https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html>):
///
/// ```text
/// t_c    = (1 - ε) w_y [c = y] + ε w_c / classes            y: the label; w: class weights; ε: label smoothing
/// loss   = Σ_rows Σ_c t_c (log Σ_j e^(l_j) - l_c) / divisor
/// dl_k   = (p_k Σ_c t_c - t_k) / divisor                    p = softmax(l)
/// ```
///
/// With the defaults, the mean over rows of log Σ_j e^(l_j) - l_y.
///
/// **Accuracy.** It is computed, in f64, as
///
/// ```text
/// T (m - l_y) + T log1p(Σ_{j≠m} e^(l_j - m)),  T = w_y      m: the largest logit (with smoothing, Σ_c t_c (m - l_c) and T = Σ t_c)
/// dl_y   = -w_y (Σ_{j≠y} e^(l_j - m)) / Σ_j e^(l_j - m)     never p - 1; with smoothing, p_y Σ_{c≠y} t_c - t_y (1 - p_y)
/// ```
///
/// so that nothing cancels: without smoothing, loss and gradients are exact to a relative 2^-43 and 2^-40 (gradients before they are rounded
/// to f32), at any offset, for any gaps between logits and any number of classes. With it, dl_k is a difference of two terms, which are as
/// exact, and 0 where the softmax is what smoothing asks for. [`crate::bounds::loss`] has the bounds.
///
/// **Special values.** A NaN or +∞ logit, or a row of -∞ alone, make the loss and the gradients of that row NaN. A logit of -∞ beside others
/// is probability 0: the loss is ∞ if that class is the label or smoothing gives it weight, else it is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CrossEntropy<'a> {
    /// What the sum over rows is divided by. [`Divisor::Mean`] divides by [`CrossEntropy::total_weight`].
    pub divisor: Divisor,
    /// A row with this label, which need not be a class, costs nothing, counts nothing and has gradient 0, whatever its logits.
    pub ignore: Option<usize>,
    /// A weight for each class, finite and not negative. None: all are 1.
    pub class_weights: Option<&'a [f32]>,
    /// ε, from 0 to 1: so much of the target goes from the label to all classes alike.
    pub label_smoothing: f32,
}

impl CrossEntropy<'_> {
    /// The loss; `dlogits`, if given, becomes its gradient. If nothing counts (no rows, all ignored, or a mean of weights that are all
    /// 0), the loss is 0 and so is the gradient.
    ///
    /// # Errors
    /// [`Error::Setting`] naming `divisor` or `label_smoothing`, [`Error::Length`] naming `class_weights` or, unless there is a label
    /// for each row, `labels`, [`Error::Element`] for a class weight that is negative or not finite, [`Error::Class`] for a label that is
    /// neither a column nor ignored, [`Error::Shape`] naming `dlogits`. `dlogits` is then untouched.
    pub fn evaluate(
        &self,
        logits: MatRef<'_>,
        labels: &[usize],
        mut dlogits: Option<MatMut<'_>>,
    ) -> Result<f64, Error> {
        let (n, classes) = logits.shape();
        self.divisor.check()?;
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return Err(Error::Setting { operand: "label_smoothing", reason: "must lie in [0, 1]" });
        }
        self.class_weights.map_or(Ok(()), |weights| expect_len("class_weights", classes, weights.len()))?;
        expect_len("labels", n, labels.len())?;
        let total = self.weigh(labels, classes)?;
        if let Some(d) = &dlogits {
            expect_shape("dlogits", logits.shape(), d.shape())?;
        }
        let divisor = self.divisor.or(|| total);
        let mut loss = Sum::default();
        for (i, &label) in labels.iter().enumerate() {
            let row = (divisor > 0.0 && self.counts(label)).then(|| Row::new(self, logits, i, label));
            loss.extend(row.as_ref().map(Row::loss));
            if let Some(d) = &mut dlogits {
                for k in 0..classes {
                    let gradient = row.as_ref().map_or(0.0, |row| row.gradient(k) / divisor);
                    d.set(i, k, gradient as f32);
                }
            }
        }
        Ok(if divisor > 0.0 { loss.total() / divisor } else { 0.0 })
    }

    /// What [`Divisor::Mean`] divides by: the sum over the rows that are not ignored of the weight of their label (1 if there are no class
    /// weights). That of a whole batch is the [`Divisor::Given`] of its pieces; if it is 0, nothing counts, and there is no step to
    /// take.
    ///
    /// # Errors
    /// [`Error::Element`] for a class weight that is negative or not finite, [`Error::Class`] for a label that has no weight.
    pub fn total_weight(&self, labels: &[usize]) -> Result<f64, Error> {
        self.weigh(labels, self.class_weights.map_or(usize::MAX, <[f32]>::len))
    }

    fn weigh(&self, labels: &[usize], classes: usize) -> Result<f64, Error> {
        self.class_weights.map_or(Ok(()), |weights| check_weights("class_weights", weights))?;
        let counted = || labels.iter().enumerate().filter(|&(_, &label)| self.counts(label));
        if let Some((index, &found)) = counted().find(|&(_, &label)| label >= classes) {
            return Err(Error::Class { operand: "labels", index, classes, found });
        }
        Ok(counted().map(|(_, &label)| self.weight(label)).collect::<Sum>().total())
    }

    fn counts(&self, label: usize) -> bool {
        self.ignore != Some(label)
    }

    fn weight(&self, class: usize) -> f64 {
        self.class_weights.map_or(1.0, |weights| f64::from(weights[class]))
    }
}

/// Something summed over all classes, over all but the one with the largest logit, and over all but the label.
#[derive(Debug, Default)]
struct Sums {
    all: f64,
    but_top: f64,
    but_label: f64,
}

/// One row: what its loss and its gradient are made of.
struct Row<'a> {
    settings: &'a CrossEntropy<'a>,
    logits: MatRef<'a>,
    index: usize,
    label: usize,
    /// The first class with the largest logit.
    top: usize,
    /// The largest logit. NaN where it is infinite: there is nothing to compare with, then.
    max: f64,
    /// Σ e^(l_j - max).
    exps: Sums,
    /// Σ t_c.
    targets: Sums,
    /// Σ t_c (max - l_c).
    cost: f64,
}

impl<'a> Row<'a> {
    fn new(settings: &'a CrossEntropy<'a>, logits: MatRef<'a>, index: usize, label: usize) -> Self {
        let classes = logits.cols();
        let logit = |k| logits.get(index, k).unwrap_or(f32::NAN);
        let top = (0..classes).fold(0, |top, k| if logit(k) > logit(top) { k } else { top });
        let max = if logit(top).is_finite() { f64::from(logit(top)) } else { f64::NAN };
        let (exps, targets) = (Sums::default(), Sums::default());
        let mut row = Row { settings, logits, index, label, top, max, exps, targets, cost: 0.0 };

        let others = (0..classes).filter(|&k| k != top && k != label).map(|k| row.exp(k)).collect::<Sum>().total();
        let [of_top, of_label] = if top == label { [0.0; 2] } else { [row.exp(top), row.exp(label)] };
        let (but_top, but_label) = (others + of_label, others + of_top);
        row.exps = Sums { all: but_top + row.exp(top), but_top, but_label };

        // Without smoothing, the label alone has a target.
        let targeted = if settings.label_smoothing == 0.0 { label..label + 1 } else { 0..classes };
        let (mut but_top, mut but_label, mut cost) = (Sum::default(), Sum::default(), Sum::default());
        for k in targeted {
            let target = row.target(k);
            but_top.add(if k == top { 0.0 } else { target });
            but_label.add(if k == label { 0.0 } else { target });
            cost.add(weighted(target, max - row.logit(k)));
        }
        let (but_top, but_label) = (but_top.total(), but_label.total());
        row.targets = Sums { all: but_label + row.target(label), but_top, but_label };
        row.cost = cost.total();
        row
    }

    fn logit(&self, k: usize) -> f64 {
        f64::from(self.logits.get(self.index, k).unwrap_or(f32::NAN))
    }

    fn exp(&self, k: usize) -> f64 {
        libm::exp(self.logit(k) - self.max)
    }

    /// t_k.
    fn target(&self, k: usize) -> f64 {
        let smoothing = f64::from(self.settings.label_smoothing);
        let own = if k == self.label { 1.0 - smoothing } else { 0.0 };
        (own + smoothing / self.logits.cols() as f64) * self.settings.weight(k)
    }

    /// Neither term is negative.
    fn loss(&self) -> f64 {
        self.targets.all * libm::log1p(self.exps.but_top) + self.cost
    }

    /// p_k Σ_c t_c - t_k; where p_k may be near 1, p_k Σ_{c≠k} t_c - t_k (1 - p_k), with 1 - p_k from the sum of the other exponentials.
    fn gradient(&self, k: usize) -> f64 {
        let (exps, targets) = (&self.exps, &self.targets);
        let p = self.exp(k) / exps.all;
        if k == self.label {
            p * targets.but_label - self.target(k) * (exps.but_label / exps.all)
        } else if k == self.top {
            p * targets.but_top - self.target(k) * (exps.but_top / exps.all)
        } else {
            p * targets.all - self.target(k)
        }
    }
}
