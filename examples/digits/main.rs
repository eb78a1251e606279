//! Does a skip connection let a deep net learn? Trains two nets of 50 blocks (100 layers of weights, width 64) on real
//! handwritten digits, one with skips, y = x + G(x), and one without, y = G(x), all else equal.
//!
//! ```text
//! cargo run --release --example digits               # both nets, some seconds
//! cargo run --release --example digits -- --seeds 5 # five of each, with mean and least accuracy
//! cargo run --release --example digits -- --checkpoint out/run --resume # saved after every epoch; goes on if it was killed
//! cargo run --release --example digits -- --help
//! ```
//!
//! What one sees: a progress bar for each net, then a table of what they learned and of the gradient that arrived at the first
//! and at the last block, before and after training. The residual net recognises 98 to 99 % of the digits it has not seen; the
//! plain net, as large and trained as long, between a tenth of them, which is chance, and nine tenths, depending on its seed. Two pictures go to
//! `--out`: loss and accuracy over the epochs, and gradient norms over depth.
//!
//! The plain net gets the initialisation that suited it best of those tried. With W2 scaled by 1 / sqrt(2), activations and
//! gradients keep their size on average through a block of He-initialised weights, so that its gradient does not vanish at the
//! start; it still learns worse, with five times the epochs too. Without that care it does not learn: what is printed last shows
//! how the same plain net's gradient explodes with W2 as He et al. have it, and vanishes with W2 as in the residual net. A
//! residual net needs no such care.
//!
//! The data are the 1,797 digits of the UCI machine learning repository (`examples/data/README.md`), 8 x 8 pixels each. A
//! random quarter is held out, the same one for every run. It holds other digits by the same 13 writers, so that the accuracy
//! is not that for a stranger's hand. Learning rate, batch, epochs, noise and the plain net's scale were chosen by hand, with
//! `--validate` (a fifth of the training images held out in place of that quarter) and seeds 101 to 105.
//!
//! The same seed gives the same numbers, on any number of threads and any instruction set, killed and resumed or not; only the
//! seconds differ.

mod checkpoint;
mod data;
#[path = "../shared/output.rs"]
mod output;
mod pictures;
mod report;
mod train;

use checkpoint::{Settings, Store, StoreError};
use clap::{Parser, ValueEnum};
use data::{CLASSES, PIXELS, Split};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::ThreadPoolBuilder;
use resblock::{Context, GradientFlow, Par, Skip, StackConfig};
use std::error::Error;
use std::f32::consts::FRAC_1_SQRT_2;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use train::{Outcome, Recipe};

/// Trains deep residual and plain nets on handwritten digits and compares them.
#[derive(Debug, Parser)]
#[command(name = "digits")]
struct Options {
    /// Blocks of two weight layers
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    depth: u16,
    /// Features between blocks
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    width: u16,
    /// Hidden features inside a block
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    hidden: u16,
    /// Times that each training image is seen
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..))]
    epochs: u16,
    /// Images in a step, at most all of them
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Learning rate of AdamW after the warm-up of a tenth of the steps; falls to 0 by a cosine
    #[arg(long, default_value_t = 1e-3, value_parser = positive)]
    lr: f32,
    /// Weight decay of AdamW
    #[arg(long, default_value_t = 0.01, value_parser = not_negative)]
    weight_decay: f32,
    /// Deviation of the noise on training images, where pixels have 1
    #[arg(long, default_value_t = 0.4, value_parser = not_negative)]
    noise: f32,
    /// Factor on the initial W2 of a plain net's blocks (a residual net has 1 / sqrt(depth))
    #[arg(long, default_value_t = FRAC_1_SQRT_2, value_parser = not_negative)]
    plain_scale: f32,
    /// Seed of the first net: initial weights, order of images, noise
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Train with this many seeds, one after the other, and print mean and least accuracy
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    seeds: u16,
    /// Train nets of one kind only
    #[arg(long)]
    only: Option<Kind>,
    /// Leave the held-out quarter unseen and measure on a fifth of the training images instead: for choosing options
    #[arg(long)]
    validate: bool,
    /// Threads; 0 for one on each core. Does not change any result
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(..=1024))]
    threads: u16,
    /// Folder for the pictures, made if need be
    #[arg(long, default_value = "out")]
    out: PathBuf,
    /// Folder for a checkpoint of each net, saved after every epoch
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Go on from the checkpoints that are there, to the same bits as if the run had never stopped
    #[arg(long, requires = "checkpoint")]
    resume: bool,
}

fn not_negative(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("must be finite and not negative".into()) }
}

fn positive(text: &str) -> Result<f32, String> {
    not_negative(text).and_then(|value| if value > 0.0 { Ok(value) } else { Err("must be above 0".into()) })
}

/// With or without skips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Residual,
    Plain,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Residual => "residual",
            Kind::Plain => "plain",
        })
    }
}

/// A net to be trained.
struct Net {
    kind: Kind,
    seed: u64,
    store: Option<Store>,
}

/// A trained net.
struct Run {
    kind: Kind,
    seed: u64,
    outcome: Outcome,
}

/// The gradient of an untrained plain net whose W2 are scaled otherwise.
struct Probe {
    label: &'static str,
    scale: f32,
    flow: GradientFlow,
}

impl Options {
    /// 1 / sqrt(depth): keeps activations and gradients of one size through a residual net.
    fn residual_scale(&self) -> f32 {
        1.0 / f32::from(self.depth).sqrt()
    }

    fn config(&self, kind: Kind, seed: u64) -> StackConfig {
        let (skip, branch_scale) = match kind {
            Kind::Residual => (Skip::Identity, self.residual_scale()),
            Kind::Plain => (Skip::None, self.plain_scale),
        };
        StackConfig {
            inputs: PIXELS,
            width: self.width.into(),
            hidden: self.hidden.into(),
            blocks: self.depth.into(),
            outputs: CLASSES,
            skip,
            branch_scale,
            seed,
            ..StackConfig::default()
        }
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            epochs: self.epochs.into(),
            batch: self.batch.into(),
            lr: self.lr,
            weight_decay: self.weight_decay,
            noise: self.noise,
        }
    }

    /// All that the bits of a trained net depend on.
    fn settings(&self, kind: Kind, seed: u64) -> Settings {
        let Self { depth, width, hidden, epochs, batch, lr, weight_decay, noise, validate, .. } = self;
        let scale = self.config(kind, seed).branch_scale;
        let settings: [(&str, &dyn fmt::Display); _] = [
            ("kind", &kind),
            ("seed", &seed),
            ("depth", depth),
            ("width", width),
            ("hidden", hidden),
            ("epochs", epochs),
            ("batch", batch),
            ("lr", lr),
            ("weight-decay", weight_decay),
            ("noise", noise),
            ("scale", &scale),
            ("validate", validate),
        ];
        settings.map(|(option, value)| (option.to_string(), value.to_string())).into()
    }

    fn net(&self, kind: Kind, seed: u64) -> Result<Net, StoreError> {
        let path = self.checkpoint.as_ref().map(|folder| folder.join(format!("{kind}-{seed}.safetensors")));
        let store = path.map(|path| Store::new(path, self.settings(kind, seed), self.resume)).transpose()?;
        Ok(Net { kind, seed, store })
    }

    fn context(&self) -> Result<Context, Box<dyn Error>> {
        let ctx = Context::new()?;
        if self.threads == 1 {
            return Ok(ctx); // no pool at all
        }
        ThreadPoolBuilder::new().num_threads(self.threads.into()).build_global()?;
        Ok(ctx.with_par(Par::Rayon(0)))
    }

    /// Trains one net behind a progress bar.
    fn train(&self, ctx: &Context, split: &Split, net: &Net) -> Result<Run, Box<dyn Error>> {
        let Net { kind, seed, ref store } = *net;
        let style = "{prefix:>18}  {bar:30} epoch {pos}/{len}  {msg}";
        let bar = ProgressBar::new(self.epochs.into()).with_style(ProgressStyle::with_template(style)?);
        bar.set_prefix(format!("{kind}, seed {seed}"));
        let (config, recipe) = (self.config(kind, seed), self.recipe());
        let outcome = train::train(ctx, &config, &recipe, split, store.as_ref(), |epoch| {
            let (train, held_out) = (100.0 * epoch.train_accuracy, 100.0 * epoch.held_out_accuracy);
            bar.set_message(format!(
                "loss {:.4}, accuracy {train:.1} % training, {held_out:.1} % held out",
                epoch.train_loss
            ));
            bar.inc(1);
        })
        .map_err(|error| format!("{kind}, seed {seed}: {error}"))?;
        bar.finish();
        Ok(Run { kind, seed, outcome })
    }
}

fn main() -> ExitCode {
    output::exit("digits", run(&Options::parse()))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let split = Split::load(options.validate)?;
    let ctx = options.context()?;
    // Now rather than after the training, should it fail.
    fs::create_dir_all(&options.out).map_err(|e| format!("--out {}: {e}", options.out.display()))?;
    if let Some(folder) = &options.checkpoint {
        fs::create_dir_all(folder).map_err(|e| format!("--checkpoint {}: {e}", folder.display()))?;
    }
    output::print(&format!("{}\n", report::heading(options, &split, &ctx)))?;

    let kinds = options.only.map_or(vec![Kind::Residual, Kind::Plain], |kind| vec![kind]);
    let end = options.seed.checked_add(options.seeds.into()).ok_or("--seed: too large for that many --seeds")?;
    let seeds = options.seed..end;
    // All of them first: a checkpoint in the way of the last is found before the first is trained.
    let nets = kinds.iter().flat_map(|&kind| seeds.clone().map(move |seed| (kind, seed)));
    let nets: Vec<Net> = nets.map(|(kind, seed)| options.net(kind, seed)).collect::<Result<_, _>>()?;
    let runs: Vec<Run> = nets.iter().map(|net| options.train(&ctx, &split, net)).collect::<Result<_, _>>()?;
    let mut probes = Vec::new();
    if kinds.contains(&Kind::Plain) {
        for (label, scale) in [("He et al.", 1.0), ("as in the residual net", options.residual_scale())] {
            let config = StackConfig { branch_scale: scale, ..options.config(Kind::Plain, options.seed) };
            probes.push(Probe { label, scale, flow: train::probe(&ctx, &config, &split)? });
        }
    }
    output::print(&format!("{}\n", report::nets(options, &runs)))?;
    if options.seeds > 1 {
        output::print(&format!("{}\n", report::seeds(&kinds, &runs)))?;
    }
    if !probes.is_empty() {
        output::print(&format!("{}\n", report::probes(options, &probes)))?;
    }
    for path in pictures::write(options, &runs, &probes)? {
        output::print(&format!("wrote {}\n", path.display()))?;
    }
    Ok(())
}
