//! Weight gradients of a few rows: outer products, bound by the memory that they are written to.
//!
//! A register tile reads its operands k by k, which pays when k is long. With a handful of k, the rows of one panel of the vector
//! operand stay in registers instead, and the gradient is written in the order of memory, a line for each row.

use super::cells::{In, Out};
use super::panels::{PANEL, PanelRef};
use super::start::Start;
use crate::simd::{Kernel, Simd};

/// Longest chain taken here: with its accumulator and a broadcast, 8 rows fill 10 registers of AVX-512, 5 rows 13 of AVX2's 16
/// and 25 of NEON's 32. With 6 rows on AVX2, tiles are as fast; with 4 they took a third longer at (4, 128, 128).
pub(super) const fn most_rows<S: Simd>() -> usize {
    match PANEL.div_ceil(S::LANES) {
        1 => 8,
        _ => 5,
    }
}

/// out = start + aᵀ b for panel `panel` of b and all columns of a that fill panels.
pub(super) struct Outer<'s, 'o, 'a> {
    pub(super) a: PanelRef<'a>,
    pub(super) b: PanelRef<'a>,
    pub(super) start: Start<'a>,
    /// Whether to write past the caches.
    pub(super) stream: bool,
    pub(super) out: &'s mut Out<'o>,
}

impl Outer<'_, '_, '_> {
    /// Does panel `panel` of b and the whole panels of a, and says how many these are: 0 if that of b is not whole.
    #[inline(always)]
    pub(super) fn panel<S: Simd>(&mut self, s: S, panel: usize) -> usize {
        if (panel + 1) * PANEL > self.b.cols() {
            return 0;
        }
        macro_rules! rows {
            ($($k:literal)*) => {$(
                if const { $k <= most_rows::<S>() } && self.a.rows() == $k {
                    s.call(OuterPanel::<$k> { outer: self, panel });
                    return self.a.cols() / PANEL;
                }
            )*};
        }
        rows!(1 2 3 4 5 6 7 8);
        0
    }
}

struct OuterPanel<'t, 's, 'o, 'a, const K: usize> {
    outer: &'t mut Outer<'s, 'o, 'a>,
    panel: usize,
}

impl<const K: usize> Kernel for OuterPanel<'_, '_, '_, '_, K> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { outer: Outer { a, b, start, stream, out }, panel } = self;
        let zero = s.row(s.splat(0.0));
        let Some(window) = In::from(*b).window::<K, 1>(0, panel) else { return };
        let mut rows = [zero; K];
        for k in 0..K {
            rows[k] = window.load(s, k, 0);
        }
        let stream = *stream && matches!(start, Start::Zero) && const { PANEL.is_multiple_of(S::LANES) };
        for (q, a) in a.data().chunks_exact(PANEL * K).take(a.cols() / PANEL).enumerate() {
            let Some(mut out) = out.window_mut::<PANEL, 1>(q * PANEL, panel) else { break };
            let stream = stream && out.is_aligned();
            for lane in 0..PANEL {
                let mut acc = if let Start::Continue = start { out.load(s, lane, 0) } else { zero };
                for k in 0..K {
                    let x = s.splat(a[k * PANEL + lane]);
                    for v in 0..const { PANEL.div_ceil(S::LANES) } {
                        acc.as_mut()[v] = s.fma(x, rows[k].as_ref()[v], acc.as_ref()[v]);
                    }
                }
                if stream {
                    // SAFETY: `is_aligned` has just been asked; the fence is below.
                    unsafe { out.stream(s, lane, 0, acc) };
                } else {
                    out.store(s, lane, 0, acc);
                }
            }
        }
        if stream {
            s.fence();
        }
    }
}
