//! The transposed twin of a weight matrix: panels of W made from panels of Wᵀ.
//!
//! In panels, a 16 x 16 block of the source is 1 KiB in one piece, and so is its transpose in the destination: block (p, q) of
//! one is block (q, p) of the other.

use super::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::simd::{Isa, Kernel, Simd};

/// Floats in a block of 16 rows of 16.
const BLOCK: usize = PANEL * PANEL;

/// `to` = transpose of `from`; the shapes must be each other's mirror image. Padding of `to` becomes what `from` has below its
/// last row: zero.
pub(crate) fn transpose(isa: Isa, from: PanelRef<'_>, to: PanelMut<'_>) {
    assert_eq!((to.as_ref().rows(), to.as_ref().cols()), (from.cols(), from.rows()), "shape of the transpose");
    isa.run(Transpose { from, to: to.into_data() });
}

struct Transpose<'a> {
    from: PanelRef<'a>,
    to: &'a mut [f32],
}

impl Kernel for Transpose<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (rows, cols) = (self.from.rows(), self.from.cols());
        for p in 0..panels(cols) {
            let source = &self.from.data()[p * self.from.stride()..][..self.from.stride()];
            let height = PANEL.min(cols - p * PANEL); // rows of the transposed block
            for q in 0..panels(rows) {
                let width = PANEL.min(rows - q * PANEL);
                let from = &source[q * BLOCK..][..width * PANEL];
                let to = &mut self.to[(q * cols + p * PANEL) * PANEL..][..height * PANEL];
                if let (Some(from), Some(to)) = (from.first_chunk(), to.first_chunk_mut()) {
                    s.transpose(from, to);
                } else {
                    let (mut whole, mut transposed) = ([0.0; BLOCK], [0.0; BLOCK]);
                    whole[..from.len()].copy_from_slice(from);
                    s.transpose(&whole, &mut transposed);
                    to.copy_from_slice(&transposed[..to.len()]);
                }
            }
        }
    }
}
