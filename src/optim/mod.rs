//! Optimisers, in place on parameters as they are stored: elementwise, so layout does not matter. The same
//! bits on every instruction set (fma, IEEE division and square root).

mod adamw;
mod decay;
mod group;
mod schedule;
mod sgd;
mod state;

pub use adamw::AdamW;
pub use group::{Group, Select};
pub use schedule::{RateDecay, Schedule};
pub use sgd::Sgd;
#[cfg(feature = "safetensors")]
pub(crate) use state::State;

use crate::context::Context;
use crate::error::Error;
use crate::layers::Layer;
use crate::params::gradients::Gradients;
use crate::simd::Simd;

/// Changes the parameters of a network by its gradients.
pub trait Optimizer {
    /// One step. Parameters whose gradient was declined stay as they are, and so does what the optimiser keeps for them. State is made at
    /// the first step; later ones allocate nothing.
    ///
    /// # Errors
    /// [`Error::Setting`] if a public field of the optimiser is outside the range that its documentation gives; [`Error::Mismatch`] if
    /// gradients or the optimiser's state belong to another network, [`Error::Memory`] if there is no memory for the state. Nothing is
    /// changed then.
    fn step<L: Layer>(&mut self, ctx: &Context, layer: &mut L, grads: &Gradients) -> Result<(), Error>;

    /// The Euclidean norm of `grads`, if a step may be taken by them: if every one is finite and small enough for this optimiser. One pass
    /// over them, the one that the norm needs. [`Gradients::clip_norm`] looks at gradients before it clips them, and leaves none that is
    /// too large.
    ///
    /// # Errors
    /// [`Error::Gradient`] with the first gradient that is NaN, infinite or too large, and their number.
    fn check_gradients(&self, ctx: &Context, grads: &Gradients) -> Result<f64, Error> {
        grads.norm_within(ctx, f32::MAX)
    }

    /// [`Optimizer::check_gradients`], then [`Optimizer::step`]: a bad batch can neither stop a weight for ever nor make it NaN. Returns the
    /// norm of the gradients.
    ///
    /// # Errors
    /// As these two. Nothing is changed then.
    fn step_checked<L: Layer>(&mut self, ctx: &Context, layer: &mut L, grads: &Gradients) -> Result<f64, Error> {
        let norm = self.check_gradients(ctx, grads)?;
        self.step(ctx, layer, grads)?;
        Ok(norm)
    }
}

/// A setting that must hold.
fn require(operand: &'static str, holds: bool, reason: &'static str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Setting { operand, reason }) }
}

/// A setting that must be finite and not negative.
fn require_not_negative(operand: &'static str, value: f32) -> Result<(), Error> {
    require(operand, value.is_finite() && value >= 0.0, "must be finite and not negative")
}

/// A setting that must be in [0, 1).
fn require_below_one(operand: &'static str, value: f32) -> Result<(), Error> {
    require(operand, (0.0..1.0).contains(&value), "must be at least 0 and below 1")
}

/// `value`, or +0 where its magnitude is below `least`. NaN stays.
#[inline(always)]
fn flush<S: Simd>(s: S, value: S::V, least: S::V) -> S::V {
    s.select(s.gt(least, s.abs(value)), s.splat(0.0), value)
}
