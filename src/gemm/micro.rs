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

use super::panels::PANEL;
use crate::simd::Simd;

/// Steps between the elements of the broadcast operand `a`, in floats. Panels give two ways to walk.
pub(crate) trait Walk {
    /// From row i of the tile to row i + 1.
    const ROW: usize;
    /// From k to k + 1, inside a run of 16 k.
    const K: usize;
}

/// k runs along the columns of a panel matrix, the tile's rows are its rows: forward and input-gradient GEMMs. After 16 columns
/// the next panel follows.
pub(crate) struct AlongColumns;
impl Walk for AlongColumns {
    const ROW: usize = PANEL;
    const K: usize = 1;
}

/// k runs down the rows of a panel, the tile's rows are up to 16 of its columns: weight gradients, a transpose without moving
/// anything.
pub(crate) struct DownRows;
impl Walk for DownRows {
    const ROW: usize = 1;
    const K: usize = PANEL;
}

/// Memory that a later tile will read, asked for while this one computes: `segment` lines in one piece, then as many a `stride`
/// further on, and so on.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// The next line.
    at: *const f32,
    /// Lines left in this segment.
    left: usize,
    segment: usize,
    /// From the last line of a segment to the first of the next, in floats.
    skip: usize,
    /// Lines asked for with each run of 16 k.
    lines: usize,
}

impl Ahead {
    /// Nothing.
    pub(crate) const NONE: Self = Self { at: std::ptr::null(), left: 0, segment: 0, skip: 0, lines: 0 };

    /// Part `part` of `parts` of `total` lines that start at `base`, during a chain of `k`.
    #[inline(always)]
    pub(crate) fn new(
        (base, segment, stride): (*const f32, usize, usize),
        total: usize,
        (part, parts): (usize, usize),
        k: usize,
    ) -> Self {
        let first = part * total / parts;
        let lines = (total.div_ceil(parts)).div_ceil(k.div_ceil(PANEL));
        let (whole, within) = (first / segment, first % segment);
        Self {
            at: base.wrapping_add(whole * stride + within * PANEL),
            left: segment - within,
            segment,
            skip: stride.wrapping_sub(segment * PANEL),
            lines,
        }
    }

    /// Asks for the lines of one run.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S) {
        for _ in 0..self.lines {
            s.prefetch(self.at);
            self.at = self.at.wrapping_add(PANEL);
            self.left -= 1;
            if self.left == 0 {
                self.at = self.at.wrapping_add(self.skip);
                self.left = self.segment;
            }
        }
    }
}

/// The operands of one tile.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// Length of the chain.
    pub(crate) k: usize,
    /// Element (row 0, k 0) of the broadcast operand.
    pub(crate) a: *const f32,
    /// From a run of 16 k to the next, in floats.
    pub(crate) a_run: usize,
    /// Row k = 0 of the first panel of the vector operand.
    pub(crate) b: *const f32,
    /// From a panel to the next, in floats.
    pub(crate) b_panel: usize,
    /// What to ask for meanwhile.
    pub(crate) ahead: Ahead,
}

/// acc[i][p] = fma(a[i, k], b[k, p], acc[i][p]) for k in 0..K, in order.
///
/// # Safety
/// Readable: `a + (k / 16) * a_run + (k % 16) * W::K + i * W::ROW` for all k < K, i < MR, and 16 floats at
/// `b + p * b_panel + k * 16` for all k < K, p < NP.
#[inline(always)]
pub(crate) unsafe fn chain<S: Simd, W: Walk, const MR: usize, const NP: usize>(
    s: S,
    operands: Operands,
    mut acc: [[S::Row; NP]; MR],
) -> [[S::Row; NP]; MR] {
    let Operands { k, a, a_run, b, b_panel, mut ahead } = operands;
    let vectors = const { PANEL.div_ceil(S::LANES) };
    let (mut a, mut b, mut left) = (a, b, k);
    while left > 0 {
        let run = left.min(PANEL);
        ahead.ask(s);
        let mut ak = a;
        for _ in 0..run {
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
            // wrapping: after the last k these point past the operand and are not read.
            ak = ak.wrapping_add(W::K);
            b = b.wrapping_add(PANEL);
        }
        a = a.wrapping_add(a_run);
        left -= run;
    }
    acc
}

/// The 16 columns at `src` as vectors. A set whose lanes do not divide 16 reads its last vector in part.
///
/// # Safety
/// 16 floats can be read at `src`.
#[inline(always)]
pub(crate) unsafe fn load_row<S: Simd>(s: S, src: *const f32) -> S::Row {
    let mut row = s.row(s.splat(0.0));
    for v in 0..const { PANEL.div_ceil(S::LANES) } {
        let rest = PANEL - v * S::LANES;
        row.as_mut()[v] = if rest >= S::LANES {
            // SAFETY: lanes v * LANES .. (v + 1) * LANES are among the 16.
            unsafe { s.load_ptr(src.add(v * S::LANES)) }
        } else {
            // SAFETY: the rest of the 16 floats, as a slice.
            s.load(unsafe { std::slice::from_raw_parts(src.add(v * S::LANES), rest) })
        };
    }
    row
}

/// Writes a panel row to the 16 columns at `dst`.
///
/// # Safety
/// 16 floats can be written at `dst`, and nothing else accesses them meanwhile.
#[inline(always)]
pub(crate) unsafe fn store_row<S: Simd>(s: S, dst: *mut f32, row: S::Row) {
    for v in 0..const { PANEL.div_ceil(S::LANES) } {
        let rest = PANEL - v * S::LANES;
        // SAFETY: lanes v * LANES .. of the 16 floats. The length is a constant, so `store` has no branch left.
        let cells = unsafe { std::slice::from_raw_parts_mut(dst.add(v * S::LANES), rest.min(S::LANES)) };
        s.store(cells, row.as_ref()[v]);
    }
}
