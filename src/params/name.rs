//! Names of tensors: stable paths, such as `blocks.3.first.weight`, that compare as a few integers.

use std::fmt;

/// What a tensor is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Role {
    /// The matrix of an affine map, (outputs, inputs).
    Weight,
    /// What an affine map adds, one number for each output.
    Bias,
    /// γ of a norm, one number for each feature.
    Gain,
    /// β of a norm, one number for each feature.
    Shift,
    /// What a branch is multiplied by: one number, or one for each output.
    Scale,
    /// The running average of the mean of a BatchNorm, one number for each feature. It has no gradient.
    RunningMean,
    /// The running average of the variance of a BatchNorm, one number for each feature. It has no gradient.
    RunningVariance,
}

impl Role {
    /// Every role.
    #[cfg(feature = "safetensors")]
    pub(crate) const ALL: [Self; 7] =
        [Self::Weight, Self::Bias, Self::Gain, Self::Shift, Self::Scale, Self::RunningMean, Self::RunningVariance];

    /// Whether it is stored as panels of its transpose: weights are, (inputs, outputs).
    pub(crate) fn is_transposed(self) -> bool {
        self == Role::Weight
    }

    /// Whether it is learned: has a gradient, by which optimisers change it. Running averages are not; a step brings them up to date by itself
    /// ([`crate::Layer::update_statistics`]).
    pub fn is_learned(self) -> bool {
        !matches!(self, Role::RunningMean | Role::RunningVariance)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Weight => "weight",
            Role::Bias => "bias",
            Role::Gain => "gain",
            Role::Shift => "shift",
            Role::Scale => "scale",
            Role::RunningMean => "running_mean",
            Role::RunningVariance => "running_var",
        })
    }
}

/// Which map of a layer, or which other place with parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Part {
    /// The only one of a [`crate::Linear`].
    Linear,
    /// W1, b1 of a [`crate::Block`].
    First,
    /// W2, b2 of a [`crate::Block`].
    Second,
    /// W3, b3 of a gated [`crate::Block`].
    Third,
    /// The projection on the skip of a [`crate::Block`].
    Shortcut,
    /// The norm of the input of a [`crate::Block`].
    PreNorm,
    /// The norm before the activation of a [`crate::Block`].
    InnerNorm,
    /// The norm after the skip of a [`crate::Block`].
    PostNorm,
    /// The norm of the branch of a [`crate::Block`].
    BranchNorm,
    /// The branch of a [`crate::Block`], which may have a scale.
    Branch,
    /// The only one of a [`crate::NormLayer`].
    Norm,
    /// The input projection of a [`crate::Stack`].
    Input,
    /// The output projection of a [`crate::Stack`].
    Output,
}

impl Part {
    /// Every part.
    #[cfg(feature = "safetensors")]
    pub(crate) const ALL: [Self; 13] = [
        Self::Linear,
        Self::First,
        Self::Second,
        Self::Third,
        Self::Shortcut,
        Self::PreNorm,
        Self::InnerNorm,
        Self::PostNorm,
        Self::BranchNorm,
        Self::Branch,
        Self::Norm,
        Self::Input,
        Self::Output,
    ];

    /// This part of layer `layer` of a [`crate::Sequence`].
    pub const fn in_layer(self, layer: usize) -> Place {
        Place { layer: Some(layer), block: None, part: self }
    }

    /// This part of block `block` of a [`crate::Stack`].
    pub const fn in_block(self, block: usize) -> Place {
        Place { layer: None, block: Some(block), part: self }
    }

    /// Its weights, outside of the blocks of a stack.
    pub const fn weight(self) -> TensorName {
        Place { layer: None, block: None, part: self }.weight()
    }

    /// Its bias, outside of the blocks of a stack.
    pub const fn bias(self) -> TensorName {
        Place { layer: None, block: None, part: self }.bias()
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Part::Linear => "linear",
            Part::First => "first",
            Part::Second => "second",
            Part::Third => "third",
            Part::Shortcut => "shortcut",
            Part::PreNorm => "pre_norm",
            Part::InnerNorm => "inner_norm",
            Part::PostNorm => "post_norm",
            Part::BranchNorm => "branch_norm",
            Part::Branch => "branch",
            Part::Norm => "norm",
            Part::Input => "input",
            Part::Output => "output",
        })
    }
}

/// Where in a network a map is. Displays as a path: `input`, `blocks.3.first`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The layer of a [`crate::Sequence`], if it is in one.
    pub layer: Option<usize>,
    /// The block of a [`crate::Stack`], if it is in one.
    pub block: Option<usize>,
    /// Which map of the block, or of the network.
    pub part: Part,
}

impl Place {
    /// The tensor that has this role here.
    pub const fn tensor(self, role: Role) -> TensorName {
        TensorName { place: self, role }
    }

    /// The weights here.
    pub const fn weight(self) -> TensorName {
        self.tensor(Role::Weight)
    }

    /// The bias here.
    pub const fn bias(self) -> TensorName {
        self.tensor(Role::Bias)
    }
}

/// Where in a network a layer is.
#[derive(Debug, Clone, Copy, Default)]
#[allow(unreachable_pub, reason = "in the sealed trait `Compiled`: nameable by nobody outside")]
pub struct Within {
    pub(crate) layer: Option<usize>,
    pub(crate) block: Option<usize>,
}

impl Within {
    /// A part of the layer.
    pub(crate) fn part(self, part: Part) -> Place {
        Place { layer: self.layer, block: self.block, part }
    }
}

impl From<Part> for Place {
    /// Outside of the blocks of a stack.
    fn from(part: Part) -> Self {
        Self { layer: None, block: None, part }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "layers.{layer}.")?;
        }
        if let Some(block) = self.block {
            write!(f, "blocks.{block}.")?;
        }
        write!(f, "{}", self.part)
    }
}

/// The name of a tensor of a network: of a parameter, of its gradient and of its moments alike. Displays as a path,
/// `blocks.3.first.weight` say, which is also its name in files.
///
/// ```
/// use resblock::Part;
/// assert_eq!(Part::First.in_block(3).weight().to_string(), "blocks.3.first.weight");
/// assert_eq!(Part::Output.bias().to_string(), "output.bias");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorName {
    /// Whose tensor it is.
    pub place: Place,
    /// Which of the tensors there.
    pub role: Role,
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.place, self.role)
    }
}
