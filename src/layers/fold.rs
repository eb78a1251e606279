//! Norms of columns folded into the weights beside them, for inference.

use super::block::Block;
use super::sequence::{Node, Sequence};
use super::stack::Stack;
use crate::Activation;
use crate::error::Error;
use crate::mat::{MatMut, MatRef};
use crate::program::norm::{Norm, NormKind};
use crate::weights::{Affine, Vector};

/// What a BatchNorm does to each column by its running averages: x becomes s x + t.
struct Column {
    s: f64,
    t: f64,
}

/// Takes the vectors of a norm off a list, and tells what they do if it can be folded; otherwise hands them on.
fn take(
    norm: &mut Option<Norm>,
    can: bool,
    vectors: &mut impl Iterator<Item = Vector>,
    left: &mut Vec<Vector>,
) -> Option<Vec<Column>> {
    let found = (*norm)?;
    let mut own: Vec<Vector> = vectors.take(found.roles().count()).collect();
    if !can || found.kind != NormKind::Batch {
        left.append(&mut own);
        return None;
    }
    *norm = None;
    let mut own = own.into_iter();
    let mut line = |there: bool| if there { own.next() } else { None };
    let (gain, shift, mean, variance) = (line(found.gain), line(found.shift), line(true)?, line(true)?);
    let at = |line: &Option<Vector>, j: usize, or: f64| line.as_ref().map_or(or, |line| f64::from(line.as_slice()[j]));
    let columns = mean.as_slice().iter().zip(variance.as_slice()).enumerate().map(|(j, (&mean, &variance))| {
        let s = at(&gain, j, 1.0) / libm::sqrt(f64::from(variance) + f64::from(found.epsilon));
        Column { s, t: at(&shift, j, 0.0) - f64::from(mean) * s }
    });
    Some(columns.collect())
}

/// The map of s x + t, or s y + t of the map's y: computed in f64, rounded once.
fn fold(map: &Affine, before: Option<&[Column]>, after: Option<&[Column]>) -> Result<Affine, Error> {
    let (inputs, outputs) = (map.inputs(), map.outputs());
    let mut w = vec![0.0; inputs * outputs];
    map.weights().write_to(MatMut::new(&mut w, outputs, inputs)?)?;
    let mut bias = vec![0.0; outputs];
    for (o, bias) in bias.iter_mut().enumerate() {
        let row = &mut w[o * inputs..(o + 1) * inputs];
        let mut b = map.bias().map_or(0.0, |bias| f64::from(bias[o]));
        let Column { s: factor, t } =
            after.map_or(Column { s: 1.0, t: 0.0 }, |all| Column { s: all[o].s, t: all[o].t });
        for (i, w) in row.iter_mut().enumerate() {
            let mut value = f64::from(*w);
            if let Some(columns) = before {
                b += value * columns[i].t;
                value *= columns[i].s;
            }
            *w = (value * factor) as f32;
        }
        *bias = (b * factor + t) as f32;
    }
    Affine::new(MatRef::new(&w, outputs, inputs)?, Some(&bias))
}

impl Block {
    /// The same block for inference, each BatchNorm folded into the weights beside it by its running averages: one before the branch into W1 and
    /// W3, one between the weight layers into W1, that of the branch into W2. One that is followed by an activation, or comes after the skip, stays as it
    /// is. The result is the same but for rounding, and has biases if something was folded; gradients of it are those of its own parameters.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::Memory`].
    pub fn folded(&self) -> Result<Self, Error> {
        let mut form = *self.form();
        let (maps, vectors) = self.parts();
        let (mut vectors, mut left) = (vectors.iter().cloned(), Vec::new());
        let alone = form.pre_activation == Activation::Identity;
        let before = take(&mut form.pre_norm, alone, &mut vectors, &mut left);
        let inner = take(&mut form.inner_norm, true, &mut vectors, &mut left);
        let scale = form.has_scale().then(|| vectors.next()).flatten();
        left.extend(scale);
        let branch = take(&mut form.branch_norm, true, &mut vectors, &mut left);
        left.extend(vectors);
        if before.is_none() && inner.is_none() && branch.is_none() {
            return Ok(self.clone());
        }
        form.biases = true;
        let second = if form.gated { 2 } else { 1 };
        let maps = maps.iter().enumerate().map(|(i, map)| {
            let (before, inner, branch) = (before.as_deref(), inner.as_deref(), branch.as_deref());
            match i {
                0 => fold(map, before, inner),
                _ if i < second => fold(map, before, None),
                _ if i == second => fold(map, None, branch),
                _ => fold(map, None, None),
            }
        });
        Self::from_parts(&form, maps.collect::<Result<_, _>>()?, left)
    }
}

impl Stack {
    /// The same network for inference, its blocks folded: [`Block::folded`].
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::Memory`].
    pub fn folded(&self) -> Result<Self, Error> {
        let blocks = self.blocks().iter().map(Block::folded).collect::<Result<Vec<_>, _>>()?;
        match (self.input(), self.output()) {
            (Some(input), Some(output)) => Self::from_layers(input.clone(), blocks, output.clone()),
            _ => Self::from_blocks(blocks),
        }
    }
}

impl Sequence {
    /// The same network for inference, its blocks folded: [`Block::folded`].
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::Memory`].
    pub fn folded(&self) -> Result<Self, Error> {
        let nodes = self.layers().iter().map(|node| match node {
            Node::Block(block) => block.folded().map(Node::Block),
            Node::Stack(stack) => stack.folded().map(Node::Stack),
            Node::Linear(_) | Node::Norm(_) => Ok(node.clone()),
        });
        Self::new(nodes.collect::<Result<Vec<_>, _>>()?)
    }
}
