//! The micro-kernel: the k loop. Everything fast in this crate is this loop; everything exact is its order.
//!
//! ```text
//!                b: one row of NP panels          for k in order:
//!               +--------+--------+                 load the row of each panel        NP vectors (AVX-512)
//!     a: MR     | b[k]   | b'[k]  |                 for each row i: broadcast a[i,k]  1 register
//!   +-----+     +--------+--------+                   acc[i][p] = fma(a, b_p, acc)    MR x NP accumulators
//!   | a0k | --> | acc00  | acc01  |
//!   | a1k | --> | acc10  | acc11  |               One chain of fused multiply-adds for each element, in increasing k:
//!   |  :  |     |   :    |   :    |               vectors run over columns, never over k, and latency is hidden by more
//!   +-----+     +--------+--------+               elements, never by more chains for one element.
//! ```

use super::lanes::load_row;
use super::panels::PANEL;
use super::prefetch::Ahead;
use crate::simd::Simd;

/// Steps between the elements of the broadcast operand `a`, in floats. Panels give two ways to walk.
pub(crate) trait Walk {
    /// From row i of the tile to row i + 1.
    const ROW: usize;
    /// From k to k + 1, inside a run of 16 k.
    const K: usize;
    /// From a run of 16 k to the next, where panels lie `stride` apart.
    fn run(stride: usize) -> usize;
    /// From row 0 of the operand to row `i`.
    fn offset(i: usize, stride: usize) -> usize;
}

/// k runs along the columns of a panel matrix, the tile's rows are its rows: forward and input-gradient GEMMs. After 16 columns
/// the next panel follows.
pub(crate) struct AlongColumns;
impl Walk for AlongColumns {
    const ROW: usize = PANEL;
    const K: usize = 1;
    #[inline(always)]
    fn run(stride: usize) -> usize {
        stride
    }
    #[inline(always)]
    fn offset(i: usize, _: usize) -> usize {
        i * PANEL
    }
}

/// k runs down the rows of a panel, the tile's rows are up to 16 of its columns: weight gradients, a transpose without moving
/// anything.
pub(crate) struct DownRows;
impl Walk for DownRows {
    const ROW: usize = 1;
    const K: usize = PANEL;
    #[inline(always)]
    fn run(_: usize) -> usize {
        PANEL * PANEL
    }
    #[inline(always)]
    fn offset(i: usize, stride: usize) -> usize {
        i / PANEL * stride + i % PANEL
    }
}

/// Rows of a panel, a cache line each, that a streaming tile asks for ahead of the one in use. 8 to 64 differ little; with 128,
/// L1 loses some before they are used.
const STREAM_AHEAD: usize = 16;

/// The operands of the tiles of one group of panels.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// Length of the chain.
    pub(crate) k: usize,
    /// From a panel of the broadcast operand to the next, in floats.
    pub(crate) a_stride: usize,
    /// Row k = 0 of the first panel of the vector operand.
    pub(crate) b: *const f32,
    /// From a panel to the next, in floats.
    pub(crate) b_panel: usize,
    /// From a row of a panel to the next: 16 in panels of ours, anything in a caller's matrix.
    pub(crate) b_row: usize,
    /// Whether this tile is the only one to read them: then they are asked for while it runs.
    pub(crate) stream: bool,
}

/// acc[i][p] = fma(a[i, k], b[k, p], acc[i][p]) for k in 0..K, in order; `a` points to element (row 0 of the tile, k = 0) of the
/// broadcast operand.
///
/// # Safety
/// Readable: `a + (k / 16) * W::run(a_stride) + (k % 16) * W::K + i * W::ROW` for all k < K, i < MR, and 16 floats at
/// `b + p * b_panel + k * b_row` for all k < K, p < NP.
#[inline(always)]
pub(crate) unsafe fn chain<S: Simd, W: Walk, const MR: usize, const NP: usize>(
    s: S,
    a: *const f32,
    operands: &Operands,
    ahead: &mut Ahead,
    acc: [[S::Row; NP]; MR],
) -> [[S::Row; NP]; MR] {
    // Compiled twice where the rows of panels may lie apart, in a caller's matrix: with the distance a variable, the addresses of a wide
    // tile's panels are made from one another at each step, and one row of ours took 6 % longer.
    // SAFETY: the caller's promise, passed on.
    unsafe {
        if const { W::K == 1 } && operands.b_row != PANEL {
            steps::<S, W, MR, NP>(s, a, operands, operands.b_row, ahead, acc)
        } else {
            steps::<S, W, MR, NP>(s, a, operands, PANEL, ahead, acc)
        }
    }
}

/// [`chain`] with rows of panels `b_row` floats apart.
///
/// # Safety
/// As for [`chain`].
#[inline(always)]
unsafe fn steps<S: Simd, W: Walk, const MR: usize, const NP: usize>(
    s: S,
    a: *const f32,
    operands: &Operands,
    b_row: usize,
    ahead: &mut Ahead,
    mut acc: [[S::Row; NP]; MR],
) -> [[S::Row; NP]; MR] {
    let Operands { k, a_stride, b, b_panel, stream, .. } = *operands;
    let vectors = const { PANEL.div_ceil(S::LANES) };
    let (mut a, mut b, mut left) = (a, b, k);
    while left > 0 {
        let run = left.min(PANEL);
        ahead.ask(s);
        if stream {
            for p in 0..NP {
                for r in 0..PANEL {
                    s.prefetch(b.wrapping_add(p * b_panel + (STREAM_AHEAD + r) * b_row));
                }
            }
        }
        let mut ak = a;
        for _ in 0..run {
            // What there is less of stays in registers for this k, the rows' elements or the panels' vectors; of the other, one at
            // a time. Of 3 rows and 2 panels on AVX2, 12 accumulators leave no room for 4 vectors and an element.
            if const { MR < NP * PANEL.div_ceil(S::LANES) } {
                let mut x = [s.splat(0.0); MR];
                for i in 0..MR {
                    // SAFETY: the caller vouches for this element.
                    x[i] = s.splat(unsafe { *ak.add(i * W::ROW) });
                }
                for p in 0..NP {
                    // SAFETY: the caller vouches for 16 floats at b + p * b_panel for this k.
                    let line = unsafe { load_row(s, b.add(p * b_panel)) };
                    for v in 0..vectors {
                        for i in 0..MR {
                            let c = &mut acc[i][p].as_mut()[v];
                            *c = s.fma(x[i], line.as_ref()[v], *c);
                        }
                    }
                }
            } else {
                let mut line = [s.row(s.splat(0.0)); NP];
                for p in 0..NP {
                    // SAFETY: the caller vouches for 16 floats at b + p * b_panel for this k.
                    line[p] = unsafe { load_row(s, b.add(p * b_panel)) };
                }
                for i in 0..MR {
                    // SAFETY: the caller vouches for this element.
                    let x = s.splat(unsafe { *ak.add(i * W::ROW) });
                    for p in 0..NP {
                        for v in 0..vectors {
                            let c = &mut acc[i][p].as_mut()[v];
                            *c = s.fma(x, line[p].as_ref()[v], *c);
                        }
                    }
                }
            }
            // wrapping: after the last k these point past the operand and are not read.
            ak = ak.wrapping_add(W::K);
            b = b.wrapping_add(b_row);
        }
        a = a.wrapping_add(W::run(a_stride));
        left -= run;
    }
    acc
}
