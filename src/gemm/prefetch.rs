//! Prefetch: memory that later tiles will read.

use super::panels::PANEL;
use crate::simd::Simd;

/// Memory that later tiles will read, asked for while these compute: pieces of some lines, a stride apart.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// The next line.
    at: *const f32,
    /// Lines left in this piece.
    left: usize,
    /// Lines in a piece.
    piece: usize,
    /// From the end of a piece to the start of the next, in floats.
    gap: usize,
    /// Lines asked for with each run of 16 k.
    lines: usize,
}

impl Ahead {
    /// Pieces of `piece` lines from `at` on, `stride` floats apart, `lines` of them with each run of 16 k.
    pub(crate) fn new(at: *const f32, piece: usize, stride: usize, lines: usize) -> Self {
        Self { at, left: piece, piece, gap: stride.wrapping_sub(piece * PANEL), lines }
    }

    /// Asks for the lines of one run.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&mut self, s: S) {
        for _ in 0..self.lines {
            s.prefetch(self.at);
            self.at = self.at.wrapping_add(PANEL);
            self.left = self.left.wrapping_sub(1);
            if self.left == 0 {
                self.at = self.at.wrapping_add(self.gap);
                self.left = self.piece;
            }
        }
    }
}
