//! What layers compute.

use crate::params::Spec;
use candle_core::{Error, Result};
use candle_nn::Init;
use resblock::{Activation, BlockForm, BranchScale, Functional, Norm, Part, Place, Role, Skip};

/// What a layer computes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Formula {
    /// A residual block of any form.
    Block(BlockForm),
    /// y = φ(x Wᵀ + b) (+ x).
    Linear {
        /// Features of x.
        inputs: usize,
        /// Features of y.
        outputs: usize,
        /// Whether there is a b.
        bias: bool,
        /// φ.
        activation: Activation,
        /// Whether x is added.
        residual: bool,
    },
    /// y = φ(N(x)).
    Norm {
        /// Features of x and y.
        width: usize,
        /// N.
        norm: Norm,
        /// φ.
        activation: Activation,
    },
}

impl From<BlockForm> for Formula {
    fn from(form: BlockForm) -> Self {
        Self::Block(form)
    }
}

impl Formula {
    /// y = φ(x Wᵀ + b).
    pub const fn linear(inputs: usize, outputs: usize, activation: Activation) -> Self {
        Self::Linear { inputs, outputs, bias: true, activation, residual: false }
    }

    /// y = N(x): a norm with a gradient.
    pub const fn norm(width: usize, norm: Norm) -> Self {
        Self::Norm { width, norm, activation: Activation::Identity }
    }

    /// Compiled.
    pub(crate) fn functional(&self) -> Result<Functional> {
        let functional = match *self {
            Self::Block(form) => Functional::form(&form),
            Self::Linear { inputs, outputs, activation, residual, .. } => {
                let skip = if residual { Skip::Identity } else { Skip::None };
                Functional::linear(inputs, outputs, activation, skip)
            }
            Self::Norm { width, norm, activation } => Functional::norm(width, norm, activation),
        };
        functional.map_err(Error::wrap)
    }

    /// What a new parameter is.
    pub(crate) fn initial(&self, spec: &Spec) -> Init {
        let scale = match (self, spec.name.place.part) {
            (Self::Block(form), Part::First | Part::Third) => form.init_scales[0],
            (Self::Block(form), Part::Second) => form.init_scales[1],
            _ => 1.0,
        };
        match (self, spec.name.role) {
            // Kaiming, over the inputs, as `candle_nn::linear`.
            (_, Role::Weight) => {
                Init::Randn { mean: 0.0, stdev: f64::from(scale) * (2.0 / spec.cols.max(1) as f64).sqrt() }
            }
            (_, Role::Gain | Role::RunningVariance) => Init::Const(1.0),
            (Self::Block(form), Role::Scale) => match form.branch_scale {
                BranchScale::Scalar(from) | BranchScale::Vector(from) => Init::Const(from.into()),
                _ => Init::Const(1.0),
            },
            _ => Init::Const(0.0),
        }
    }

    /// Its parameters, in the order in which layers take them.
    pub(crate) fn tensors(&self) -> Result<Vec<Spec>> {
        Ok(match *self {
            Self::Block(form) => form.tensors().map(|(name, shape)| Spec::new(name, shape)).collect(),
            Self::Linear { inputs, outputs, bias, .. } => {
                let weight = Spec::new(Part::Linear.weight(), (outputs, inputs));
                let bias = bias.then(|| Spec::new(Part::Linear.bias(), (1, outputs)));
                [Some(weight), bias].into_iter().flatten().collect()
            }
            Self::Norm { width, norm, .. } => {
                let at = Place::from(Part::Norm);
                norm.roles().map(|role| Spec::new(at.tensor(role), (1, width))).collect()
            }
        })
    }
}
