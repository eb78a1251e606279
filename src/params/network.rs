//! A network as a list of tensors, for code that needs no more of it.

use super::tensor::{TensorMut, TensorRef};
use crate::layers::Layer;

/// The parameters of a [`Layer`], in order. Used as a trait object, as [`crate::fused::Stages`] is: what is done to parameters is compiled
/// once, here, with this crate's optimisation, not again for each network type in each crate that uses one.
pub(crate) trait Parameters {
    fn visit<'a>(&'a self, see: &mut dyn FnMut(TensorRef<'a>));
    fn visit_mut<'a>(&'a mut self, see: &mut dyn FnMut(TensorMut<'a>));
}

impl<L: Layer> Parameters for L {
    fn visit<'a>(&'a self, see: &mut dyn FnMut(TensorRef<'a>)) {
        self.parameters().for_each(see);
    }
    fn visit_mut<'a>(&'a mut self, see: &mut dyn FnMut(TensorMut<'a>)) {
        self.parameters_mut().for_each(see);
    }
}
