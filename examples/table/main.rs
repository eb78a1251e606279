//! Blocks that people train, on real tables: tabular ResNets, pre-norm and gated blocks, each with its skip and without, over several seeds.
//!
//! ```text
//! cargo run --release --example table                                      # the handwritten digits that are at hand
//! examples/table/letters.sh && cargo run --release --example table -- --data target/letters.csv --label lettr
//! cargo run --release --example table -- --help
//! ```
//!
//! A network is a linear layer from the features to `--width`, `--depth` blocks of the form, the norm that its family ends with, and a linear layer to the
//! classes. The plain network of a form is the same blocks without x: y = G(x). All else is equal, and nothing was tuned for one or the other.
//! A random quarter of the rows is held out, the same one always; features are centred and divided by their deviation over the others.
//!
//! The same options give the same numbers on any number of threads and any instruction set, whatever `--record` allows; only the seconds differ.

mod data;
#[path = "../shared/output.rs"]
mod output;
mod train;

use clap::{Parser, ValueEnum};
use data::Table;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::ThreadPoolBuilder;
use resblock::{Activation, BlockForm, Context, Dropout, Norm, Par, Skip};
use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use train::{Outcome, Recipe};

/// Trains networks of several forms of blocks on a table, with skips and without.
#[derive(Debug, Parser)]
#[command(name = "table")]
struct Options {
    /// CSV with a header, features and one column of labels; the handwritten digits, unless given
    #[arg(long)]
    data: Option<PathBuf>,
    /// The column of labels; the last one, unless given
    #[arg(long, requires = "data")]
    label: Option<String>,
    /// Forms of blocks
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tabular,swiglu")]
    forms: Vec<Form>,
    /// Blocks
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    depth: u16,
    /// Features between blocks
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    width: u16,
    /// Hidden features inside a block
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    hidden: u16,
    /// Times that each row is seen
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
    epochs: u16,
    /// Rows in a step
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..))]
    batch: u16,
    /// Learning rate of AdamW after the warm-up of a tenth of the steps; falls to 0 by a cosine
    #[arg(long, default_value_t = 2e-3)]
    lr: f32,
    /// Probability that an element of h is dropped
    #[arg(long, default_value_t = 0.1)]
    dropout: f32,
    /// Train each with this many seeds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    seeds: u16,
    /// Bytes that the record of a training step may take: what does not fit is computed again
    #[arg(long, value_name = "BYTES")]
    record: Option<usize>,
    /// Threads; 0 for one on each core. Does not change any result
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(..=1024))]
    threads: u16,
}

/// A form of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// BatchNorm, ReLU (Gorishniy et al. 2021)
    Tabular,
    /// RMSNorm, SwiGLU (Llama)
    Swiglu,
    /// LayerNorm, GELU (ViT)
    Preln,
    /// ReLU alone
    Bare,
}

impl Form {
    /// Its block, and the norm and activation before the head.
    fn block(self, d: usize, h: usize, dropout: Dropout) -> (BlockForm, Option<(Norm, Activation)>) {
        let with = |form| BlockForm { dropout, ..form };
        match self {
            Form::Tabular => (BlockForm::tabular(d, h, dropout), Some((Norm::batch(1e-5), Activation::Relu))),
            Form::Swiglu => (with(BlockForm::llama(d, h)), Some((Norm::rms(1e-5), Activation::Identity))),
            Form::Preln => (with(BlockForm::vit(d, h)), Some((Norm::layer(1e-6), Activation::Identity))),
            Form::Bare => (with(BlockForm::new(d, h, Activation::Relu)), None),
        }
    }
}

/// With its skips or without.
const KINDS: [(&str, Skip); 2] = [("residual", Skip::Identity), ("plain", Skip::None)];

fn main() -> ExitCode {
    output::exit("table", run(&Options::parse()))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let table = match &options.data {
        Some(path) => Table::open(path, options.label.as_deref())?,
        None => Table::digits()?,
    };
    let split = table.split();
    let ctx = match options.threads {
        1 => Context::new()?,
        threads => {
            ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?;
            Context::new()?.with_par(Par::Rayon(0))
        }
    };
    let recipe = Recipe {
        epochs: options.epochs.into(),
        batch: usize::from(options.batch),
        lr: options.lr,
        record: options.record,
    };
    if split.train.len() < recipe.batch {
        return Err(format!("--batch: {} rows, and {} to learn from", recipe.batch, split.train.len()).into());
    }
    output::print(&format!(
        "{} rows to learn from, {} held out; {} features, {} classes. {} blocks, width {}, hidden {}; {} epochs in batches of {}.\n",
        split.train.len(),
        split.held_out.len(),
        table.features(),
        table.classes(),
        options.depth,
        options.width,
        options.hidden,
        options.epochs,
        options.batch,
    ))?;
    let mut report = format!(
        "\n{:<18}{:>12}{:>13}{:>22}{:>17}{:>16}\n",
        "network", "parameters", "train loss", "held out, mean", "least", "seconds a seed"
    );
    for &form in &options.forms {
        let name = form.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        for (kind, skip) in KINDS {
            let dropout = Dropout { hidden: options.dropout, ..Dropout::default() };
            let (block, head) = form.block(options.width.into(), options.hidden.into(), dropout);
            let block = BlockForm { skip, ..block };
            let mut outcomes = Vec::new();
            for seed in 1..=u64::from(options.seeds) {
                let style = ProgressStyle::with_template("{prefix:>26}  {bar:30} epoch {pos}/{len}  {msg}")?;
                let bar = ProgressBar::new(options.epochs.into()).with_style(style);
                bar.set_prefix(format!("{name} {kind}, seed {seed}"));
                let net = train::network(&table, &block, head, options.depth.into(), seed)?;
                let outcome = train::train(&ctx, net, &recipe, &split, seed, |loss, accuracy| {
                    bar.set_message(format!("loss {loss:.4}, {:.2} % held out", 100.0 * accuracy));
                    bar.inc(1);
                })?;
                bar.finish();
                outcomes.push(outcome);
            }
            // Writing to a string cannot fail.
            let _ = writeln!(report, "{}", line(&format!("{name} {kind}"), &outcomes));
        }
    }
    output::print(&report)
}

/// What came of the seeds of one network.
fn line(name: &str, outcomes: &[Outcome]) -> String {
    let mean = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len() as f64;
    let least = outcomes.iter().map(|outcome| outcome.accuracy).fold(f64::INFINITY, f64::min);
    format!(
        "{name:<18}{:>12}{:>13.4}{:>20.2} %{:>15.2} %{:>16.1}",
        outcomes.first().map_or(0, |outcome| outcome.parameters),
        mean(|outcome| outcome.loss),
        100.0 * mean(|outcome| outcome.accuracy),
        100.0 * least,
        mean(|outcome| outcome.seconds),
    )
}
