//! The tensors that a network is made of by the names of another library.

use super::reserve;
use crate::error::Error;
use crate::error::checkpoint::CheckpointError;
use crate::params::convention::{Convention, Stored};
use crate::params::name::{Part, Role, TensorName};
use crate::params::tensor::Spec;
use std::collections::{BTreeMap, HashSet};

/// A tensor of a file of theirs, and which parameters of ours it is made of.
#[derive(Debug)]
pub(super) struct Theirs {
    pub(super) name: String,
    /// Its shape.
    pub(super) dims: Vec<usize>,
    /// Whether it is a matrix (inputs, outputs).
    pub(super) transposed: bool,
    /// How many pieces it has.
    pub(super) count: usize,
    /// Which of them are parameters of the network, in order.
    pub(super) pieces: Vec<(usize, Spec)>,
}

impl Theirs {
    /// That each of its pieces is there.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        let (expected, found) = (self.count, self.pieces.len());
        if expected == found {
            return Ok(());
        }
        Err(CheckpointError::Pieces { tensor: self.name.clone(), expected, found })
    }

    /// What its name and that of the bias beside it begin with.
    pub(super) fn map(&self) -> &str {
        map_of(&self.name)
    }
}

/// The affine map whose parameter has this name.
pub(super) fn map_of(name: &str) -> &str {
    name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name)
}

/// What stands before the names of a block: a text with a place for its number.
#[derive(Debug, Clone, Copy)]
struct Pattern<'p> {
    before: &'p str,
    after: &'p str,
    /// The number of the first block.
    from: Option<usize>,
}

impl<'p> Pattern<'p> {
    fn parse(text: &'p str) -> Result<Self, Error> {
        let refused = Error::Setting { operand: "pattern", reason: "has at most one {}, or one {number}" };
        let Some((before, rest)) = text.split_once('{') else {
            return if text.contains('}') { Err(refused) } else { Ok(Self { before: text, after: "", from: None }) };
        };
        let (number, after) = rest.split_once('}').ok_or_else(|| refused.clone())?;
        let from = if number.is_empty() { Some(0) } else { number.parse().ok() };
        if from.is_none() || [before, after].concat().contains(['{', '}']) {
            return Err(refused);
        }
        Ok(Self { before, after, from })
    }

    fn name(&self, block: usize, stored: &Stored) -> String {
        let Self { before, after, from } = *self;
        let number = from.map(|from| from.saturating_add(block).to_string()).unwrap_or_default();
        format!("{before}{number}{after}{}", stored.name())
    }
}

/// What a convention says of a network's parameters.
#[derive(Debug)]
pub(super) struct Named {
    /// In the order of their names.
    pub(super) theirs: Vec<Theirs>,
    /// The first parameter without a name in a block that has some with.
    pub(super) unnamed: Option<TensorName>,
}

/// Blocks are counted from the first that has a parameter with a name.
pub(super) fn named(
    convention: &Convention,
    pattern: &str,
    parameters: impl Iterator<Item = Spec>,
) -> Result<Named, Error> {
    let setting = |reason| Error::Setting { operand: "convention", reason };
    let pattern = Pattern::parse(pattern)?;
    let (mut found, mut without) = (BTreeMap::<String, Vec<(&Stored, Spec)>>::new(), Vec::new());
    let (mut blocks, mut last) = (HashSet::new(), None);
    let mut parameters: Vec<_> = parameters.collect();
    parameters.sort_by_key(|spec| spec.name); // block by block
    for spec in parameters {
        let place = spec.name.place;
        if matches!(place.part, Part::Input | Part::Output) {
            continue;
        }
        let block = (place.layer, place.block);
        let Some(stored) = convention.stored(place.part, spec.name.role) else {
            without.push((block, spec.name));
            continue;
        };
        if last != Some(block) {
            last = Some(block);
            blocks.insert(block);
        }
        found.entry(pattern.name(blocks.len() - 1, stored)).or_default().push((stored, spec));
    }
    if found.is_empty() {
        return Err(setting("names no parameter of this network"));
    }
    let unnamed = without.into_iter().find(|(block, _)| blocks.contains(block)).map(|(_, name)| name);

    let mut theirs = reserve(found.len())?;
    for (name, mut pieces) in found {
        let of = |&(stored, spec): &(&Stored, Spec)| {
            let transposed = stored.is_transposed() && spec.name.role == Role::Weight;
            (stored.piece().1, transposed, stored.dims(spec.name.role, spec.shape()))
        };
        pieces.sort_by_key(|(stored, _)| stored.piece().0);
        let first = of(&pieces[0]);
        let (count, transposed, dims) = first.clone();
        if pieces.windows(2).any(|pair| pair[0].0.piece().0 == pair[1].0.piece().0) {
            return Err(CheckpointError::Duplicate { tensor: name }.into());
        }
        if pieces.iter().any(|piece| of(piece) != first) {
            return Err(setting("pieces of a tensor have one shape, one orientation and one count"));
        }
        if pieces.iter().any(|(stored, _)| stored.piece().0 >= count) {
            return Err(setting("pieces are counted from 0"));
        }
        let pieces = pieces.into_iter().map(|(stored, spec)| (stored.piece().0, spec)).collect();
        theirs.push(Theirs { name, dims, transposed, count, pieces });
    }
    Ok(Named { theirs, unnamed })
}
