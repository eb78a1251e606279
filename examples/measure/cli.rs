//! The command line.

use crate::support::form::Form;
use crate::support::problem::Shape;
use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use resblock::{Activation, BlockForm, Dropout, Keep, Skip};

/// Measures a stack of residual blocks, y = x + phi(x W1 + b1) W2 + b2, and prints a CSV row: best and median time of a call,
/// operations a second, and the fraction of the CPU's fused multiply-add peak, measured in the same run, that this is.
///
/// The instruction set is the fastest that there is; RESBLOCK_ISA=avx2, say, chooses another.
#[derive(Debug, Parser)]
#[command(version, allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Rows of the batch
    #[arg(long, default_value_t = 256, value_parser = positive)]
    pub(crate) batch: usize,
    /// Features of a row, between blocks
    #[arg(long, default_value_t = 256, value_parser = positive)]
    pub(crate) features: usize,
    /// Hidden features, between the two weight layers of a block
    #[arg(long, default_value_t = 256, value_parser = positive)]
    pub(crate) hidden: usize,
    /// Number of blocks
    #[arg(long, default_value_t = 1, value_parser = positive)]
    pub(crate) depth: usize,
    /// The form of the blocks; gated ones bring their own activation. `--serve` is told it with each request
    #[arg(long, value_enum, default_value_t = Form::Bare, conflicts_with = "unfused")]
    pub(crate) form: Form,
    /// Probability to drop hidden activations in training
    #[arg(long, default_value_t = 0.0, conflicts_with = "unfused")]
    pub(crate) dropout: f32,
    /// Blocks with a skip connection, or without one
    #[arg(long, default_value = "residual", value_parser = PossibleValuesParser::new(["residual", "plain"]).map(skip))]
    pub(crate) block: Skip,
    /// Activation between the two weight layers (leaky_relu: slope 0.01; gelu: by erf; gelu_tanh: by tanh; silu_beta: 1.702; elu: 1)
    #[arg(long, default_value = "relu", value_parser = activation_parser())]
    pub(crate) activation: Activation,
    /// Inference with weights packed once, or a training step: forward, backward with every gradient, and what must be redone
    /// because the weights have changed; without the optimiser's arithmetic
    #[arg(long, default_value = "forward", value_parser = PossibleValuesParser::new(["forward", "train"]).map(mode))]
    pub(crate) mode: Mode,
    /// Threads, the calling one among them. Of a list, 1,2,4 say, each is measured by turns, and the last columns are the speed-up over
    /// the first and that for each thread
    #[arg(long, default_value = "1", value_parser = thread_count, value_delimiter = ',', num_args = 1)]
    pub(crate) threads: Vec<usize>,
    /// Time to measure for, after warming up
    #[arg(long, default_value_t = 0.5, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Measure the same block done with matrixmultiply's GEMM and plain loops (one thread)
    #[arg(long)]
    pub(crate) unfused: bool,
    /// Whose the weights are: the network's own, packed once, or the caller's, in row-major slices of this orientation, which
    /// functional calls bring into panels each time
    #[arg(long, value_enum, default_value_t = Weights::Owned, conflicts_with = "unfused")]
    pub(crate) weights: Weights,
    /// What a training step keeps for its backward pass: all that it reads, or what enters each block, the rest being computed again
    #[arg(long, value_enum, default_value_t = Kept::All, conflicts_with = "unfused")]
    pub(crate) keep: Kept,
    /// Measure what plans are made from, print it, and make plans from it
    #[arg(long)]
    pub(crate) machine: bool,
    /// Microseconds that helpers wait after a call for the next one [default: the crate's]
    #[arg(long)]
    pub(crate) linger: Option<u64>,
    /// Leave out the CSV header
    #[arg(long)]
    pub(crate) no_header: bool,
    /// Answer `bench`, `check` and `quit` lines on standard input instead, on PEER_THREADS threads
    #[arg(long, conflicts_with_all = [
        "batch", "features", "hidden", "depth", "block", "activation", "mode", "seconds", "no_header",
    ])]
    pub(crate) serve: bool,
}

impl Args {
    pub(crate) fn shape(&self) -> Shape {
        Shape::new(self.batch, self.features, self.hidden, self.depth)
    }

    pub(crate) fn block_form(&self) -> BlockForm {
        let dropout = Dropout { hidden: self.dropout, ..Dropout::default() };
        let form = BlockForm { dropout, ..self.form.block(self.features, self.hidden, self.activation) };
        if self.block == Skip::None { BlockForm { skip: Skip::None, ..form } } else { form }
    }
}

/// What a timed call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Forward,
    Train,
}

/// Whose weights, and which way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Weights {
    Owned,
    InOut,
    OutIn,
}

/// What goes on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kept {
    All,
    Inputs,
}

impl From<Kept> for Keep {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::All => Keep::All,
            Kept::Inputs => Keep::Inputs,
        }
    }
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Forward => "forward",
            Mode::Train => "train",
        }
    }

    /// Operations for each one of a forward pass.
    pub(crate) fn factor(self) -> f64 {
        match self {
            Mode::Forward => 1.0,
            Mode::Train => 3.0,
        }
    }
}

fn activation_parser() -> impl TypedValueParser<Value = Activation> {
    PossibleValuesParser::new(Activation::ALL.map(Activation::name)).try_map(|name| {
        Activation::ALL.into_iter().find(|a| a.name() == name).ok_or("unknown activation") // cannot be: clap knows the names
    })
}

fn skip(name: String) -> Skip {
    if name == "plain" { Skip::None } else { Skip::Identity }
}

fn mode(name: String) -> Mode {
    if name == "train" { Mode::Train } else { Mode::Forward }
}

/// A size of at least one.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(error) => Err(error.to_string()),
    }
}

/// A number of threads that an operating system can be asked for.
pub(crate) fn thread_count(text: &str) -> Result<usize, String> {
    positive(text).and_then(|n| if n <= 1024 { Ok(n) } else { Err("must be at most 1024".into()) })
}

/// A time to measure for.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if (0.0..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("must be from 0 to 3600".into()) }
}
