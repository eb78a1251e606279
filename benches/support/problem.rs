//! Sizes, weights and inputs of a stack of equal blocks.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use resblock::{Activation, Skip};
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

    /// Operations of a forward pass: 4 B d h for each block. A training step has three times as many.
    pub(crate) fn flops(self) -> f64 {
        4.0 * self.batch as f64 * self.features as f64 * self.hidden as f64 * self.depth as f64
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, features, hidden, depth } = self;
        write!(f, "{batch}x{features}x{hidden}")?;
        if *depth > 1 { write!(f, "_L{depth}") } else { Ok(()) }
    }
}

/// A stack of blocks with its input and the gradient of its output. All matrices are row-major and dense; weights are
/// (inputs, outputs), layers one after another.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) shape: Shape,
    pub(crate) phi: Activation,
    pub(crate) skip: Skip,
    pub(crate) x: Vec<f32>,
    pub(crate) dy: Vec<f32>,
    pub(crate) w1: Vec<f32>,
    pub(crate) b1: Vec<f32>,
    pub(crate) w2: Vec<f32>,
    pub(crate) b2: Vec<f32>,
}

impl Problem {
    /// Random numbers, the same for the same shape. Weights are uniform within a factor over sqrt(inputs) that keeps the
    /// activations of a deep stack of either kind of block of one size: denormal numbers and infinities take other times.
    pub(crate) fn random(shape: Shape, phi: Activation, skip: Skip) -> Self {
        let Shape { batch, features, hidden, depth } = shape;
        let mut rng = StdRng::seed_from_u64(1);
        let mut uniform =
            |len: usize, bound: f32| (0..len).map(|_| rng.random_range(-1.0..1.0f32) * bound).collect::<Vec<f32>>();
        let (gain1, gain2) = match skip {
            Skip::Identity => (1.0, 0.5),
            _ => (6f32.sqrt(), 3f32.sqrt()),
        };
        Self {
            shape,
            phi,
            skip,
            x: uniform(batch * features, 1.0),
            dy: uniform(batch * features, 1.0),
            w1: uniform(depth * features * hidden, gain1 / (features as f32).sqrt()),
            b1: uniform(depth * hidden, 0.1),
            w2: uniform(depth * hidden * features, gain2 / (hidden as f32).sqrt()),
            b2: uniform(depth * features, 0.1),
        }
    }

    /// W1, b1, W2, b2 of block `index`.
    pub(crate) fn block(&self, index: usize) -> (&[f32], &[f32], &[f32], &[f32]) {
        let Shape { features: d, hidden: h, .. } = self.shape;
        (
            &self.w1[index * d * h..][..d * h],
            &self.b1[index * h..][..h],
            &self.w2[index * d * h..][..d * h],
            &self.b2[index * d..][..d],
        )
    }
}
