//! Learning rates over the steps of a run.

use super::{require, require_not_negative};
use crate::error::Error;

/// How a rate falls after the warm-up of a [`Schedule`]. Steps are counted from the start of the run.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RateDecay {
    /// It does not.
    None,
    /// Evenly to `floor`.
    Linear {
        /// The first step at the floor: the number of steps of the run, say. Past the warm-up.
        end: u64,
        /// What the rate falls to: between 0 and the peak.
        floor: f32,
    },
    /// By half a cosine to `floor` (Loshchilov and Hutter 2017): slowly, fast, slowly.
    Cosine {
        /// The first step at the floor: the number of steps of the run, say. Past the warm-up.
        end: u64,
        /// What the rate falls to: between 0 and the peak.
        floor: f32,
    },
    /// By a factor every so many steps.
    Stairs {
        /// Steps at one rate: 1 at least.
        every: u64,
        /// From one rate to the next: between 0 and 1.
        factor: f32,
    },
}

/// The learning rate of each step of a run: a warm-up, then a decay. A plain value: the loop asks it, and sets the rate of its optimiser.
///
/// For step t = 0, 1, ..., a warm-up of w steps, u = min(1, (t - w) / (end - w)):
///
/// ```text
/// t < w       peak (t + 1) / (w + 1)
/// None        peak
/// Linear      (1 - u) peak + u floor
/// Cosine      (1 - c) peak + c floor,  c = (1 - cos(π u)) / 2
/// Stairs      peak factor^⌊(t - w) / every⌋
/// ```
///
/// in f64 and by libm, then rounded to f32: the same bits everywhere. The peak is first reached at step w, the floor at step `end`, both
/// exactly.
///
/// ```
/// use resblock::{AdamW, RateDecay, Schedule};
///
/// # fn main() -> Result<(), resblock::Error> {
/// let steps = 1000;
/// let schedule = Schedule::new(1e-3, 100, RateDecay::Cosine { end: steps, floor: 1e-5 })?;
/// let mut adam = AdamW::new(0.0);
/// for step in adam.steps()..steps { // so that a resumed run goes on where it stopped
///     adam.lr = schedule.rate(step);
///     // forward, backward, adam.step(...)
/// }
/// assert_eq!((schedule.rate(100), schedule.rate(550), schedule.rate(1000)), (1e-3, 5.05e-4, 1e-5));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    peak: f32,
    warm_up: u64,
    decay: RateDecay,
}

impl Schedule {
    /// The same rate at every step.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is negative or not finite.
    pub fn constant(rate: f32) -> Result<Self, Error> {
        Self::new(rate, 0, RateDecay::None)
    }

    /// `warm_up` steps below the peak, none perhaps, then a decay from it.
    ///
    /// # Errors
    /// [`Error::Setting`] if the peak is negative or not finite, or what the decay has is outside the range that [`RateDecay`] says.
    pub fn new(peak: f32, warm_up: u64, decay: RateDecay) -> Result<Self, Error> {
        require_not_negative("peak", peak)?;
        match decay {
            RateDecay::None => {}
            RateDecay::Linear { end, floor } | RateDecay::Cosine { end, floor } => {
                require("end", end > warm_up, "must be past the warm-up")?;
                require("floor", (0.0..=peak).contains(&floor), "must be between 0 and the peak")?;
            }
            RateDecay::Stairs { every, factor } => {
                require("every", every > 0, "must be 1 at least")?;
                require("factor", (0.0..=1.0).contains(&factor), "must be between 0 and 1")?;
            }
        }
        Ok(Self { peak, warm_up, decay })
    }

    /// The rate of step `step`, from 0 on: of the first step after so many have been taken.
    pub fn rate(&self, step: u64) -> f32 {
        let peak = f64::from(self.peak);
        let Some(past) = step.checked_sub(self.warm_up) else {
            return (peak * (step as f64 + 1.0) / (self.warm_up as f64 + 1.0)) as f32;
        };
        let share = |end: u64| (past as f64 / (end - self.warm_up) as f64).min(1.0);
        let between = |u: f64, floor: f32| (1.0 - u) * peak + u * f64::from(floor);
        let rate = match self.decay {
            RateDecay::None => peak,
            RateDecay::Linear { end, floor } => between(share(end), floor),
            RateDecay::Cosine { end, floor } => {
                between((1.0 - libm::cos(std::f64::consts::PI * share(end))) / 2.0, floor)
            }
            RateDecay::Stairs { every, factor } => peak * libm::pow(factor.into(), (past / every) as f64),
        };
        rate as f32
    }
}
