//! Parameters that an optimiser treats otherwise than the rest.

use super::require_not_negative;
use crate::error::Error;
use crate::params::name::{Part, Role, TensorName};
use std::ops::Range;

/// Some of the tensors of a network: those that meet every condition. A role, a part or a name is one, too.
///
/// ```
/// use resblock::{Part, Role, Select};
///
/// let select = Select::all().part(Part::First).blocks(0..3);
/// assert!(select.contains(Part::First.in_block(2).bias()));
/// assert!(!select.contains(Part::First.in_block(3).bias()));
/// assert!(Select::from(Role::Bias).contains(Part::Output.bias()));
/// assert!(!Select::from(Part::Output.bias()).contains(Part::Input.bias()));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Select {
    pub(crate) role: Option<Role>,
    pub(crate) part: Option<Part>,
    /// First block, and the one after the last.
    pub(crate) blocks: Option<(usize, usize)>,
}

impl Select {
    /// Every tensor.
    pub fn all() -> Self {
        Self::default()
    }

    /// Those of them that have this role.
    pub fn role(self, role: Role) -> Self {
        Self { role: Some(role), ..self }
    }

    /// Those of them that are of this part.
    pub fn part(self, part: Part) -> Self {
        Self { part: Some(part), ..self }
    }

    /// Those of them that are in these blocks of a [`crate::Stack`].
    pub fn blocks(self, blocks: Range<usize>) -> Self {
        Self { blocks: Some((blocks.start, blocks.end)), ..self }
    }

    /// Whether a tensor is one of them.
    pub fn contains(&self, TensorName { place, role }: TensorName) -> bool {
        let inside = |(start, end): (usize, usize)| place.block.is_some_and(|block| (start..end).contains(&block));
        self.role.is_none_or(|other| other == role)
            && self.part.is_none_or(|part| part == place.part)
            && self.blocks.is_none_or(inside)
    }
}

impl From<Role> for Select {
    fn from(role: Role) -> Self {
        Self::all().role(role)
    }
}

impl From<Part> for Select {
    fn from(part: Part) -> Self {
        Self::all().part(part)
    }
}

impl From<TensorName> for Select {
    fn from(TensorName { place, role }: TensorName) -> Self {
        let blocks = place.block.map(|block| (block, block.saturating_add(1)));
        Self { role: Some(role), part: Some(place.part), blocks }
    }
}

/// What an optimiser does otherwise for some parameters. Of its groups, the first that has a parameter decides.
///
/// ```
/// use resblock::{AdamW, Group, Part, Role};
///
/// let mut adam = AdamW::new(1e-3);
/// adam.groups = vec![
///     Group { lr_factor: 0.1, ..Group::new(Part::Input) },
///     Group { weight_decay: Some(1e-4), ..Group::new(Role::Bias) }, // biases have none otherwise
/// ];
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// Which parameters.
    pub select: Select,
    /// Their learning rate over the optimiser's: finite and not negative.
    pub lr_factor: f32,
    /// Their decay, finite and not negative, whatever their role; without one, they have the optimiser's if they are weights.
    pub weight_decay: Option<f32>,
}

impl Group {
    /// Parameters that are treated as all are: a group to begin with.
    pub fn new(select: impl Into<Select>) -> Self {
        Self { select: select.into(), lr_factor: 1.0, weight_decay: None }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        require_not_negative("groups.lr_factor", self.lr_factor)?;
        require_not_negative("groups.weight_decay", self.weight_decay.unwrap_or(0.0))
    }

    /// (factor on the learning rate, decay) of tensor `name`, for an optimiser that has this `weight_decay` for weights.
    pub(super) fn settings(groups: &[Group], name: TensorName, weight_decay: f32) -> (f32, f32) {
        let own = if name.role == Role::Weight { weight_decay } else { 0.0 };
        let group = groups.iter().find(|group| group.select.contains(name));
        group.map_or((1.0, own), |group| (group.lr_factor, group.weight_decay.unwrap_or(own)))
    }
}
