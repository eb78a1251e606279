//! A residual network as a differential equation: x + Δt G(x) is one Euler step of dx/dt = G(x), and a stack of such blocks is its flow.
//!
//! ```text
//! cargo run --release --example flow               # a second
//! cargo run --release --example flow -- --help
//! ```
//!
//! The equation is known: dx/dt = A x, A a damped rotation, whose solution is x(t) = e^(-at) R(ωt) x(0). From samples of x and dx/dt a plain block,
//! G(x) = W2 W1 x, learns A. Its weights then go into stacks of residual blocks, y = x + Δt G(x), of more and more layers and as much shorter
//! steps, which all take x(0) to the same time. What is printed, and drawn to `--out`, is how far they end from the solution: the
//! error falls as the first order of Δt, twice the layers, half the error. Heun's step, built of two evaluations of G, is of second order:
//! ½ x + ½ E(E(x)), E being the Euler block. Both fall until they meet what f32 leaves of the learned A.

#[path = "../shared/output.rs"]
mod output;
mod picture;

use clap::Parser;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use resblock::{
    Activation, AdamW, Affine, Block, BlockForm, BranchScale, Context, Error, GradMode, Gradients, Init, Layer, MatMut,
    MatRef, Optimizer, RateDecay, Schedule, Skip, Stack, Workspace, mean_squared_error, rows_of, rows_of_mut,
};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Damping a and angular velocity ω of A = [[-a, ω], [-ω, -a]].
const A: (f32, f32) = (0.15, 1.5);
/// The time of the flow.
const TIME: f32 = 2.0;
/// Features of x, and hidden ones of G.
const D: usize = 2;
const H: usize = 8;

/// Learns the flow of a linear differential equation, and integrates it by stacks of residual blocks.
#[derive(Debug, Parser)]
#[command(name = "flow")]
struct Options {
    /// Steps of training
    #[arg(long, default_value_t = 2000)]
    steps: u64,
    /// Seed of samples and initial weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the picture goes
    #[arg(long, default_value = "target/flow")]
    out: PathBuf,
}

fn main() -> ExitCode {
    output::exit("flow", run(&Options::parse()))
}

/// One way to integrate: of what step, and how far from the solution it ends.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    dt: f64,
    euler: f64,
    heun: f64,
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut points = |n: usize| (0..n * D).map(|_| rng.random_range(-1.0..1.0f32)).collect::<Vec<f32>>();
    let (x, starts) = (points(256), points(256));
    let ctx = Context::new()?;
    let (field, loss) = learn(&ctx, options, &x)?;
    let learned = matrix(&ctx, &field)?;

    let mut text = format!("learned A = {learned:.6?}, to be [-{0}, {1}, -{1}, -{0}]; loss {loss:.1e}\n\n", A.0, A.1);
    writeln!(text, "layers       Δt   Euler error  order    Heun error  order")?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    for layers in [8, 16, 32, 64, 128, 256, 512] {
        let (euler, heun) = (integrate(&ctx, &field, layers, &starts)?, integrate_heun(&ctx, &field, layers, &starts)?);
        let error = |ends: &[f32]| largest_distance(ends, &starts);
        let now = Outcome { dt: f64::from(TIME) / layers as f64, euler: error(&euler), heun: error(&heun) };
        let order = |of: fn(&Outcome) -> f64| {
            outcomes.last().map_or_else(String::new, |last| format!("{:.2}", (of(last) / of(&now)).log2()))
        };
        let (first, second) = (order(|o| o.euler), order(|o| o.heun));
        let Outcome { dt, euler, heun, .. } = now;
        writeln!(text, "{layers:6} {dt:8.5} {euler:13.2e} {first:>6} {heun:13.2e} {second:>6}")?;
        outcomes.push(now);
    }
    let path = picture::write(&options.out, &outcomes, |layers| trajectory(&ctx, &field, layers))?;
    writeln!(text, "\npicture: {}", path.display())?;
    output::print(&text)
}

/// A block G that has learned dx/dt at samples of x, and its last loss.
fn learn(ctx: &Context, options: &Options, x: &[f32]) -> Result<(Block, f64), Error> {
    let slopes: Vec<f32> = x.chunks(D).flat_map(|x| [-A.0 * x[0] + A.1 * x[1], -A.1 * x[0] - A.0 * x[1]]).collect();
    let form = BlockForm { skip: Skip::None, biases: false, ..BlockForm::new(D, H, Activation::Identity) };
    let mut block = Block::with_form(&form, &mut Init::xavier(options.seed))?;
    let (mut ws, mut grads, mut adam) = (Workspace::new(), Gradients::new(&block)?, AdamW::new(1e-2));
    adam.weight_decay = 0.0;
    let schedule = Schedule::new(1e-2, 0, RateDecay::Cosine { end: options.steps, floor: 1e-6 })?;
    let (mut y, mut dy, mut loss) = (vec![0.0; x.len()], vec![0.0; x.len()], 0.0);
    for step in 0..options.steps {
        adam.lr = schedule.rate(step);
        let pass = block.forward(ctx, &mut ws, rows_of(x, D)?, rows_of_mut(&mut y, D)?)?;
        loss = mean_squared_error(rows_of(&y, D)?, rows_of(&slopes, D)?, Some(rows_of_mut(&mut dy, D)?))?;
        pass.backward(rows_of(&dy, D)?, None, &mut grads, GradMode::Overwrite)?;
        adam.step(ctx, &mut block, &grads)?;
    }
    Ok((block, loss))
}

/// The matrix that a block without biases and activation multiplies by, row by row.
fn matrix(ctx: &Context, field: &Block) -> Result<[f32; 4], Error> {
    let mut columns = [0.0; 4];
    let out = MatMut::new(&mut columns, D, D)?;
    field.infer(ctx, &mut Workspace::new(), MatRef::new(&[1.0, 0.0, 0.0, 1.0], D, D)?, out)?;
    Ok([columns[0], columns[2], columns[1], columns[3]])
}

/// Euler steps of `dt`: residual blocks with the weights of the field.
fn steps(field: &Block, layers: usize, dt: f32) -> Result<Stack, Error> {
    let form = BlockForm { skip: Skip::Identity, branch_scale: BranchScale::Constant(dt), ..*field.form() };
    let maps = || -> Vec<Affine> { (0..2).filter_map(|i| field.affine(i)).cloned().collect() };
    Stack::from_blocks((0..layers).map(|_| Block::from_parts(&form, maps(), vec![])).collect::<Result<_, _>>()?)
}

fn infer(ctx: &Context, net: &Stack, ws: &mut Workspace, x: &[f32]) -> Result<Vec<f32>, Error> {
    let mut y = vec![0.0; x.len()];
    net.infer(ctx, ws, rows_of(x, D)?, rows_of_mut(&mut y, D)?)?;
    Ok(y)
}

/// Where the flow ends after [`TIME`], by a stack of so many Euler blocks.
fn integrate(ctx: &Context, field: &Block, layers: usize, starts: &[f32]) -> Result<Vec<f32>, Error> {
    infer(ctx, &steps(field, layers, TIME / layers as f32)?, &mut Workspace::new(), starts)
}

/// The same by Heun steps: x + Δt/2 (G(x) + G(x + Δt G(x))), which is the mean of x and two Euler steps.
fn integrate_heun(ctx: &Context, field: &Block, layers: usize, starts: &[f32]) -> Result<Vec<f32>, Error> {
    let (two, mut ws, mut x) = (steps(field, 2, TIME / layers as f32)?, Workspace::new(), starts.to_vec());
    for _ in 0..layers {
        let ends = infer(ctx, &two, &mut ws, &x)?;
        x.iter_mut().zip(ends).for_each(|(x, end)| *x = 0.5 * *x + 0.5 * end);
    }
    Ok(x)
}

/// x(t) from a start: e^(-at) R(ωt) x(0).
fn solution(start: [f64; 2], t: f64) -> [f64; 2] {
    let (decay, angle) = ((-f64::from(A.0) * t).exp(), f64::from(A.1) * t);
    let (sin, cos) = angle.sin_cos();
    [decay * (cos * start[0] + sin * start[1]), decay * (cos * start[1] - sin * start[0])]
}

/// The largest distance of an end from the solution.
fn largest_distance(ends: &[f32], starts: &[f32]) -> f64 {
    let distance = |(end, start): (&[f32], &[f32])| {
        let want = solution([f64::from(start[0]), f64::from(start[1])], f64::from(TIME));
        (f64::from(end[0]) - want[0]).hypot(f64::from(end[1]) - want[1])
    };
    ends.chunks(D).zip(starts.chunks(D)).map(distance).fold(0.0, f64::max)
}

/// The way of one point through the layers: of Euler steps, and of Heun steps.
fn trajectory(ctx: &Context, field: &Block, layers: usize) -> Result<[Vec<(f64, f64)>; 2], Error> {
    let dt = TIME / layers as f32;
    let (one, two, mut ws) = (steps(field, 1, dt)?, steps(field, 2, dt)?, Workspace::new());
    let start = vec![1.0, 0.0];
    let (mut euler, mut heun) = (vec![start.clone()], vec![start]);
    for layer in 0..layers {
        euler.push(infer(ctx, &one, &mut ws, &euler[layer])?);
        let ends = infer(ctx, &two, &mut ws, &heun[layer])?;
        heun.push(heun[layer].iter().zip(ends).map(|(x, end)| 0.5 * x + 0.5 * end).collect());
    }
    let points = |way: Vec<Vec<f32>>| way.iter().map(|x| (f64::from(x[0]), f64::from(x[1]))).collect();
    Ok([points(euler), points(heun)])
}
