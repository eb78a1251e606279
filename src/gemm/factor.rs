//! Factors: the vector operand of a GEMM, read as it is stored or transposed.
//!
//! Weights are stored once, as panels of Wᵀ: what F1 and F2 read. B1 and B2 need panels of W. No copy of that is kept: as a group
//! of panels comes into use, its 16 x 16 blocks are transposed into a buffer in L1 or L2, which all rows of the block then read.
//! A block is 1 KiB in one piece, in the source as in the buffer; two blocks that lie side by side in the group are neighbours
//! in the source.
//!
//! That is 2 d h elements transposed for each row block of a training step, beside 6 rows d h multiply-adds: about 0.2 cycles
//! for an element against 6 rows / 32, some 1.7 % for 128 rows, where a copy that is remade after every step of the optimiser costs
//! as much in arithmetic and moves three times the bytes of the weights, through caches that they may not fit.

use super::panels::{PANEL, PanelRef, panels};
use super::prefetch::Ahead;
use crate::simd::{Kernel, Simd};

/// Some rows and columns of a matrix in panels, or of its transpose: b[k, j].
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    matrix: PanelRef<'a>,
    transposed: bool,
    /// Row of the (transposed) matrix that is row 0 of the factor.
    first_row: usize,
    /// Panel of the (transposed) matrix that is panel 0 of the factor.
    first_panel: usize,
    rows: usize,
    cols: usize,
}

impl<'a> Factor<'a> {
    /// The matrix itself.
    pub(crate) fn stored(matrix: PanelRef<'a>) -> Self {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        Self { matrix, transposed: false, first_row: 0, first_panel: 0, rows, cols }
    }

    /// Its transpose.
    pub(crate) fn transposed(matrix: PanelRef<'a>) -> Self {
        let (rows, cols) = (matrix.cols(), matrix.rows());
        Self { matrix, transposed: true, first_row: 0, first_panel: 0, rows, cols }
    }

    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Columns `first * 16 ..`, `count` panels of them, clamped to the factor.
    pub(crate) fn panel_range(self, first: usize, count: usize) -> Self {
        let cols = self.cols.saturating_sub(first * PANEL).min(count * PANEL);
        Self { first_panel: self.first_panel + first, cols, ..self }
    }

    /// Rows `first ..`; a multiple of 16.
    pub(crate) fn rows_from(self, first: usize) -> Self {
        assert!(first.is_multiple_of(PANEL) && first <= self.rows, "rows start at a panel");
        Self { first_row: self.first_row + first, rows: self.rows - first, ..self }
    }

    /// Where row `k0` of panel `p` lies, and how far it is to the next panel: `np` panels of `kc` rows of 16 can be read there.
    /// What had to be transposed for that is in `pack`.
    #[inline(always)]
    pub(super) fn window<S: Simd>(
        &self,
        s: S,
        (k0, kc): (usize, usize),
        (p, np): (usize, usize),
        pack: &mut [f32],
    ) -> (*const f32, usize) {
        assert!(k0 + kc <= self.rows && p + np <= panels(self.cols), "window inside the factor");
        let (row, panel) = (self.first_row + k0, self.first_panel + p);
        if !self.transposed {
            let start = panel * self.matrix.stride() + row * PANEL;
            return (self.matrix.data().as_ptr().wrapping_add(start), self.matrix.stride());
        }
        assert!(row.is_multiple_of(PANEL), "blocks of 16 x 16 start at panels");
        let stride = panels(kc) * PANEL * PANEL;
        let to = &mut pack[..np * stride];
        s.call(Straighten { from: self.matrix, source_panel: row / PANEL, source_row: panel * PANEL, to, np });
        (to.as_ptr(), stride)
    }
}

impl Factor<'_> {
    /// Where rows `k0 .. k0 + kc` of panels `p .. p + np` are stored, to be asked for in `tiles` chains of length `kc`.
    #[inline(always)]
    pub(super) fn ahead(&self, (k0, kc): (usize, usize), (p, np): (usize, usize), tiles: usize) -> Ahead {
        let (row, panel) = (self.first_row + k0, self.first_panel + p);
        let (first, piece) = if self.transposed {
            (row / PANEL * self.matrix.stride() + panel * PANEL * PANEL, np * PANEL)
        } else {
            (panel * self.matrix.stride() + row * PANEL, kc)
        };
        let at = self.matrix.data().as_ptr().wrapping_add(first);
        Ahead::new(at, piece, self.matrix.stride(), (np * PANEL).div_ceil(tiles.max(1)))
    }
}

/// Transposes 16 x 16 blocks: those of rows `source_row ..`, `np` of them, in the panels from `source_panel` on, become `np`
/// panels one after the other in `to`.
struct Straighten<'a> {
    from: PanelRef<'a>,
    source_panel: usize,
    source_row: usize,
    to: &'a mut [f32],
    np: usize,
}

impl Kernel for Straighten<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const BLOCK: usize = PANEL * PANEL;
        let Self { from, source_panel, source_row, to, np } = self;
        let stride = to.len() / np;
        let height = (np * PANEL).min(from.rows() - source_row);
        for (q, at) in (0..stride).step_by(BLOCK).enumerate() {
            let first = (source_panel + q) * from.stride() + source_row * PANEL;
            let source = &from.data()[first..][..height * PANEL];
            for (p, block) in source.chunks(BLOCK).enumerate() {
                let Some(to) = to[p * stride + at..].first_chunk_mut() else { return };
                if let Some(block) = block.first_chunk() {
                    s.transpose(block, to);
                } else {
                    // The last rows of the matrix: what has no source is padding, which is read and not kept.
                    let mut whole = [0.0; BLOCK];
                    whole[..block.len()].copy_from_slice(block);
                    s.transpose(&whole, to);
                }
            }
        }
    }
}
