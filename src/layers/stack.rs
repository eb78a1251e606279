//! A network: blocks one after the other, between an input and an output projection or alone.

use super::block::{Block, Skip};
use super::init::{Init, Scheme};
use super::linear::Linear;
use super::{Compiled, Layer};
use crate::Activation;
use crate::error::{Error, expect_shape};
use crate::params::name::{Part, Place};
use crate::params::tensor::TensorMut;
use crate::parts::compile;
use crate::program::Program;
use crate::weights::Affine;
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
    /// [`Error::Setting`] if there is no block; [`Error::Shape`] if the blocks are not all of one width.
    pub fn from_blocks(blocks: Vec<Block>) -> Result<Self, Error> {
        let none = Error::Setting { operand: "blocks", reason: "a stack without projections needs at least one block" };
        chain(&blocks, blocks.first().ok_or(none)?.inputs())?;
        Self::compile(None, blocks, None)
    }

    fn compile(input: Option<Linear>, blocks: Vec<Block>, output: Option<Linear>) -> Result<Self, Error> {
        let first = input.iter().flat_map(|layer| layer.program().forms());
        let inner = blocks.iter().flat_map(|block| block.program().forms());
        let last = output.iter().flat_map(|layer| layer.program().forms());
        let program = compile(first.chain(inner).chain(last))?;
        Ok(Self { input, blocks, output, program })
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
        expect_shape("block", (width, width), (block.inputs(), block.outputs()))?;
        Ok(block.outputs())
    })
}

impl Compiled for Stack {
    fn program(&self) -> &Arc<Program> {
        &self.program
    }
}

/// A layer of a stack.
enum At {
    Input,
    Block(usize),
    Output,
}

impl Stack {
    /// Affine map `index`: in which layer, and which of the layer's maps. The layer may be a projection that is not there.
    fn locate(&self, index: usize) -> (At, usize) {
        let Some(index) = index.checked_sub(usize::from(self.input.is_some())) else { return (At::Input, index) };
        match index.checked_sub(2 * self.blocks.len()) {
            None => (At::Block(index / 2), index % 2),
            Some(index) => (At::Output, index),
        }
    }
}

impl Layer for Stack {
    fn inputs(&self) -> usize {
        self.program.inputs()
    }
    fn outputs(&self) -> usize {
        self.program.outputs()
    }
    fn affine_count(&self) -> usize {
        2 * self.blocks.len() + usize::from(self.input.is_some()) + usize::from(self.output.is_some())
    }
    fn affine(&self, index: usize) -> Option<&Affine> {
        match self.locate(index) {
            (At::Input, at) => self.input.as_ref()?.affine(at),
            (At::Block(block), at) => self.blocks[block].affine(at),
            (At::Output, at) => self.output.as_ref()?.affine(at),
        }
    }
    fn affine_mut(&mut self, index: usize) -> Option<&mut Affine> {
        match self.locate(index) {
            (At::Input, at) => self.input.as_mut()?.affine_mut(at),
            (At::Block(block), at) => self.blocks[block].affine_mut(at),
            (At::Output, at) => self.output.as_mut()?.affine_mut(at),
        }
    }
    fn affine_name(&self, index: usize) -> Place {
        match self.locate(index) {
            (At::Input, _) => Part::Input.into(),
            (At::Block(block), at) => Place { block: Some(block), ..self.blocks[block].affine_name(at) },
            (At::Output, _) => Part::Output.into(),
        }
    }
    fn parameters_mut(&mut self) -> impl Iterator<Item = TensorMut<'_>> {
        let input = self.input.iter_mut().flat_map(|input| input.tensors_mut(Part::Input.into()));
        let blocks = self.blocks.iter_mut().enumerate().flat_map(|(i, block)| block.tensors_mut(Some(i)));
        input.chain(blocks).chain(self.output.iter_mut().flat_map(|output| output.tensors_mut(Part::Output.into())))
    }
}
