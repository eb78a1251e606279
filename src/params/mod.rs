//! The table of tensors of a network: each has a name, a role and a shape, and one type describes parameters, gradients, moments of
//! optimisers and what a file holds. Row i of every table is tensor i of [`crate::Layer::parameters`].

pub(crate) mod borrowed;
mod clip;
pub(crate) mod convention;
pub(crate) mod gradients;
pub(crate) mod name;
pub(crate) mod network;
pub(crate) mod summary;
mod sums;
pub(crate) mod table;
pub(crate) mod tensor;
