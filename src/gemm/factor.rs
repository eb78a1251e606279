//! Factors: the vector operand of a GEMM, read as it is stored, transposed, or from a caller's matrix of any strides.
//!
//! Weights of ours are stored once, as panels of Wᵀ: what F1 and F2 read. B1 and B2 need panels of W. No copy of that is kept: as a
//! group of panels comes into use, its 16 x 16 blocks are transposed into a buffer in L1 or L2, which all rows of the block then read.
//! A block is 1 KiB in one piece, in the source as in the buffer; two blocks that lie side by side in the group are neighbours
//! in the source.
//!
//! That is 2 d h elements transposed for each row block of a training step, beside 6 rows d h multiply-adds: about 0.2 cycles
//! for an element against 6 rows / 32, some 1.7 % for 128 rows, where a copy that is remade after every step of the optimiser costs
//! as much in arithmetic and moves three times the bytes of the weights, through caches that they may not fit.
//!
//! A caller's matrix goes the same way, a group of panels at a time: line by line where its columns lie side by side, by transposed
//! blocks where its rows do, element by element otherwise. In the first case it need not move at all: a tile reads whole panels of it where
//! they are, at the matrix's own stride, if only one tile does, or if all of it lies in L2, where a stride of many KiB cannot push it out.

use super::caches::caches;
use super::panels::{PANEL, PanelRef, panels};
use super::prefetch::Ahead;
use crate::mat::MatRef;
use crate::simd::{Kernel, Simd};

/// Some rows and columns of a matrix: b[k, j].
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    stored: Stored<'a>,
    /// Row of the matrix that is row 0 of the factor.
    first_row: usize,
    /// Panel of the matrix that is panel 0 of the factor.
    first_panel: usize,
    rows: usize,
    cols: usize,
}

/// How the matrix lies in memory.
#[derive(Clone, Copy)]
enum Stored<'a> {
    /// In panels.
    Panels(PanelRef<'a>),
    /// Its transpose is in panels.
    Transposed(PanelRef<'a>),
    /// Element (k, j) at `data[k * k_stride + j * j_stride]`, all of them inside; one of the strides is 1.
    Strided { data: &'a [f32], k_stride: usize, j_stride: usize },
    /// In any other way.
    Other(MatRef<'a>),
}

/// Where a tile reads its panels.
pub(super) struct Window {
    /// Row k = 0 of the first panel.
    pub(super) b: *const f32,
    /// From a panel to the next, in floats.
    pub(super) panel: usize,
    /// From a row of a panel to the next.
    pub(super) row: usize,
}

impl<'a> Factor<'a> {
    /// The matrix itself.
    pub(crate) fn stored(matrix: PanelRef<'a>) -> Self {
        Self::new(Stored::Panels(matrix), matrix.rows(), matrix.cols())
    }

    /// Its transpose.
    pub(crate) fn transposed(matrix: PanelRef<'a>) -> Self {
        Self::new(Stored::Transposed(matrix), matrix.cols(), matrix.rows())
    }

    /// A caller's matrix.
    pub(crate) fn strided(matrix: MatRef<'a>) -> Self {
        // The stride of a single line is any number, which kernels that compute with it should not meet.
        let of_use = |lines: usize, stride: usize| if lines <= 1 { 1 } else { stride };
        let strided = matrix.strided().map(|(data, (k, j))| (data, of_use(matrix.rows(), k), of_use(matrix.cols(), j)));
        let stored = match strided {
            Some((data, k_stride, j_stride)) if k_stride == 1 || j_stride == 1 => {
                Stored::Strided { data, k_stride, j_stride }
            }
            _ => Stored::Other(matrix),
        };
        Self::new(stored, matrix.rows(), matrix.cols())
    }

    fn new(stored: Stored<'a>, rows: usize, cols: usize) -> Self {
        Self { stored, first_row: 0, first_panel: 0, rows, cols }
    }

    /// Whether panels may have to be put straight before they are read.
    pub(super) fn moves(&self) -> bool {
        !matches!(self.stored, Stored::Panels(_))
    }

    /// Whether panels, all but one that is cut, are read where they are by `tiles` tiles each.
    pub(super) fn stays(&self, tiles: usize) -> bool {
        match self.stored {
            Stored::Panels(_) => true,
            Stored::Transposed(_) | Stored::Other(_) => false,
            Stored::Strided { data, j_stride, .. } => {
                j_stride == 1 && (tiles == 1 || size_of_val(data) <= caches().l2 / 2)
            }
        }
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

    /// Where rows `k0 .. k0 + kc` of panels `p .. p + np` lie, for `tiles` tiles to read. What had to be moved for that is in `pack`.
    #[inline(always)]
    pub(super) fn window<S: Simd>(
        &self,
        s: S,
        (k0, kc): (usize, usize),
        (p, np): (usize, usize),
        tiles: usize,
        pack: &mut [f32],
    ) -> Window {
        assert!(k0 + kc <= self.rows && p + np <= panels(self.cols), "window inside the factor");
        let (row, panel) = (self.first_row + k0, self.first_panel + p);
        match self.stored {
            Stored::Panels(matrix) => {
                let b = matrix.data().as_ptr().wrapping_add(panel * matrix.stride() + row * PANEL);
                Window { b, panel: matrix.stride(), row: PANEL }
            }
            Stored::Strided { data, k_stride, .. } if (p + np) * PANEL <= self.cols && self.stays(tiles) => {
                let b = data.as_ptr().wrapping_add(row * k_stride + panel * PANEL);
                Window { b, panel: PANEL, row: k_stride }
            }
            Stored::Transposed(from) => {
                assert!(row.is_multiple_of(PANEL), "blocks of 16 x 16 start at panels");
                let stride = panels(kc) * PANEL * PANEL;
                let to = &mut pack[..np * stride];
                s.call(Straighten { from, source_panel: row / PANEL, source_row: panel * PANEL, to, np });
                Window { b: to.as_ptr(), panel: stride, row: PANEL }
            }
            Stored::Strided { .. } | Stored::Other(_) => {
                let stride = panels(kc) * PANEL * PANEL;
                let to = &mut pack[..np * stride];
                // The columns there are: those of the factor end where its last panel is cut.
                let cols = (self.cols - p * PANEL).min(np * PANEL);
                s.call(Gather { stored: &self.stored, row, kc, column: panel * PANEL, cols, to: &mut *to, np });
                Window { b: to.as_ptr(), panel: stride, row: PANEL }
            }
        }
    }
}

impl Factor<'_> {
    /// Where rows `k0 .. k0 + kc` of panels `p .. p + np` are stored, to be asked for in `tiles` chains of length `kc`.
    #[inline(always)]
    pub(super) fn ahead(&self, (k0, kc): (usize, usize), (p, np): (usize, usize), tiles: usize) -> Ahead {
        let (row, panel) = (self.first_row + k0, self.first_panel + p);
        let (data, first, piece, stride) = match self.stored {
            Stored::Other(_) => return Ahead::new(std::ptr::null(), 1, 0, 0),
            Stored::Transposed(m) => {
                (m.data(), row / PANEL * m.stride() + panel * PANEL * PANEL, np * PANEL, m.stride())
            }
            Stored::Panels(m) => (m.data(), panel * m.stride() + row * PANEL, kc, m.stride()),
            Stored::Strided { data, k_stride, j_stride: 1 } => (data, row * k_stride + panel * PANEL, np, k_stride),
            Stored::Strided { data, k_stride, j_stride } => {
                (data, row * k_stride + panel * PANEL * j_stride, panels(kc), j_stride)
            }
        };
        let lines = if np == 0 { 0 } else { (np * PANEL).div_ceil(tiles.max(1)) };
        Ahead::new(data.as_ptr().wrapping_add(first), piece.max(1), stride, lines)
    }
}

const BLOCK: usize = PANEL * PANEL;

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
        let Self { from, source_panel, source_row, to, np } = self;
        let stride = to.len() / np;
        let height = (np * PANEL).min(from.rows() - source_row);
        for (q, at) in (0..stride).step_by(BLOCK).enumerate() {
            let first = (source_panel + q) * from.stride() + source_row * PANEL;
            let source = &from.data()[first..][..height * PANEL];
            for (p, block) in source.chunks(BLOCK).enumerate() {
                let Some(to) = to[p * stride + at..].first_chunk_mut() else { return };
                if block.len() == BLOCK {
                    s.transpose(block, PANEL, to);
                } else {
                    // The last rows of the matrix: what has no source is padding, which is read and not kept.
                    let mut whole = [0.0; BLOCK];
                    whole[..block.len()].copy_from_slice(block);
                    s.transpose(&whole, PANEL, to);
                }
            }
        }
    }
}

/// Brings rows `row .. row + kc` of a caller's matrix, in the columns from `column` on, `cols` of them, into `np` panels one after the other
/// in `to`, by blocks of 16 x 16. What has no source is padding, which is read and not kept.
struct Gather<'a> {
    stored: &'a Stored<'a>,
    row: usize,
    kc: usize,
    column: usize,
    cols: usize,
    to: &'a mut [f32],
    np: usize,
}

impl Kernel for Gather<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { stored, row, kc, column, cols, to, np } = self;
        let stride = to.len() / np;
        for (q, at) in (0..stride).step_by(BLOCK).enumerate() {
            for p in 0..np {
                let Some(to) = to[p * stride + at..].first_chunk_mut::<BLOCK>() else { return };
                let (k, j) = (row + q * PANEL, column + p * PANEL);
                let (height, width) = (PANEL.min(kc - q * PANEL), PANEL.min(cols - p * PANEL));
                match *stored {
                    Stored::Panels(_) | Stored::Transposed(_) => return,
                    Stored::Strided { data, k_stride, j_stride: 1 } => {
                        for (i, to) in to.chunks_exact_mut(PANEL).enumerate().take(height) {
                            let from = &data[(k + i) * k_stride + j..];
                            if width == PANEL {
                                to.copy_from_slice(&from[..PANEL]);
                            } else {
                                to[..width].copy_from_slice(&from[..width]);
                            }
                        }
                    }
                    Stored::Strided { data, k_stride: 1, j_stride } if (height, width) == (PANEL, PANEL) => {
                        s.transpose(&data[k + j * j_stride..], j_stride, to);
                    }
                    Stored::Strided { data, k_stride, j_stride } => {
                        element_by_element(to, (height, width), |i, l| data[(k + i) * k_stride + (j + l) * j_stride]);
                    }
                    Stored::Other(m) => {
                        element_by_element(to, (height, width), |i, l| m.get(k + i, j + l).unwrap_or(0.0));
                    }
                }
            }
        }
    }
}

fn element_by_element(to: &mut [f32; BLOCK], (height, width): (usize, usize), from: impl Fn(usize, usize) -> f32) {
    for i in 0..height {
        for l in 0..width {
            to[i * PANEL + l] = from(i, l);
        }
    }
}
