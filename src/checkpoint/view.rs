//! Where the elements of a tensor are among those that a file has in one piece.

use std::iter;

/// Runs of elements that lie one after the other: the rows of a matrix, or its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// Its first element.
    pub(super) start: usize,
    /// From a run to the next.
    stride: usize,
    /// Whether the runs are columns.
    transposed: bool,
}

impl View {
    /// Of all the elements of a tensor of this shape.
    pub(super) fn whole(shape: &[usize]) -> Self {
        Self { start: 0, stride: shape.last().copied().unwrap_or(1), transposed: false }
    }

    pub(super) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// The same seen the other way round.
    pub(super) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// From row `row` of a matrix, or from element `row` of a vector.
    pub(super) fn from(self, row: usize, shape: &[usize]) -> Self {
        let step = if self.transposed || shape.len() < 2 { 1 } else { self.stride };
        Self { start: self.start.saturating_add(row.saturating_mul(step)), ..self }
    }

    /// How many runs, and how long, of a tensor of this shape.
    fn counts(&self, shape: &[usize]) -> (usize, usize) {
        match *shape {
            [rows, cols] if self.transposed => (cols, rows),
            [rows, cols] => (rows, cols),
            _ => (1, shape.iter().product()),
        }
    }

    /// The runs in order, as bytes of `data`, each element having `size`.
    pub(super) fn runs<'d>(
        &self,
        shape: &[usize],
        data: &'d [u8],
        size: usize,
    ) -> impl Iterator<Item = &'d [u8]> + use<'d> {
        let (&Self { start, stride, .. }, (count, len)) = (self, self.counts(shape));
        let bytes = len.saturating_mul(size);
        let run = move |at: usize| {
            let first = start.saturating_add(at.saturating_mul(stride)).saturating_mul(size);
            data.get(first..first.saturating_add(bytes)).unwrap_or(&[]) // inside: shapes and pieces have been checked
        };
        let count = if bytes == 0 { 0 } else { count };
        iter::successors(Some(0), |at| Some(at + 1)).take(count).map(run)
    }

    /// Where element `at` of run `run` is, row by row.
    pub(super) fn position(&self, shape: &[usize], run: usize, at: usize) -> usize {
        let (runs, len) = self.counts(shape);
        if self.transposed { at * runs + run } else { run * len + at }
    }
}
