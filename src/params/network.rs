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
        // By numbers, not by `parameters`: what chained iterators keep in memory takes longer than the rest of a visit.
        for i in 0..self.affine_count() {
            if let Some(map) = self.affine(i) {
                map.tensors(self.affine_name(i)).for_each(&mut *see);
            }
        }
    }
    fn visit_mut<'a>(&'a mut self, see: &mut dyn FnMut(TensorMut<'a>)) {
        self.parameters_mut().for_each(see);
    }
}
