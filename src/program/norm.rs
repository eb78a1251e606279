//! Norms, as data.

use crate::error::Error;
use crate::params::name::Role;

/// What a [`Norm`] takes mean and variance of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum NormKind {
    /// Of each row: LayerNorm.
    Layer,
    /// The mean of squares of each row, without a mean: RMSNorm.
    Rms,
    /// Of each column over the rows of the batch: BatchNorm. They are those of the batch in a recorded pass, and running averages in inference and
    /// where statistics are frozen ([`crate::Context::with_frozen_statistics`]); a step brings the averages up to date
    /// ([`crate::Layer::update_statistics`]).
    Batch,
}

/// A norm: x̂ = (x - mean) / sqrt(variance + ε), and then γ x̂ + β.
///
/// The variance is that of the row or the column itself, divided by the number of values.
///
/// Sums along a row are 16 chains, one for each column modulo 16, and a fixed tree over these; variance in a second pass over x - mean: the same bits
/// whatever batch a row comes in. Down a column, pieces of 32 rows of the batch have a mean and a sum of squares around it each, in two chains;
/// pieces are combined in order, in f64, by the formula of Chan, Golub and LeVeque (1979), and rounded at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Norm {
    /// What mean and variance are taken of.
    pub kind: NormKind,
    /// ε, larger than 0.
    pub epsilon: f32,
    /// Whether there is a γ, one for each feature.
    pub gain: bool,
    /// Whether there is a β, one for each feature.
    pub shift: bool,
}

impl Norm {
    /// LayerNorm (Ba et al. 2016), with gain and shift. ε is 1e-5 in PyTorch, 1e-12 in BERT.
    pub const fn layer(epsilon: f32) -> Self {
        Self { kind: NormKind::Layer, epsilon, gain: true, shift: true }
    }

    /// RMSNorm (Zhang and Sennrich 2019), with a gain. ε is 1e-6 in T5, 1e-5 in Llama.
    pub const fn rms(epsilon: f32) -> Self {
        Self { kind: NormKind::Rms, epsilon, gain: true, shift: false }
    }

    /// BatchNorm (Ioffe and Szegedy 2015), with gain and shift. ε is 1e-5 in PyTorch.
    pub const fn batch(epsilon: f32) -> Self {
        Self { kind: NormKind::Batch, epsilon, gain: true, shift: true }
    }

    /// What it is, in words. Files have these, to tell networks apart (`checkpoint::architecture`): they do not change.
    pub(crate) fn formula(self) -> String {
        let name = match self.kind {
            NormKind::Layer => "LayerNorm",
            NormKind::Rms => "RMSNorm",
            NormKind::Batch => "BatchNorm",
        };
        let gain = if self.gain { ", γ" } else { "" };
        format!("{name}(ε {}{gain}{})", self.epsilon, if self.shift { ", β" } else { "" })
    }

    /// The vectors that it has, in order: γ, β, and the running averages of mean and variance of a batch.
    pub fn roles(self) -> impl Iterator<Item = Role> {
        let running = self.kind == NormKind::Batch;
        let all = [
            (self.gain, Role::Gain),
            (self.shift, Role::Shift),
            (running, Role::RunningMean),
            (running, Role::RunningVariance),
        ];
        all.into_iter().filter_map(|(there, role)| there.then_some(role))
    }

    pub(crate) fn check(self, operand: &'static str, width: usize) -> Result<(), Error> {
        let Self { epsilon, .. } = self;
        if !(epsilon > 0.0 && epsilon.is_finite()) {
            return Err(Error::Setting { operand: "epsilon", reason: "of a norm must be finite and larger than 0" });
        }
        if width == 0 {
            return Err(Error::Setting { operand, reason: "there is no norm of no features" });
        }
        Ok(())
    }
}
