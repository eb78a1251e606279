//! The configurations. Each is a name, and its data follow from its name: adding one changes no other.

use crate::common::family::{Case, named};
use crate::common::problem::Problem;
use crate::common::{Map, MapGrad, Rng, Stage, random_grads, random_stack};
use resblock::Activation;
use sha2::{Digest, Sha256};
use std::fmt;

/// The activations that the first configurations were made of: more of them change none of these.
const FIRST: usize = 8;

fn first_activations() -> impl Iterator<Item = Activation> {
    Activation::ALL.into_iter().take(FIRST)
}

/// What values are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// Between -1 and 1.
    Normal,
    /// With zeros of both signs, infinities, NaN, denormal and huge numbers strewn into a third of the rows of x and dy, and
    /// zeros and denormals into the parameters.
    Wild,
    /// With any of these in about one place of each parameter, which spoils most outputs, each in its own way.
    Hostile,
    /// So small that products are denormal.
    Tiny,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Linear {
        inputs: usize,
        outputs: usize,
        skip: bool,
    },
    Block {
        d: usize,
        h: usize,
        skip: bool,
    },
    /// Widths: inputs, width, hidden, outputs.
    Stack {
        widths: (usize, usize, usize, usize),
        blocks: usize,
        skip: bool,
    },
    /// A stack without projections.
    Blocks {
        d: usize,
        h: usize,
        blocks: usize,
        skip: bool,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Config {
    pub(super) rows: usize,
    shape: Shape,
    phi: Activation,
    bias: bool,
    data: Data,
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, shape, phi, bias, data } = self;
        match shape {
            Shape::Linear { inputs, outputs, .. } => write!(f, "linear {rows} rows, {inputs} to {outputs}")?,
            Shape::Block { d, h, .. } => write!(f, "block {rows} rows, {d} by {h}")?,
            Shape::Stack { widths: (inputs, width, hidden, outputs), blocks, .. } => {
                write!(f, "stack {rows} rows, {inputs} to {blocks} x {width} by {hidden} to {outputs}")?;
            }
            Shape::Blocks { d, h, blocks, .. } => write!(f, "blocks {rows} rows, {blocks} x {d} by {h}")?,
        }
        let (Shape::Linear { skip, .. }
        | Shape::Block { skip, .. }
        | Shape::Stack { skip, .. }
        | Shape::Blocks { skip, .. }) = shape;
        let (skip, bias) = (if *skip { "residual" } else { "plain" }, if *bias { "" } else { ", no bias" });
        write!(f, ", {}, {skip}{bias}, {data:?} data", phi.name())
    }
}

/// The generator for a name.
pub(super) fn rng(name: &str) -> Rng {
    let hash = Sha256::digest(name.as_bytes());
    Rng::new(u64::from_le_bytes(std::array::from_fn(|i| hash[i])))
}

impl Config {
    fn new(rows: usize, shape: Shape, phi: Activation) -> Self {
        Self { rows, shape, phi, bias: true, data: Data::Normal }
    }

    pub(super) fn problem(&self) -> Problem {
        let mut rng = rng(&self.to_string());
        let (rng, phi, bias) = (&mut rng, self.phi, self.bias);
        let mut stages = match self.shape {
            Shape::Linear { inputs, outputs, skip } => {
                vec![Stage::Linear { map: Map::random(rng, inputs, outputs, bias), phi, skip }]
            }
            Shape::Block { d, h, skip } => vec![Stage::block(rng, d, h, phi, skip, bias)],
            Shape::Stack { widths, blocks, skip } => random_stack(rng, widths, blocks, phi, skip),
            Shape::Blocks { d, h, blocks, skip } => {
                (0..blocks).map(|_| Stage::block(rng, d, h, phi, skip, bias)).collect()
            }
        };
        for stage in &mut stages {
            match stage {
                Stage::Linear { map, .. } => self.spoil(rng, map),
                Stage::Block { first, second, .. } => {
                    self.spoil(rng, first);
                    self.spoil(rng, second);
                }
            }
        }
        let (inputs, outputs) = (stages[0].inputs(), stages[stages.len() - 1].outputs());
        let mut values = |cols: usize| match self.data {
            Data::Normal | Data::Hostile => rng.vec(self.rows * cols),
            Data::Wild => rng.wild(self.rows * cols, 3 * cols + 1),
            Data::Tiny => rng.vec(self.rows * cols).iter().map(|v| v * TINY).collect(),
        };
        let (x, dy) = (values(inputs), values(outputs));
        let mut preset = random_grads(rng, &stages);
        if self.data == Data::Tiny {
            for MapGrad { dw, db } in &mut preset {
                dw.iter_mut().for_each(|v| *v *= TINY * TINY);
                db.iter_mut().for_each(|v| *v *= TINY);
            }
        }
        Problem::new(stages, x, dy, preset, self.rows)
    }

    /// Puts the data's values into parameters, too.
    fn spoil(&self, rng: &mut Rng, Map { w, b, .. }: &mut Map) {
        match self.data {
            Data::Normal => {}
            Data::Wild => {
                for v in w.iter_mut().chain(b.iter_mut().flatten()) {
                    if rng.below(20) == 0 {
                        *v = [0.0, -0.0, 1e-40, -f32::MIN_POSITIVE][rng.below(4)];
                    }
                }
            }
            Data::Hostile => {
                *w = rng.wild(w.len(), w.len() + 1);
                *b = b.as_ref().map(|b| rng.wild(b.len(), 2 * b.len() + 1));
            }
            Data::Tiny => {
                w.iter_mut().for_each(|v| *v *= TINY);
                b.iter_mut().flatten().for_each(|v| *v *= TINY * TINY);
            }
        }
    }
}

/// 2^-64: its square is denormal.
const TINY: f32 = 1.0 / (1_u128 << 64) as f32;

/// Rows, inputs and outputs (hidden features, for a block) at and about the edges of vectors, panels and tiles; narrow and wide.
const SMALL: [(usize, usize, usize); 24] = [
    (0, 5, 7),
    (1, 1, 1),
    (1, 16, 16),
    (2, 0, 3),
    (3, 4, 0),
    (2, 15, 17),
    (3, 33, 31),
    (4, 16, 48),
    (5, 17, 65),
    (6, 31, 16),
    (7, 32, 33),
    (8, 47, 48),
    (9, 16, 80),
    (12, 20, 97),
    (13, 15, 32),
    (14, 32, 15),
    (15, 17, 16),
    (16, 16, 16),
    (17, 3, 49),
    (27, 5, 18),
    (29, 18, 5),
    (1, 200, 5),
    (1, 5, 200),
    (64, 2, 3),
];

/// Configurations that are cheap: every activation, kind of data and edge.
pub(super) fn small() -> Vec<Config> {
    let mut configs = Vec::new();
    let linear = |inputs, outputs, skip| Shape::Linear { inputs, outputs, skip };
    let block = |d, h, skip| Shape::Block { d, h, skip };
    let stack = |widths, blocks, skip| Shape::Stack { widths, blocks, skip };
    for (i, phi) in first_activations().enumerate() {
        let with = |rows, shape, bias, data| Config { bias, data, ..Config::new(rows, shape, phi) };
        configs.extend([
            with(9, linear(37, 50, false), true, Data::Normal),
            with(13, linear(17, 17, true), false, Data::Wild),
            with(9, linear(20, 24, false), true, Data::Hostile),
            with(6, linear(16, 33, false), true, Data::Tiny),
            with(11, block(19, 37, true), true, Data::Normal),
            with(10, block(20, 18, false), false, Data::Normal),
            with(13, block(16, 33, false), true, Data::Wild),
            with(12, block(18, 24, true), true, Data::Wild),
            with(7, block(33, 16, true), true, Data::Hostile),
            with(6, block(17, 40, true), false, Data::Tiny),
            with(15, stack((5, 16, 33, 3), 2 + i % 2, i % 3 != 0), true, Data::Normal),
            with(12, stack((19, 17, 20, 18), 1, i % 3 == 0), true, Data::Wild),
        ]);
    }
    for (i, (rows, inputs, outputs)) in SMALL.into_iter().enumerate() {
        let phi = Activation::ALL[i % FIRST];
        configs.push(Config::new(rows, linear(inputs, outputs, inputs == outputs), phi));
        configs.push(Config::new(rows, block(inputs, outputs, i % 2 == 0), phi));
    }
    configs.extend([
        Config::new(8, stack((3, 8, 5, 2), 0, true), Activation::Identity),
        Config::new(3, stack((3, 0, 4, 2), 2, true), Activation::Gelu),
        Config::new(0, stack((3, 8, 5, 2), 2, false), Activation::Relu),
        Config::new(9, Shape::Blocks { d: 16, h: 20, blocks: 5, skip: true }, Activation::Silu),
        Config::new(5, Shape::Blocks { d: 3, h: 2, blocks: 12, skip: false }, Activation::Tanh),
        // Longer than the default k block and hidden chunk of 1024.
        Config::new(3, linear(1040, 20, false), Activation::Relu),
        Config::new(2, block(1030, 10, true), Activation::GeluTanh),
        Config::new(3, block(10, 1040, false), Activation::Sigmoid),
    ]);
    configs
}

/// Configurations with work for several threads, which takes 500 000 multiply-adds a thread.
pub(super) fn large() -> Vec<Config> {
    let linear = |inputs, outputs| Shape::Linear { inputs, outputs, skip: false };
    let block = |d, h, skip| Shape::Block { d, h, skip };
    vec![
        // One row and a gradient of a million weights, which is written past the caches.
        Config::new(1, linear(1024, 1031), Activation::Identity),
        // Few rows for 16 threads: they share columns.
        Config::new(8, linear(1000, 950), Activation::Gelu),
        Config { data: Data::Wild, ..Config::new(70, block(130, 260, true), Activation::Relu) },
        // Rows for 16 threads.
        Config::new(150, block(150, 170, true), Activation::Silu),
        // More than one block of rows.
        Config::new(300, block(40, 48, false), Activation::GeluTanh),
        Config::new(100, Shape::Stack { widths: (30, 64, 96, 10), blocks: 4, skip: true }, Activation::LeakyRelu(0.01)),
    ]
}

/// Each named block, narrow and wide.
pub(super) fn family() -> Vec<(String, Case)> {
    let sizes = [(19, 33, 50), (40, 48, 144)];
    let all = sizes.into_iter().flat_map(|(rows, d, h)| {
        named(d, h).into_iter().map(move |(kind, form)| (format!("form {kind}, {rows} rows, {d} by {h}"), form, rows))
    });
    all.map(|(name, form, rows)| {
        let case = Case::random(form, rows, rng(&name).next());
        (name, case)
    })
    .collect()
}
