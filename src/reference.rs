//! The specification: what every operation computes, as naive loops over row-major slices.
//!
//! Written once, generic over [`Real`], and so read two ways. In f32 it is the **sequential oracle**: each output element is one
//! chain of fused multiply-adds in increasing k, and the kernels must equal it bit for bit. In f64, with activations from libm,
//! it is the **numerical reference**, for error bounds and gradient checks.
//!
//! Weights are (out, in), as PyTorch stores them: W1 is `h x d`, W2 is `d x h`. Panics (as any slice would) if a slice is shorter
//! than its shape says: this module is for tests and for reading, not for production.

pub use crate::parts::block::{
    BlockGrads, BlockOut, BlockParams, BlockTensors, FormOut, MapTensors, block, block_backward, form, form_backward,
};
pub use crate::parts::linear::{LinearGrads, LinearOut, linear, linear_backward};
pub use crate::parts::norm::{NormOut, NormTensors, Statistics, norm, norm_backward};
pub use crate::parts::spec::Real;
