//! A network: blocks one after the other, between an input and an output projection or alone.

use super::block::Block;
use super::index::Index;
use super::init::{Init, Scheme};
use super::linear::Linear;
use super::{Compiled, Layer};
use crate::Activation;
use crate::error::{Error, expect_shape};
use crate::params::name::{Part, Place, Within};
use crate::params::tensor::{TensorMut, TensorRef};
use crate::parts::compile;
use crate::program::Program;
use crate::program::form::Skip;
use crate::weights::{Affine, Vector};
use std::sync::Arc;

/// What a [`Stack`] is made of. Public fields with good defaults: name those that differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StackConfig {
    /// Features of an input row.
    pub inputs: usize,
    /// Features between blocks.
    pub width: usize,
    /// Hidden features inside a block.
    pub hidden: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Features of an output row.
    pub outputs: usize,
    /// phi of every block. The projections are linear.
    pub activation: Activation,
    /// Residual or plain blocks.
    pub skip: Skip,
    /// Distribution of the initial weights.
    pub scheme: Scheme,
    /// Factor on the initial W2 of every block. 1 / sqrt(blocks) keeps the size of activations and gradients through a residual
    /// ReLU stack with He weights, 1 / sqrt(2) through a plain one.
    pub branch_scale: f32,
    /// Seed of the initial weights: the same seed gives the same bits everywhere.
    pub seed: u64,
}

impl Default for StackConfig {
    /// Ten residual ReLU blocks of width 64, He initialisation, branches scaled by 1 / sqrt(10).
    fn default() -> Self {
        Self {
            inputs: 64,
            width: 64,
            hidden: 64,
            blocks: 10,
            outputs: 10,
            activation: Activation::Relu,
            skip: Skip::Identity,
            scheme: Scheme::HeNormal,
            branch_scale: 0.316_227_77,
            seed: 0,
        }
    }
}

/// Blocks of one width, one after the other: y = B_L(... B_1(x)), or between an input and an output projection,
/// y = W_out B_L(... B_1(W_in x)).
#[derive(Debug, Clone)]
pub struct Stack {
    input: Option<Linear>,
    blocks: Vec<Block>,
    output: Option<Linear>,
    index: Index,
    program: Arc<Program>,
}

impl Stack {
    /// With projections, weights drawn as `config` says and biases of zeros.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn new(config: &StackConfig) -> Result<Self, Error> {
        let StackConfig { inputs, width, hidden, blocks, outputs, activation, skip, scheme, branch_scale, seed } =
            *config;
        let mut init = Init::new(scheme, seed);
        let input = Linear::with_init(inputs, width, Activation::Identity, &mut init)?;
        let mut list = Vec::new();
        let bytes = blocks.saturating_mul(size_of::<Block>());
        list.try_reserve_exact(blocks).map_err(|_| Error::Memory { bytes })?;
        for _ in 0..blocks {
            list.push(Block::with_init(width, hidden, activation, skip, branch_scale, &mut init)?);
        }
        let output = Linear::with_init(width, outputs, Activation::Identity, &mut init)?;
        Self::compile(Some(input), list, Some(output))
    }

    /// From an input projection, blocks (none, perhaps) and an output projection.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the layer whose inputs are not the outputs of the one before.
    pub fn from_layers(input: Linear, blocks: Vec<Block>, output: Linear) -> Result<Self, Error> {
        let width = chain(&blocks, input.outputs())?;
        expect_shape("output", (width, output.outputs()), (output.inputs(), output.outputs()))?;
        Self::compile(Some(input), blocks, Some(output))
    }

    /// From blocks alone, without projections: at least one.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no block; [`Error::Shape`] if the inputs of one are not the outputs of the one before.
    pub fn from_blocks(blocks: Vec<Block>) -> Result<Self, Error> {
        let none = Error::Setting { operand: "blocks", reason: "a stack without projections needs at least one block" };
        chain(&blocks, blocks.first().ok_or(none)?.inputs())?;
        Self::compile(None, blocks, None)
    }

    fn compile(input: Option<Linear>, blocks: Vec<Block>, output: Option<Linear>) -> Result<Self, Error> {
        let first = input.iter().flat_map(|layer| layer.program().outline());
        let inner = blocks.iter().flat_map(|block| block.program().outline());
        let last = output.iter().flat_map(|layer| layer.program().outline());
        let program = compile(first.chain(inner).chain(last))?;
        let inner = blocks.iter().map(|block| (block.affine_count(), block.vector_count()));
        let (first, last) = (input.iter().map(|_| (1, 0)), output.iter().map(|_| (1, 0)));
        let index = Index::new(&program, first.chain(inner).chain(last))?;
        Ok(Self { input, blocks, output, index, program })
    }

    /// The input projection, unless the stack is of blocks alone.
    pub fn input(&self) -> Option<&Linear> {
        self.input.as_ref()
    }

    /// The output projection, unless the stack is of blocks alone.
    pub fn output(&self) -> Option<&Linear> {
        self.output.as_ref()
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }
}

/// Checks that the blocks fit one another, the first to `width` features: returns those that come out.
fn chain(blocks: &[Block], width: usize) -> Result<usize, Error> {
    blocks.iter().try_fold(width, |width, block| {
        expect_shape("block", (width, block.outputs()), (block.inputs(), block.outputs()))?;
        Ok(block.outputs())
    })
}

/// A layer of a stack.
enum At {
    Input,
    Block(usize),
    Output,
}

impl Stack {
    /// Which layer number `layer` is.
    fn at(&self, layer: usize) -> At {
        match layer.checked_sub(usize::from(self.input.is_some())) {
            None => At::Input,
            Some(block) if block < self.blocks.len() => At::Block(block),
            Some(_) => At::Output,
        }
    }
}

impl Compiled for Stack {
    fn program(&self) -> &Arc<Program> {
        &self.program
    }
    fn replace_program(&mut self, program: Arc<Program>) {
        self.program = program;
    }
    fn tensors<'a>(&'a self, within: Within, see: &mut dyn FnMut(TensorRef<'a>)) {
        if let Some(input) = &self.input {
            input.affine_map().visit(within.part(Part::Input), see);
        }
        for (i, block) in self.blocks.iter().enumerate() {
            block.tensors(Within { block: Some(i), ..within }, see);
        }
        if let Some(output) = &self.output {
            output.affine_map().visit(within.part(Part::Output), see);
        }
    }
    fn tensors_mut<'a>(&'a mut self, within: Within, see: &mut dyn FnMut(TensorMut<'a>)) {
        if let Some(input) = &mut self.input {
            input.tensors_at(within.part(Part::Input), see);
        }
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.tensors_mut(Within { block: Some(i), ..within }, see);
        }
        if let Some(output) = &mut self.output {
            output.tensors_at(within.part(Part::Output), see);
        }
    }
}

impl Layer for Stack {
    fn affine(&self, index: usize) -> Option<&Affine> {
        let (layer, at) = self.index.affine(index)?;
        match self.at(layer) {
            At::Input => self.input.as_ref()?.affine(at),
            At::Block(block) => self.blocks[block].affine(at),
            At::Output => self.output.as_ref()?.affine(at),
        }
    }
    fn affine_mut(&mut self, index: usize) -> Option<&mut Affine> {
        let (layer, at) = self.index.affine(index)?;
        match self.at(layer) {
            At::Input => self.input.as_mut()?.affine_mut(at),
            At::Block(block) => self.blocks[block].affine_mut(at),
            At::Output => self.output.as_mut()?.affine_mut(at),
        }
    }
    fn affine_name(&self, index: usize) -> Place {
        let Some((layer, at)) = self.index.affine(index) else { return Part::Output.into() };
        match self.at(layer) {
            At::Input => Part::Input.into(),
            At::Block(block) => Place { block: Some(block), ..self.blocks[block].affine_name(at) },
            At::Output => Part::Output.into(),
        }
    }
    fn vector(&self, index: usize) -> Option<&Vector> {
        let (layer, at) = self.index.vector(index)?;
        if let At::Block(block) = self.at(layer) { self.blocks[block].vector(at) } else { None }
    }
    fn vector_mut(&mut self, index: usize) -> Option<&mut Vector> {
        let (layer, at) = self.index.vector(index)?;
        if let At::Block(block) = self.at(layer) { self.blocks[block].vector_mut(at) } else { None }
    }
}
