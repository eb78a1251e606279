//! Training runs of 20 steps: by the library, and by the oracle with optimisers written out over rows of plain numbers.

use crate::cases;
use crate::common::optimizers::{adamw_step, sgd_step};
use crate::common::problem::{Split, pieces};
use crate::common::{
    Map, MapGrad, Rng, Stage, build_stack, mat, mat_mut, oracle_backward, oracle_forward, parameters_of, random_stack,
    zero_grads,
};
use crate::digest;
use resblock::{
    Activation, AdamW, Context, GradMode, Gradients, Layer, Optimizer, Sgd, Stack, Workspace, mean_squared_error,
    softmax_cross_entropy,
};

const STEPS: usize = 20;

/// A run: its name says the optimiser and the network, and its data follow from the name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) name: &'static str,
    adamw: bool,
    rows: usize,
    /// Inputs, width, hidden, outputs.
    widths: (usize, usize, usize, usize),
    blocks: usize,
    phi: Activation,
    skip: bool,
    /// Cross-entropy over classes, or squared errors.
    classes: bool,
}

pub(super) const RUNS: [Run; 4] = [
    Run {
        name: "train AdamW, 12 rows, 10 to 3 x 16 by 24 to 5, relu, residual, cross-entropy",
        adamw: true,
        rows: 12,
        widths: (10, 16, 24, 5),
        blocks: 3,
        phi: Activation::Relu,
        skip: true,
        classes: true,
    },
    Run {
        name: "train AdamW, 13 rows, 7 to 2 x 17 by 33 to 3, gelu, plain, squared error",
        adamw: true,
        rows: 13,
        widths: (7, 17, 33, 3),
        blocks: 2,
        phi: Activation::Gelu,
        skip: false,
        classes: false,
    },
    Run {
        name: "train Sgd with momentum, 12 rows, 10 to 3 x 16 by 24 to 5, silu, residual, squared error",
        adamw: false,
        rows: 12,
        widths: (10, 16, 24, 5),
        blocks: 3,
        phi: Activation::Silu,
        skip: true,
        classes: false,
    },
    // Enough work that threads share it.
    Run {
        name: "train AdamW, 64 rows, 20 to 3 x 48 by 64 to 10, gelu_tanh, residual, cross-entropy",
        adamw: true,
        rows: 64,
        widths: (20, 48, 64, 10),
        blocks: 3,
        phi: Activation::GeluTanh,
        skip: true,
        classes: true,
    },
];

/// What a run must repeat: the loss of each step and the parameters after the last.
fn line(losses: &[f64], parameters: &[Vec<f32>]) -> String {
    let losses: Vec<u8> = losses.iter().flat_map(|loss| loss.to_le_bytes()).collect();
    format!("losses={} parameters={}", digest::of_bytes(&losses), digest::of(parameters.iter().flatten()))
}

impl Run {
    fn start(&self) -> (Rng, Vec<Stage>) {
        let mut rng = cases::rng(self.name);
        let stages = random_stack(&mut rng, self.widths, self.blocks, self.phi, self.skip);
        (rng, stages)
    }

    /// A new batch: x, and the loss of y with its gradient. (Losses have no kernels: plain loops in f64.)
    fn batch(&self, rng: &mut Rng) -> (Vec<f32>, impl Fn(&[f32], &mut [f32]) -> f64 + use<>) {
        let (rows, outputs, classes) = (self.rows, self.widths.3, self.classes);
        let x = rng.vec(rows * self.widths.0);
        let labels: Vec<usize> = (0..rows).map(|_| rng.below(outputs)).collect();
        let target = rng.vec(rows * outputs);
        let loss = move |y: &[f32], dy: &mut [f32]| {
            let (y, dy) = (mat(y, rows, outputs), Some(mat_mut(dy, rows, outputs)));
            let loss = match classes {
                true => softmax_cross_entropy(y, &labels, dy),
                false => mean_squared_error(y, mat(&target, rows, outputs), dy),
            };
            loss.expect("a loss")
        };
        (x, loss)
    }

    /// By the library, on `ctx`, every batch cut by `split`.
    pub(super) fn run(&self, ctx: &Context, split: Split) -> String {
        if self.adamw { self.run_with(ctx, split, AdamW::new(3e-3)) } else { self.run_with(ctx, split, sgd()) }
    }

    fn run_with(&self, ctx: &Context, split: Split, mut optimizer: impl Optimizer) -> String {
        let (mut rng, stages) = self.start();
        let mut stack: Stack = build_stack(&stages);
        let (inputs, outputs) = (self.widths.0, self.widths.3);
        let (mut ws, mut grads) = (Workspace::new(), Gradients::new(&stack).expect("gradients"));
        let (mut y, mut dy, mut losses) = (vec![0.0; self.rows * outputs], vec![0.0; self.rows * outputs], Vec::new());
        for _ in 0..STEPS {
            let (x, loss) = self.batch(&mut rng);
            let x_of = |part: &std::ops::Range<usize>| {
                mat(&x[part.start * inputs..][..part.len() * inputs], part.len(), inputs)
            };
            // The loss is a mean over the whole batch, so its gradient is there before the first micro-batch goes backward.
            for part in pieces(self.rows, split) {
                let y = mat_mut(&mut y[part.start * outputs..][..part.len() * outputs], part.len(), outputs);
                stack.infer(ctx, &mut ws, x_of(&part), y).expect("infer");
            }
            losses.push(loss(&y, &mut dy));
            for part in pieces(self.rows, split) {
                let outs = part.start * outputs..part.end * outputs;
                let mode = if part.start == 0 { GradMode::Overwrite } else { GradMode::Accumulate };
                let y = mat_mut(&mut y[outs.clone()], part.len(), outputs);
                let pass = stack.forward(ctx, &mut ws, x_of(&part), y).expect("forward");
                pass.backward(mat(&dy[outs], part.len(), outputs), None, &mut grads, mode).expect("backward");
            }
            optimizer.step(ctx, &mut stack, &grads).expect("a step");
        }
        line(&losses, &parameters_of(&stack))
    }

    /// By the oracle.
    pub(super) fn oracle(&self) -> String {
        let (mut rng, mut stages) = self.start();
        // For each map the moments of its weights and of its bias.
        let mut moments: Vec<[Vec<[f32; 2]>; 2]> = Vec::new();
        for map in stages.iter().flat_map(Stage::maps) {
            moments.push([vec![[0.0; 2]; map.w.len()], vec![[0.0; 2]; map.outputs]]);
        }
        let mut losses = Vec::new();
        for t in 1..=STEPS as u64 {
            let (x, loss) = self.batch(&mut rng);
            let outs = oracle_forward(&stages, self.rows, &x, None);
            let y = &outs[outs.len() - 1].y;
            let mut dy = vec![0.0; y.len()];
            losses.push(loss(y, &mut dy));
            let mut grads = zero_grads(&stages);
            oracle_backward(&stages, self.rows, &x, &outs, &dy, &mut grads);
            let (adam, sgd) = (AdamW::new(3e-3), sgd());
            let step = |p: &mut f32, g, moments: &mut [f32; 2], is_weight| match self.adamw {
                true => adamw_step(&adam, t, p, g, moments, is_weight),
                false => sgd_step(&sgd, t, p, g, moments, is_weight),
            };
            let maps = stages.iter_mut().flat_map(|stage| match stage {
                Stage::Linear { map, .. } => vec![map],
                Stage::Block { first, second, .. } => vec![first, second],
            });
            for ((Map { w, b, .. }, MapGrad { dw, db }), [of_w, of_b]) in maps.zip(&grads).zip(&mut moments) {
                w.iter_mut().zip(dw).zip(of_w).for_each(|((p, &g), m)| step(p, g, m, true));
                b.iter_mut().flatten().zip(db).zip(of_b).for_each(|((p, &g), m)| step(p, g, m, false));
            }
        }
        let parameters = stages.iter().flat_map(Stage::maps).flat_map(|map| [Some(map.w.clone()), map.b.clone()]);
        line(&losses, &parameters.flatten().collect::<Vec<_>>())
    }
}

fn sgd() -> Sgd {
    let mut sgd = Sgd::new(0.02, 0.9);
    sgd.weight_decay = 1e-3;
    sgd
}
