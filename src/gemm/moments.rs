//! Mean and variance of each column of a batch, whose rows lie in several blocks.
//!
//! **Order**: pieces of 32 rows of the batch, whatever blocks they lie in. Each has a mean, a chain of additions from 0 divided by the number of rows, and
//! the sum of squares around that mean, a chain of multiply-adds from 0. The pieces are combined in order in f64 (Chan, Golub, LeVeque 1979), where
//! n rows with mean μ and squares S meet m rows with mean ν and squares T:
//!
//! ```text
//! share = m / (n + m),  δ = ν - μ,  μ += δ share,  S = (S + T) + (δ δ) (n share)
//! ```
//!
//! and at the end μ and S / n are rounded to f32. A piece of four panels is 8 KiB: its second pass reads L1.

use super::cells::In;
use super::column_sums::WIDE;
use super::lanes::{add_rows, fma_rows, load_cells, store_cells, sub_rows};
use super::panels::{PANEL, PanelRef, panels};
use crate::simd::{Isa, Kernel, Simd};
use std::ops::Range;

/// Rows of a piece.
const PIECE: usize = 32;

/// Mean and variance of the columns of `blocks`, all of as many columns as there are means, one below the other.
pub(crate) fn moments<'a>(
    isa: Isa,
    blocks: impl Iterator<Item = PanelRef<'a>> + Clone,
    mean: &mut [f32],
    variance: &mut [f32],
) {
    assert_eq!(mean.len(), variance.len(), "a mean and a variance for each column");
    isa.run(Moments { blocks, mean, variance });
}

struct Moments<'m, I> {
    blocks: I,
    mean: &'m mut [f32],
    variance: &'m mut [f32],
}

/// A place among the rows of several blocks.
#[derive(Clone)]
struct Cursor<'a, I> {
    rest: I,
    block: Option<PanelRef<'a>>,
    row: usize,
}

impl<'a, I: Iterator<Item = PanelRef<'a>>> Cursor<'a, I> {
    /// Some of the next `most` rows: those that lie in one block.
    #[inline(always)]
    fn take(&mut self, most: usize) -> Option<(PanelRef<'a>, Range<usize>)> {
        while let Some(block) = self.block {
            let first = self.row;
            if first < block.rows() {
                self.row = block.rows().min(first + most);
                return Some((block, first..self.row));
            }
            (self.block, self.row) = (self.rest.next(), 0);
        }
        None
    }
}

impl<'a, I: Iterator<Item = PanelRef<'a>> + Clone> Kernel for Moments<'_, I> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Moments { mut blocks, mean, variance } = self;
        let first = blocks.next();
        let zero = s.row(s.splat(0.0));
        for (group, (means, variances)) in
            mean.chunks_mut(WIDE * PANEL).zip(variance.chunks_mut(WIDE * PANEL)).enumerate()
        {
            let (p0, np) = (group * WIDE, panels(means.len()));
            let (mut mean, mut squares, mut count) = ([0.0f64; WIDE * PANEL], [0.0f64; WIDE * PANEL], 0.0f64);
            let mut here = Cursor { rest: blocks.clone(), block: first, row: 0 };
            loop {
                let (mut again, mut rows) = (here.clone(), 0);
                let mut sums = [zero; WIDE];
                while rows < PIECE
                    && let Some((block, range)) = here.take(PIECE - rows)
                {
                    rows += range.len();
                    let block = In::from(block);
                    for i in range {
                        for p in 0..np {
                            sums[p] = add_rows(s, sums[p], block.row(s, i, p0 + p));
                        }
                    }
                }
                if rows == 0 {
                    break;
                }
                let mut centres = [0.0f32; WIDE * PANEL];
                for p in 0..np {
                    store_cells(s, &mut centres[p * PANEL..][..PANEL], sums[p]);
                }
                let mut around = [zero; WIDE];
                for centre in &mut centres {
                    *centre /= rows as f32;
                }
                for p in 0..np {
                    sums[p] = load_cells(s, &centres[p * PANEL..][..PANEL]);
                }
                let mut left = rows;
                while left > 0
                    && let Some((block, range)) = again.take(left)
                {
                    left -= range.len();
                    let block = In::from(block);
                    for i in range {
                        for p in 0..np {
                            let x = sub_rows(s, block.row(s, i, p0 + p), sums[p]);
                            around[p] = fma_rows(s, x, x, around[p]);
                        }
                    }
                }
                let mut more = [0.0f32; WIDE * PANEL];
                for p in 0..np {
                    store_cells(s, &mut more[p * PANEL..][..PANEL], around[p]);
                }
                let piece = rows as f64;
                let share = piece / (count + piece);
                let weight = count * share;
                for j in 0..WIDE * PANEL {
                    let delta = f64::from(centres[j]) - mean[j];
                    mean[j] += delta * share;
                    squares[j] = (squares[j] + f64::from(more[j])) + (delta * delta) * weight;
                }
                count += piece;
            }
            for (to, mean) in means.iter_mut().zip(mean) {
                *to = mean as f32;
            }
            for (to, squares) in variances.iter_mut().zip(squares) {
                *to = (squares / count) as f32;
            }
        }
    }
}
