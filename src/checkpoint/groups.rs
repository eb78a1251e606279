//! The groups of an optimiser as text: `role bias, blocks 0..3: lr_factor 0.1, weight_decay 0; ...`. The floats are the shortest decimals
//! that give the same bits.

use crate::error::checkpoint::CheckpointError;
use crate::optim::{Group, Select};
use crate::params::name::{Part, Role};
use std::fmt::{Display, Write};

/// Its name among the strings of a file.
pub(super) const GROUPS: &str = "resblock.groups";

pub(super) fn text(groups: &[Group]) -> String {
    groups.iter().map(group_text).collect::<Vec<_>>().join("; ")
}

fn group_text(group: &Group) -> String {
    let Group { select: Select { role, part, blocks }, lr_factor, weight_decay } = group;
    let role = role.map(|role| format!("role {role}"));
    let part = part.map(|part| format!("part {part}"));
    let blocks = blocks.map(|(start, end)| format!("blocks {start}..{end}"));
    let mut text = [role, part, blocks].into_iter().flatten().collect::<Vec<_>>().join(", ");
    // To a string, this cannot fail.
    _ = write!(text, ": lr_factor {lr_factor}");
    _ = weight_decay.map(|decay| write!(text, ", weight_decay {decay}"));
    text
}

/// The groups that `text` writes so.
pub(super) fn parse(text: &str) -> Result<Vec<Group>, CheckpointError> {
    let groups = text.split("; ").filter(|group| !group.is_empty()).map(parse_group);
    groups.collect::<Option<_>>().ok_or_else(|| CheckpointError::Groups { found: text.into() })
}

fn parse_group(text: &str) -> Option<Group> {
    let (conditions, settings) = text.split_once(": ")?;
    let mut group = Group::new(Select::all());
    for condition in conditions.split(", ").filter(|condition| !condition.is_empty()) {
        let select = &mut group.select;
        match condition.split_once(' ')? {
            ("role", name) => select.role = Some(named(&Role::ALL, name)?),
            ("part", name) => select.part = Some(named(&Part::ALL, name)?),
            ("blocks", range) => {
                let (start, end) = range.split_once("..")?;
                select.blocks = Some((start.parse().ok()?, end.parse().ok()?));
            }
            _ => return None,
        }
    }
    for setting in settings.split(", ") {
        match setting.split_once(' ')? {
            ("lr_factor", value) => group.lr_factor = value.parse().ok()?,
            ("weight_decay", value) => group.weight_decay = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(group)
}

fn named<T: Display + Copy>(all: &[T], name: &str) -> Option<T> {
    all.iter().copied().find(|one| one.to_string() == name)
}
