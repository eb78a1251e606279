//! Where a call finds its weights, and where it leaves their gradients.

use crate::gemm::factor::Factor;
use crate::program::Side;

/// The weights of a network, by the number of the affine map. `Program::check` has seen that each is there and of its size.
pub(crate) trait Source: Sync {
    /// The operand of a GEMM: Wᵀ forward, W backward.
    fn factor(&self, affine: usize, side: Side) -> Factor<'_>;
    /// The bias, if there is one, padded to whole panels.
    fn bias(&self, affine: usize) -> Option<&[f32]>;
}
