//! Where chains start.

/// What the chains of a GEMM start from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'a> {
    /// 0.
    Zero,
    /// The bias of the column: 16 for each panel, the last padded.
    Bias(&'a [f32]),
    /// What the output holds: the chain of an earlier k block or of an earlier batch goes on.
    Continue,
}
