//! A network as a list of affine maps, for code that needs no more of it.

use super::Layer;
use crate::weights::Affine;

/// The affine maps of a [`Layer`], by number. Used as a trait object, as [`crate::run::source::Source`] is: what is done to parameters is compiled
/// once, here, with this crate's optimisation, not again for each network type in each crate that uses one.
pub(crate) trait Affines {
    /// Number of affine maps.
    fn count(&self) -> usize;
    /// Affine map `index`.
    fn get(&self, index: usize) -> Option<&Affine>;
    /// Affine map `index`, to be changed.
    fn get_mut(&mut self, index: usize) -> Option<&mut Affine>;
}

impl<L: Layer> Affines for L {
    fn count(&self) -> usize {
        self.affine_count()
    }
    fn get(&self, index: usize) -> Option<&Affine> {
        self.affine(index)
    }
    fn get_mut(&mut self, index: usize) -> Option<&mut Affine> {
        self.affine_mut(index)
    }
}
