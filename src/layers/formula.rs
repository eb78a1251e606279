//! `Formula`: what a layer computes, as data.

use super::functional::Functional;
use crate::Activation;
use crate::error::Error;
use crate::params::name::{Part, Place, TensorName};
use crate::program::form::{BlockForm, Skip};
use crate::program::norm::Norm;

/// What a layer computes, as data, for hosts that keep parameters themselves: which parameters there are, and how they are called with
/// ([`Functional::formulas`]). With feature `serde` it can be written down.
///
/// ```
/// # #[cfg(feature = "serde")] {
/// use resblock::{BlockForm, Formula};
/// let formula = Formula::Block(BlockForm::llama(64, 256));
/// let text = serde_json::to_string(&formula).unwrap();
/// assert_eq!(serde_json::from_str::<Formula>(&text).unwrap(), formula);
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
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

    /// y = N(x).
    pub const fn norm(width: usize, norm: Norm) -> Self {
        Self::Norm { width, norm, activation: Activation::Identity }
    }

    /// Its parameters, in the order in which calls take them: names, and (outputs, inputs) of weights or (1, length) of all else. What comes with role
    /// [`crate::Role::Weight`] is the weights of an affine map, [`crate::Role::Bias`] the bias of the last one, and the rest are vectors.
    ///
    /// ```
    /// use resblock::{Activation, Formula};
    /// let tensors = Formula::linear(3, 4, Activation::Relu).tensors();
    /// let tensors: Vec<_> = tensors.iter().map(|(name, shape)| (name.to_string(), *shape)).collect();
    /// assert_eq!(tensors, [("linear.weight".into(), (4, 3)), ("linear.bias".into(), (1, 4))]);
    /// ```
    pub fn tensors(&self) -> Vec<(TensorName, (usize, usize))> {
        match *self {
            Self::Block(form) => form.tensors().collect(),
            Self::Linear { inputs, outputs, bias, .. } => {
                let bias = bias.then(|| (Part::Linear.bias(), (1, outputs)));
                [Some((Part::Linear.weight(), (outputs, inputs))), bias].into_iter().flatten().collect()
            }
            Self::Norm { width, norm, .. } => {
                let at = Place::from(Part::Norm);
                norm.roles().map(|role| (at.tensor(role), (1, width))).collect()
            }
        }
    }
}

impl Functional {
    /// One formula after the other, as one network: [`Functional::chain`] of [`Functional::form`], [`Functional::linear`] and [`Functional::norm`].
    ///
    /// # Errors
    /// As these.
    pub fn formulas(formulas: &[Formula]) -> Result<Self, Error> {
        let functional = |formula: &Formula| match *formula {
            Formula::Block(form) => Self::form(&form),
            Formula::Linear { inputs, outputs, activation, residual, .. } => {
                let skip = if residual { Skip::Identity } else { Skip::None };
                Self::linear(inputs, outputs, activation, skip)
            }
            Formula::Norm { width, norm, activation } => Self::norm(width, norm, activation),
        };
        Self::chain(&formulas.iter().map(functional).collect::<Result<Vec<_>, _>>()?)
    }
}
