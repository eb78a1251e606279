//! A network: input projection, blocks, output projection.

use super::Layer;
use super::block::{Block, Skip};
use super::gradients::AffineName;
use super::init::{Init, Scheme};
use super::linear::Linear;
use crate::Activation;
use crate::error::{Error, expect_shape};
use crate::fused::{Stage, Stages};
use crate::weights::Affine;

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
    /// Factor on the initial W2 of every block; 1 / sqrt(blocks) keeps the size of the activations through a residual stack.
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

/// An input projection, blocks of one width, an output projection: y = W_out B_L(... B_1(W_in x)).
#[derive(Debug, Clone)]
pub struct Stack {
    input: Linear,
    blocks: Vec<Block>,
    output: Linear,
}

impl Stack {
    /// With weights drawn as `config` says and biases of zeros.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a size overflows.
    pub fn new(config: &StackConfig) -> Result<Self, Error> {
        let StackConfig { inputs, width, hidden, blocks, outputs, activation, skip, scheme, branch_scale, seed } =
            *config;
        let mut init = Init::new(scheme, seed);
        Ok(Self {
            input: Linear::with_init(inputs, width, Activation::Identity, &mut init)?,
            blocks: (0..blocks)
                .map(|_| Block::with_init(width, hidden, activation, skip, branch_scale, &mut init))
                .collect::<Result<_, _>>()?,
            output: Linear::with_init(width, outputs, Activation::Identity, &mut init)?,
        })
    }

    /// From layers.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the layer whose inputs are not the outputs of the one before.
    pub fn from_layers(input: Linear, blocks: Vec<Block>, output: Linear) -> Result<Self, Error> {
        let mut width = input.outputs();
        for block in &blocks {
            expect_shape("block", (width, width), (block.inputs(), block.outputs()))?;
            width = block.outputs();
        }
        expect_shape("output", (width, output.outputs()), (output.inputs(), output.outputs()))?;
        Ok(Self { input, blocks, output })
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }
}

impl Stages for Stack {
    fn len(&self) -> usize {
        self.blocks.len() + 2
    }
    fn stage(&self, index: usize) -> Stage<'_> {
        match index.checked_sub(1) {
            None => self.input.stage(0),
            Some(i) => self.blocks.get(i).map_or_else(|| self.output.stage(0), |block| block.stage(0)),
        }
    }
}

/// Affine map `index` of a stack: which layer, and which of the layer's maps.
fn locate(index: usize, blocks: usize) -> (usize, usize) {
    match index {
        0 => (0, 0),
        i if i <= 2 * blocks => (1 + (i - 1) / 2, (i - 1) % 2),
        i => (blocks + 1, i - 2 * blocks - 1),
    }
}

impl Layer for Stack {
    fn inputs(&self) -> usize {
        self.input.inputs()
    }
    fn outputs(&self) -> usize {
        self.output.outputs()
    }
    fn affine_count(&self) -> usize {
        2 * self.blocks.len() + 2
    }
    fn affine(&self, index: usize) -> Option<&Affine> {
        match locate(index, self.blocks.len()) {
            (0, at) => self.input.affine(at),
            (layer, at) if layer <= self.blocks.len() => self.blocks[layer - 1].affine(at),
            (_, at) => self.output.affine(at),
        }
    }
    fn affine_mut(&mut self, index: usize) -> Option<&mut Affine> {
        match locate(index, self.blocks.len()) {
            (0, at) => self.input.affine_mut(at),
            (layer, at) if layer <= self.blocks.len() => self.blocks[layer - 1].affine_mut(at),
            (_, at) => self.output.affine_mut(at),
        }
    }
    fn affine_name(&self, index: usize) -> AffineName {
        match locate(index, self.blocks.len()) {
            (0, _) => AffineName::Input,
            (layer, at) if layer <= self.blocks.len() => AffineName::Block(layer - 1, at == 1),
            _ => AffineName::Output,
        }
    }
}
