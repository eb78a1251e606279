//! An optimiser as tensors.

use super::tensor::{Tensor, Values};
use crate::error::Error;
use crate::layers::Layer;
use crate::optim::{AdamW, Group, Optimizer, Sgd, State};
use crate::params::tensor::TensorRef;

/// What all names of optimiser tensors begin with; no parameter's does.
pub(super) const OPTIMIZER: &str = "optimizer.";

/// An optimiser whose state can be saved: [`Sgd`] or [`AdamW`]. (Sealed: a file names what it holds.)
pub trait SavedOptimizer: Optimizer + Parts {}

impl<O: Optimizer + Parts> SavedOptimizer for O {}

/// What there is to save of an optimiser.
#[allow(unreachable_pub, reason = "seals the public trait `SavedOptimizer`: nameable by nobody outside")]
pub trait Parts {
    /// Name in files.
    const NAME: &'static str;
    /// Names of the hyper-parameters, in the order of `parts`.
    const NUMBERS: &'static [&'static str];
    /// Names of the moments, PyTorch's, in the order of `State`.
    const MOMENTS: &'static [&'static str];

    /// Hyper-parameters, steps taken (where they matter), moments.
    fn parts(&self) -> (Vec<f32>, Option<u64>, &State);

    /// As `parts`, to be changed.
    fn parts_mut(&mut self) -> (Vec<&mut f32>, Option<&mut u64>, &mut State);

    /// The groups.
    fn groups(&self) -> &[Group];

    /// As `groups`, to be changed.
    fn groups_mut(&mut self) -> &mut Vec<Group>;
}

impl Parts for Sgd {
    const NAME: &'static str = "sgd";
    const NUMBERS: &'static [&'static str] = &["lr", "momentum", "weight_decay"];
    const MOMENTS: &'static [&'static str] = &["momentum_buffer"];

    fn parts(&self) -> (Vec<f32>, Option<u64>, &State) {
        (vec![self.lr, self.momentum, self.weight_decay], None, &self.state)
    }

    fn parts_mut(&mut self) -> (Vec<&mut f32>, Option<&mut u64>, &mut State) {
        (vec![&mut self.lr, &mut self.momentum, &mut self.weight_decay], None, &mut self.state)
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn groups_mut(&mut self) -> &mut Vec<Group> {
        &mut self.groups
    }
}

impl Parts for AdamW {
    const NAME: &'static str = "adamw";
    const NUMBERS: &'static [&'static str] = &["lr", "beta1", "beta2", "eps", "weight_decay"];
    const MOMENTS: &'static [&'static str] = &["exp_avg", "exp_avg_sq"];

    fn parts(&self) -> (Vec<f32>, Option<u64>, &State) {
        let numbers = vec![self.lr, self.betas.0, self.betas.1, self.eps, self.weight_decay];
        (numbers, Some(self.steps), &self.state)
    }

    fn parts_mut(&mut self) -> (Vec<&mut f32>, Option<&mut u64>, &mut State) {
        let (beta1, beta2) = (&mut self.betas.0, &mut self.betas.1);
        let numbers = vec![&mut self.lr, beta1, beta2, &mut self.eps, &mut self.weight_decay];
        (numbers, Some(&mut self.steps), &mut self.state)
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn groups_mut(&mut self) -> &mut Vec<Group> {
        &mut self.groups
    }
}

/// `optimizer.adamw.lr`, say.
pub(super) fn number_name<O: Parts>(number: &str) -> String {
    format!("{OPTIMIZER}{}.{number}", O::NAME)
}

/// `optimizer.adamw.exp_avg.blocks.3.first.weight`, say.
pub(super) fn moment_name<O: Parts>(moment: &str, parameter: impl std::fmt::Display) -> String {
    format!("{OPTIMIZER}{}.{moment}.{parameter}", O::NAME)
}

/// The name of the count of steps, for those that have one.
pub(super) const STEPS: &str = "steps";

/// `optimizer.adamw.step.blocks.3.first.weight`, say: how many steps that parameter has taken, PyTorch's `step`.
pub(super) fn step_name<O: Parts>(parameter: impl std::fmt::Display) -> String {
    moment_name::<O>("step", parameter)
}

/// The parameters that optimisers change, each with its number.
fn learned<L: Layer>(layer: &L) -> impl Iterator<Item = (usize, TensorRef<'_>)> {
    layer.parameters().enumerate().filter(|(_, p)| p.role().is_learned())
}

/// The steps that each parameter of `layer` has taken.
pub(super) fn step_counts<'a, L: Layer, O: Parts>(layer: &L, state: &State) -> impl Iterator<Item = Tensor<'a>> {
    let counts = learned(layer).map(|(i, p)| (step_name::<O>(p), state.steps(i)));
    counts.map(|(name, steps)| Tensor::number(name, Values::Count(steps)))
}

/// Every tensor of an optimiser of `layer`, with the moments that `state` has.
///
/// # Errors
/// [`Error::Mismatch`] if its state belongs to another network.
pub(super) fn tensors<'a, L: Layer, O: Parts>(
    layer: &'a L,
    optimizer: &O,
    state: &'a State,
) -> Result<Vec<Tensor<'a>>, Error> {
    let (numbers, steps, _) = optimizer.parts();
    state.check(layer)?;
    let mut tensors: Vec<Tensor<'a>> = O::NUMBERS
        .iter()
        .zip(numbers)
        .map(|(name, value)| Tensor::number(number_name::<O>(name), Values::Number(value)))
        .collect();
    tensors.extend(steps.map(|n| Tensor::number(number_name::<O>(STEPS), Values::Count(n))));
    for (at, moment) in O::MOMENTS.iter().enumerate() {
        tensors.extend(learned(layer).map(|(i, p)| {
            let values = state.moment(i, at).map_or(Values::Zeros, Values::Tensor);
            Tensor { name: moment_name::<O>(moment, p), values, ..Tensor::parameter(p) }
        }));
    }
    Ok(tensors)
}
