//! Sizes, parameters and inputs of a stack of equal blocks.

use super::form;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use resblock::{Block, BlockForm, Error, Init, Layer, Role, Scheme, Skip};
use std::fmt;

/// Sizes of a stack of blocks. Displays as `256x128x512`, or `256x128x512_L16` if there are several blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rows of the batch, B.
    pub(crate) batch: usize,
    /// Features between blocks, d.
    pub(crate) features: usize,
    /// Hidden features, h.
    pub(crate) hidden: usize,
    /// Blocks.
    pub(crate) depth: usize,
}

impl Shape {
    pub(crate) const fn new(batch: usize, features: usize, hidden: usize, depth: usize) -> Self {
        Self { batch, features, hidden, depth }
    }

    /// Floats that a training step of this shape touches, roughly, or None if there are more than can be counted.
    pub(crate) fn floats(self) -> Option<usize> {
        let Self { batch: b, features: d, hidden: h, depth } = self;
        let weights = d.checked_mul(h)?.checked_mul(6)?; // two matrices, their gradients, and where they came from
        let rows = d.checked_add(h)?.checked_mul(3)?.checked_mul(b)?;
        weights.checked_add(rows)?.checked_mul(depth)?.checked_add(b.checked_mul(d)?.checked_mul(4)?)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, features, hidden, depth } = self;
        write!(f, "{batch}x{features}x{hidden}")?;
        if *depth > 1 { write!(f, "_L{depth}") } else { Ok(()) }
    }
}

/// A stack of blocks with its input and the gradient of its output. All matrices are row-major and dense.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) shape: Shape,
    pub(crate) form: BlockForm,
    pub(crate) x: Vec<f32>,
    pub(crate) dy: Vec<f32>,
    pub(crate) params: Vec<Param>,
}

/// A parameter of all blocks.
#[derive(Debug, Clone)]
pub(crate) struct Param {
    /// Its name in the race.
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    /// (inputs, outputs) of weights, (1, length) of all else.
    pub(crate) shape: (usize, usize),
    /// Layers one after another.
    pub(crate) values: Vec<f32>,
}

impl Param {
    /// Numbers of one block.
    pub(crate) fn len(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// Those of block `index`.
    pub(crate) fn block(&self, index: usize) -> &[f32] {
        &self.values[index * self.len()..][..self.len()]
    }
}

impl Problem {
    /// With what `values` gives for `X`, `dY` and each parameter, of which so many numbers are wanted.
    pub(crate) fn new<E: From<Error>>(
        shape: Shape,
        form: BlockForm,
        mut values: impl FnMut(&str, usize) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let Shape { batch, features, depth, .. } = shape;
        let block = Block::with_form(&form, &mut Init::new(Scheme::Zeros, 0))?;
        let (x, dy) = (values("X", batch * features)?, values("dY", batch * form.outputs)?);
        let mut params = Vec::new();
        for tensor in block.parameters() {
            let (part, role, (rows, cols)) = (tensor.name().place.part, tensor.role(), tensor.shape());
            let name = form::name(part, role, cols, form.outputs);
            let shape = if role == Role::Weight { (cols, rows) } else { (rows, cols) };
            params.push(Param { name, role, shape, values: values(name, depth * rows * cols)? });
        }
        Ok(Self { shape, form, x, dy, params })
    }

    /// Random numbers, the same for the same shape. Weights are uniform within a factor over sqrt(inputs) that keeps the
    /// activations of a deep stack of either kind of block of one size: denormal numbers and infinities take other times.
    pub(crate) fn random(shape: Shape, form: BlockForm) -> Result<Self, Error> {
        let mut rng = StdRng::seed_from_u64(1);
        let (gain1, gain2) = if form.skip == Skip::None { (6f32.sqrt(), 3f32.sqrt()) } else { (1.0, 0.5) };
        let (one, two) = (gain1 / (form.inputs as f32).sqrt(), gain2 / (form.hidden as f32).sqrt());
        Self::new(shape, form, |name, len| {
            let (from, bound) = match name {
                "X" | "dY" => (0.0, 1.0),
                "W1" | "W3" | "Ws" => (0.0, one),
                "W2" => (0.0, two),
                "g" | "s" | "a" | "rv" => (1.0, 0.2),
                _ => (0.0, 0.1),
            };
            Ok((0..len).map(|_| from + rng.random_range(-1.0..1.0f32) * bound).collect())
        })
    }

    /// A parameter by its name in the race.
    pub(crate) fn param(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|param| param.name == name)
    }

    /// W1, b1, W2, b2 of block `index`; empty where it has none.
    pub(crate) fn block(&self, index: usize) -> [&[f32]; 4] {
        ["W1", "b1", "W2", "b2"].map(|name| self.param(name).map(|param| param.block(index)).unwrap_or_default())
    }

    /// Numbers of all weights.
    pub(crate) fn weights(&self) -> usize {
        let weights = self.params.iter().filter(|param| param.role == Role::Weight);
        weights.map(|param| param.values.len()).sum()
    }

    /// Operations of a forward pass: 2 for each row and weight. A training step has three times as many.
    pub(crate) fn flops(&self) -> f64 {
        2.0 * self.shape.batch as f64 * self.weights() as f64
    }
}
