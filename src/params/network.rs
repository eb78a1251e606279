//! A network as a list of tensors, for code that needs no more of it.

use super::tensor::{TensorMut, TensorRef};

/// The parameters of a [`crate::Layer`], in order. Used as a trait object, as `run::source::Source` is: what is done to parameters is compiled
/// once, here, with this crate's optimisation, not again for each network type in each crate that uses one.
pub(crate) trait Parameters {
    fn visit<'a>(&'a self, see: &mut dyn FnMut(TensorRef<'a>));
    fn visit_mut<'a>(&'a mut self, see: &mut dyn FnMut(TensorMut<'a>));
}
