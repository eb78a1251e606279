//! A free sequence of layers: in any order, of any widths that fit.

use super::block::Block;
use super::index::Index;
use super::linear::Linear;
use super::norm::NormLayer;
use super::stack::Stack;
use super::{Compiled, Layer};
use crate::error::{Error, expect_shape};
use crate::params::name::{Part, Place, Within};
use crate::params::tensor::{TensorMut, TensorRef};
use crate::parts::compile;
use crate::program::Program;
use crate::program::form::Form;
use crate::weights::{Affine, Vector};
use std::sync::Arc;

/// A layer of a [`Sequence`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Node {
    /// A linear layer.
    Linear(Linear),
    /// A block.
    Block(Block),
    /// A stack of blocks.
    Stack(Stack),
    /// A norm.
    Norm(NormLayer),
}

/// The same expression for whichever layer it is.
macro_rules! with_layer {
    ($node:expr, $layer:ident => $do:expr) => {
        match $node {
            Node::Linear($layer) => $do,
            Node::Block($layer) => $do,
            Node::Stack($layer) => $do,
            Node::Norm($layer) => $do,
        }
    };
}

impl From<Linear> for Node {
    fn from(layer: Linear) -> Self {
        Self::Linear(layer)
    }
}

impl From<Block> for Node {
    fn from(layer: Block) -> Self {
        Self::Block(layer)
    }
}

impl From<Stack> for Node {
    fn from(layer: Stack) -> Self {
        Self::Stack(layer)
    }
}

impl From<NormLayer> for Node {
    fn from(layer: NormLayer) -> Self {
        Self::Norm(layer)
    }
}

impl Node {
    /// A layer of this form, with the parameters that it takes off these.
    pub(super) fn take_parameters(
        form: &Form,
        affines: &mut impl Iterator<Item = Result<Affine, Error>>,
        vectors: &mut impl Iterator<Item = Result<Vector, Error>>,
    ) -> Result<Self, Error> {
        let none = Error::Length { operand: "params", expected: 1, found: 0 };
        Ok(match form {
            Form::Linear(form) => {
                let layer = Linear::new(affines.next().ok_or(none)??, form.phi);
                Self::Linear(if form.skip { layer.with_skip()? } else { layer })
            }
            Form::Block(form) => {
                let (maps, lines) = Block::counts(form);
                let (affines, vectors) = (affines.take(maps).collect::<Result<_, _>>()?, vectors.take(lines));
                Self::Block(Block::from_parts(form, affines, vectors.collect::<Result<_, _>>()?)?)
            }
            Form::Norm(form) => {
                let vectors = vectors.take(form.norm.roles().count()).collect::<Result<_, _>>()?;
                Self::Norm(NormLayer::from_vectors(form.width, form.norm, form.phi, vectors)?)
            }
        })
    }

    fn inputs(&self) -> usize {
        with_layer!(self, layer => layer.inputs())
    }

    fn outputs(&self) -> usize {
        with_layer!(self, layer => layer.outputs())
    }
}

/// Layers one after the other: y = L_k(... L_1(x)), blocks of changing width between projections, say. It is one network: a row block
/// goes through all of it while it is in cache.
///
/// ```
/// use resblock::{Activation, Block, Init, Layer, Linear, Sequence};
/// let mut init = Init::he(1);
/// let net = Sequence::new([
///     Linear::with_init(10, 64, Activation::Relu, &mut init)?.into(),
///     Block::residual(64, 128, Activation::Gelu, &mut init)?.into(),
///     Linear::with_init(64, 32, Activation::Identity, &mut init)?.into(),
///     Block::residual(32, 32, Activation::Gelu, &mut init)?.into(),
/// ])?;
/// assert_eq!((net.inputs(), net.outputs()), (10, 32));
/// assert_eq!(net.affine_name(3).weight().to_string(), "layers.2.linear.weight");
/// # Ok::<(), resblock::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sequence {
    nodes: Vec<Node>,
    index: Index,
    program: Arc<Program>,
}

impl Sequence {
    /// From layers, at least one.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is none; [`Error::Shape`] naming `layers` if the inputs of one are not the outputs of the one before:
    /// expected and found (inputs, outputs) of that layer; [`Error::Memory`].
    pub fn new(layers: impl IntoIterator<Item = Node>) -> Result<Self, Error> {
        let mut nodes = Vec::new();
        for layer in layers {
            nodes.try_reserve(1).map_err(|_| Error::Memory { bytes: size_of_val(&nodes[..]).saturating_mul(2) })?;
            nodes.push(layer);
        }
        if nodes.is_empty() {
            return Err(Error::Setting { operand: "layers", reason: "a sequence needs at least one layer" });
        }
        for pair in nodes.windows(2) {
            let (width, next) = (pair[0].outputs(), &pair[1]);
            expect_shape("layers", (width, next.outputs()), (next.inputs(), next.outputs()))?;
        }
        let program = compile(nodes.iter().flat_map(|node| {
            let program = with_layer!(node, layer => layer.program());
            program.outline()
        }))?;
        let counts = nodes.iter().map(|node| with_layer!(node, layer => (layer.affine_count(), layer.vector_count())));
        let index = Index::new(&program, counts)?;
        Ok(Self { nodes, index, program })
    }

    /// The layers.
    pub fn layers(&self) -> &[Node] {
        &self.nodes
    }

    /// The layers, to make another sequence of.
    pub fn into_layers(self) -> Vec<Node> {
        self.nodes
    }
}

impl Compiled for Sequence {
    fn program(&self) -> &Arc<Program> {
        &self.program
    }
    fn replace_program(&mut self, program: Arc<Program>) {
        self.program = program;
    }
    fn tensors<'a>(&'a self, _: Within, see: &mut dyn FnMut(TensorRef<'a>)) {
        for (i, node) in self.nodes.iter().enumerate() {
            with_layer!(node, layer => layer.tensors(within(i), see));
        }
    }
    fn tensors_mut<'a>(&'a mut self, _: Within, see: &mut dyn FnMut(TensorMut<'a>)) {
        for (i, node) in self.nodes.iter_mut().enumerate() {
            with_layer!(node, layer => layer.tensors_mut(within(i), see));
        }
    }
}

/// Layer `layer` of the sequence.
fn within(layer: usize) -> Within {
    Within { layer: Some(layer), block: None }
}

impl Layer for Sequence {
    fn affine(&self, index: usize) -> Option<&Affine> {
        let (node, at) = self.index.affine(index)?;
        with_layer!(&self.nodes[node], layer => layer.affine(at))
    }
    fn affine_mut(&mut self, index: usize) -> Option<&mut Affine> {
        let (node, at) = self.index.affine(index)?;
        with_layer!(&mut self.nodes[node], layer => layer.affine_mut(at))
    }
    fn affine_name(&self, index: usize) -> Place {
        let Some((node, at)) = self.index.affine(index) else { return Part::Linear.into() };
        Place { layer: Some(node), ..with_layer!(&self.nodes[node], layer => layer.affine_name(at)) }
    }
    fn vector(&self, index: usize) -> Option<&Vector> {
        let (node, at) = self.index.vector(index)?;
        with_layer!(&self.nodes[node], layer => layer.vector(at))
    }
    fn vector_mut(&mut self, index: usize) -> Option<&mut Vector> {
        let (node, at) = self.index.vector(index)?;
        with_layer!(&mut self.nodes[node], layer => layer.vector_mut(at))
    }
}
