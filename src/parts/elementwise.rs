//! Passes of their own over the elements of a value, and what their gradients are multiplied by.

use crate::Activation;
use crate::gemm::epilogue::{Aux, Post};
use crate::program::build::Builder;
use crate::program::step::{Beside, Posts, Step, Val};

/// An activation that has been emitted: how its derivative is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Slope {
    /// It is the identity.
    One,
    /// Kept beside the result.
    Kept(Val),
    /// From the result.
    Told(Val),
}

impl Slope {
    /// Of `phi`, whose result is `out` and stays so, or is hidden by what is done to it next.
    pub(super) fn new(b: &mut Builder, phi: Activation, out: Val, stays: bool) -> Self {
        match phi {
            Activation::Identity => Slope::One,
            _ if stays && phi.differentiates_from_output() => Slope::Told(out),
            _ => Slope::Kept(b.value("slope", b.cols(out))),
        }
    }

    pub(super) fn aux(self) -> Option<Beside<Val>> {
        if let Slope::Kept(to) = self { Some(Beside { what: Aux::Slope, to }) } else { None }
    }

    /// A gradient times it, by a pass of its own.
    pub(super) fn times(self, b: &mut Builder, name: &'static str, gradient: Val) -> Val {
        each(b, name, gradient, self.post())
    }

    /// What a gradient is multiplied by.
    pub(super) fn post(self) -> Option<Post<Val>> {
        match self {
            Slope::One => None,
            Slope::Kept(slope) => Some(Post::Times(slope)),
            Slope::Told(h) => Some(Post::Mask(h)),
        }
    }
}

/// out = phi(a), a pass of its own. `leaves`: whether the result may go to the caller, so that it is on no record.
pub(super) fn activate(b: &mut Builder, phi: Activation, a: Val, leaves: bool) -> (Val, Slope) {
    if phi == Activation::Identity {
        return (a, Slope::One);
    }
    let out = b.value("a", b.cols(a));
    let slope = Slope::new(b, phi, out, !leaves);
    b.step(Step::Each { a, posts: Posts::from_iter([Post::Act(phi)]), aux: slope.aux(), out });
    (out, slope)
}

/// out = posts(a), unless there is nothing to do.
pub(super) fn each(b: &mut Builder, name: &'static str, a: Val, posts: impl IntoIterator<Item = Post<Val>>) -> Val {
    let mut posts = posts.into_iter().peekable();
    if posts.peek().is_none() {
        return a;
    }
    let out = b.value(name, b.cols(a));
    b.step(Step::Each { a, posts: posts.collect(), aux: None, out });
    out
}
