//! Why a layer was not made, or a call refused.

use burn::tensor::DType;

/// Why a layer was not made, or a call refused: before anything is recorded. [`crate::Fused::forward`] panics with its text, as burn's own modules do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong shape.
    #[error("resblock: {operand}: expected shape {expected}, found {found:?}")]
    Shape {
        /// x, or the parameter's name.
        operand: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: Vec<usize>,
    },
    /// A tensor is not of f32.
    #[error("resblock: {operand}: expected type F32, found {found:?}")]
    Type {
        /// x, or the parameter's name.
        operand: String,
        /// What it is of.
        found: DType,
    },
    /// A tensor is elsewhere than on burn's Flex device, where kernels could read it.
    #[error("resblock: {operand}: expected a tensor on the Flex device, with or without autodiff, found {found}")]
    Device {
        /// x, or the parameter's name.
        operand: String,
        /// Where it is.
        found: String,
    },
    /// x and the parameters are of graphs with different checkpointing, which burn does not join.
    #[error("resblock: {operand}: another strategy of gradient checkpointing than the tensors before it")]
    Checkpointing {
        /// x, or the parameter's name.
        operand: String,
    },
    /// Another number of maps, biases, vectors or running averages than the formula has.
    #[error("resblock: expected {expected} {what}, found {found}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// More tensors want a gradient than one operation has: a longer chain is made of two.
    #[error("resblock: {found} tensors want a gradient, and one operation has at most {most}")]
    TooMany {
        /// How many one operation has.
        most: usize,
        /// How many want one.
        found: usize,
    },
    /// What the core crate refuses: a formula that contradicts itself, memory that the system does not give.
    #[error("resblock: {0}")]
    Core(#[from] resblock::Error),
}
