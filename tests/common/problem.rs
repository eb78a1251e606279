//! A network, a batch and what its gradients start from: solved by the oracle, or by the kernels in any of the ways that must not
//! matter.

use super::{
    MapGrad, Rng, Stage, assert_same, assert_same_grads, build_stack, existing, gradients_of, mat, mat_mut,
    oracle_backward, oracle_forward, random_grads, values_of, zero_grads,
};
use resblock::{Block, Context, Functional, GradMode, Layer, Linear, Node, Sequence, Stack, Workspace};
use std::fmt::Display;
use std::ops::Range;

/// One of the four kinds of network, as a value.
#[derive(Debug, Clone)]
pub(crate) enum Net {
    Linear(Linear),
    Block(Block),
    Stack(Stack),
    Sequence(Sequence),
}

/// The same expression for whichever layer it is.
macro_rules! with_net {
    ($net:expr, $layer:ident => $do:expr) => {
        match $net {
            Net::Linear($layer) => $do,
            Net::Block($layer) => $do,
            Net::Stack($layer) => $do,
            Net::Sequence($layer) => $do,
        }
    };
}

impl Net {
    /// One stage is a layer of its own, several are a stack: with projections, if the first is a linear layer. What does not make a
    /// stack is a sequence.
    pub(crate) fn new(stages: &[Stage]) -> Self {
        let is_block = |stage: &Stage| matches!(stage, Stage::Block { .. });
        let one_width = |blocks: &[Stage]| blocks.iter().all(|b| is_block(b) && b.inputs() == blocks[0].inputs());
        match stages {
            [stage @ Stage::Linear { .. }] => Net::Linear(stage.build_linear()),
            [stage] => Net::Block(stage.build_block()),
            [Stage::Linear { .. }, blocks @ .., Stage::Linear { .. }] if one_width(blocks) => {
                Net::Stack(build_stack(stages))
            }
            blocks if one_width(blocks) => {
                Net::Stack(Stack::from_blocks(blocks.iter().map(Stage::build_block).collect()).expect("a stack"))
            }
            _ => Net::sequence(stages),
        }
    }

    /// As a sequence, whatever the stages.
    pub(crate) fn sequence(stages: &[Stage]) -> Self {
        let node = |stage: &Stage| match stage {
            Stage::Linear { .. } => Node::from(stage.build_linear()),
            Stage::Block { .. } => Node::from(stage.build_block()),
        };
        Net::Sequence(Sequence::new(stages.iter().map(node)).expect("a sequence"))
    }

    /// Its formula alone.
    pub(crate) fn functional(&self) -> Functional {
        with_net!(self, net => Functional::of(net))
    }
}

/// How a batch is cut: rows of one call after the other, again and again. Empty: the whole batch at once.
pub(crate) type Split = &'static [usize];

/// The rows of each call: at least one call, even for a batch without rows.
pub(crate) fn pieces(rows: usize, split: Split) -> Vec<Range<usize>> {
    let mut pieces = vec![];
    let (mut first, mut sizes) = (0, split.iter().cycle());
    while first < rows || pieces.is_empty() {
        let size = sizes.next().map_or(rows, |&size| size.min(rows - first));
        pieces.push(first..first + size);
        first += size;
    }
    pieces
}

/// What one forward and backward pass leaves.
#[derive(Debug, Clone)]
pub(crate) struct Trained {
    pub(crate) y: Vec<f32>,
    pub(crate) dx: Vec<f32>,
    pub(crate) grads: Vec<MapGrad<f32>>,
}

impl Trained {
    #[track_caller]
    pub(crate) fn assert_same(&self, what: impl Display, want: &Trained) {
        assert_same(format_args!("{what}: y"), &self.y, &want.y);
        assert_same(format_args!("{what}: dx"), &self.dx, &want.dx);
        assert_same_grads(what, &self.grads, &want.grads);
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) stages: Vec<Stage>,
    pub(crate) net: Net,
    pub(crate) rows: usize,
    pub(crate) x: Vec<f32>,
    pub(crate) dy: Vec<f32>,
    /// What the parameter gradients hold before.
    pub(crate) preset: Vec<MapGrad<f32>>,
}

impl Problem {
    pub(crate) fn new(stages: Vec<Stage>, x: Vec<f32>, dy: Vec<f32>, preset: Vec<MapGrad<f32>>, rows: usize) -> Self {
        let net = Net::new(&stages);
        Self { stages, net, rows, x, dy, preset }
    }

    /// With an ordinary batch.
    pub(crate) fn random(rng: &mut Rng, stages: Vec<Stage>, rows: usize) -> Self {
        let (inputs, outputs) = (stages[0].inputs(), stages[stages.len() - 1].outputs());
        let (x, dy) = (rng.vec(rows * inputs), rng.vec(rows * outputs));
        let preset = random_grads(rng, &stages);
        Self::new(stages, x, dy, preset, rows)
    }

    /// Solved by the sequential oracle; gradients from zero, or going on from `preset`.
    pub(crate) fn oracle(&self, accumulate: bool) -> Trained {
        let mut grads = if accumulate { self.preset.clone() } else { zero_grads(&self.stages) };
        let mut outs = oracle_forward(&self.stages, self.rows, &self.x, None);
        let dx = oracle_backward(&self.stages, self.rows, &self.x, &outs, &self.dy, &mut grads).swap_remove(0);
        let grads = with_net!(&self.net, net => existing(net, &grads));
        Trained { y: outs.pop().expect("a stage").y, dx, grads }
    }

    /// Solved by the kernels, forward alone.
    pub(crate) fn infer(&self, ctx: &Context, ws: &mut Workspace, split: Split) -> Vec<f32> {
        with_net!(&self.net, net => {
            let (inputs, outputs) = (net.inputs(), net.outputs());
            let mut y = vec![f32::NAN; self.rows * outputs];
            for part in pieces(self.rows, split) {
                let x = mat(&self.x[part.start * inputs..part.end * inputs], part.len(), inputs);
                let y = mat_mut(&mut y[part.start * outputs..part.end * outputs], part.len(), outputs);
                net.infer(ctx, ws, x, y).expect("infer");
            }
            y
        })
    }

    /// Solved by the kernels; `preset` is overwritten by the first piece of the batch, or gone on from.
    pub(crate) fn train(&self, ctx: &Context, ws: &mut Workspace, split: Split, accumulate: bool) -> Trained {
        with_net!(&self.net, net => {
            let (inputs, outputs) = (net.inputs(), net.outputs());
            let (mut y, mut dx) = (vec![f32::NAN; self.rows * outputs], vec![f32::NAN; self.rows * inputs]);
            let mut grads = gradients_of(net, &self.preset);
            for part in pieces(self.rows, split) {
                let (ins, outs) = (part.start * inputs..part.end * inputs, part.start * outputs..part.end * outputs);
                let fresh = part.start == 0 && !accumulate;
                let mode = if fresh { GradMode::Overwrite } else { GradMode::Accumulate };
                let (x, dy) = (mat(&self.x[ins.clone()], part.len(), inputs), mat(&self.dy[outs.clone()], part.len(), outputs));
                let pass = net.forward(ctx, ws, x, mat_mut(&mut y[outs], part.len(), outputs)).expect("forward");
                let dx = mat_mut(&mut dx[ins], part.len(), inputs);
                pass.backward(dy, Some(dx), &mut grads, mode).expect("backward");
            }
            Trained { y, dx, grads: values_of(net, &grads) }
        })
    }
}
