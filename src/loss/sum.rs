//! A sum that loses nothing to its length.

/// A sum of f64 that carries the rounding errors of its additions along and adds them at the end: Sum2 of Ogita, Rump and Oishi, "Accurate
/// Sum and Dot Product" (2005), which is Neumaier's sum (1974) with the error of an addition found by Knuth's TwoSum, without a branch.
/// Of n terms of one sign the result is off by 2^-53 + ((n - 1) 2^-53 / (1 - (n - 1) 2^-53))² of itself at most (their proposition 4.5).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    sum: f64,
    lost: f64,
}

impl Sum {
    pub(super) fn add(&mut self, term: f64) {
        let sum = self.sum + term;
        let of_term = sum - self.sum;
        self.lost += (self.sum - (sum - of_term)) + (term - of_term);
        self.sum = sum;
    }

    pub(super) fn total(self) -> f64 {
        // Of an infinite sum the error is NaN.
        if self.sum.is_finite() { self.sum + self.lost } else { self.sum }
    }
}

impl Extend<f64> for Sum {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, terms: I) {
        terms.into_iter().for_each(|term| self.add(term));
    }
}

impl FromIterator<f64> for Sum {
    fn from_iter<I: IntoIterator<Item = f64>>(terms: I) -> Self {
        let mut sum = Self::default();
        sum.extend(terms);
        sum
    }
}
