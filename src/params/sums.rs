//! Sums over the values of a tensor, in an order that does not depend on the machine.

use crate::gemm::panels::PANEL;

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

    pub(super) fn largest(&self) -> f32 {
        self.largest.iter().fold(0.0, |a, &b| a.max(b))
    }
}
