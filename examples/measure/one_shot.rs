//! One measurement as a CSV row, or one for each number of threads of a list.

use crate::cli::{Args, Mode};
use crate::support::Runner;
use crate::support::form::Form;
use crate::support::problem::{Problem, Shape};
use crate::timing::{Times, time};
use crate::{output, serve, threads};
use clap::ValueEnum;
use resblock::{Context, Skip, fma_peak, read_bandwidth};
use std::error::Error;
use std::time::Duration;

const COLUMNS: [&str; 16] = [
    "batch",
    "features",
    "hidden",
    "depth",
    "block",
    "activation",
    "mode",
    "threads",
    "isa",
    "best_us",
    "median_us",
    "gflops",
    "peak_gflops",
    "peak_fraction",
    // Weights read, in training read twice and their gradients written; and what a plain loop reads from as many bytes as these.
    "weights_gbs",
    "stream_gbs",
];

/// What a list of threads has beside these.
const OF_A_LIST: [&str; 2] = ["speedup", "efficiency"];
/// Turns that each number of threads of a list has.
const TURNS: usize = 3;

/// Measures what `args` say and prints a row for each number of threads.
pub(crate) fn one_shot(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.unfused && args.threads != [1] {
        return Err("--unfused runs on one thread: leave out --threads".into());
    }
    let shape = args.shape();
    serve::check_size(shape)?;
    let contexts = threads::contexts(&args.threads, args)?;
    let problem = Problem::random(shape, args.block_form())?;
    let runners = contexts.iter().map(|ctx| serve::runner(ctx, &problem, args));
    let mut runners = runners.collect::<Result<Vec<_>, _>>()?;
    let is_list = args.threads.len() > 1;
    let turns = if is_list { TURNS } else { 1 };
    let mut measured = vec![Measured { best: f64::INFINITY, medians: Vec::new(), peak: 0.0 }; contexts.len()];
    // By turns, so that a slow minute of the machine is everybody's.
    for _ in 0..turns {
        for ((ctx, runner), measured) in contexts.iter().zip(&mut runners).zip(&mut measured) {
            measured.turn(ctx, args, args.seconds / turns as f64, &mut **runner)?;
        }
    }
    let mut csv = csv::Writer::from_writer(Vec::new());
    if !args.no_header {
        csv.write_record(COLUMNS.iter().chain(OF_A_LIST.iter().filter(|_| is_list)))?;
    }
    let first = (measured[0].best, args.threads[0] as f64);
    for ((ctx, &threads), measured) in contexts.iter().zip(&args.threads).zip(&measured) {
        let mut row = measured.row(ctx, args, &problem, threads)?;
        if is_list {
            let speedup = first.0 / measured.best;
            row.extend([format!("{speedup:.2}"), format!("{:.2}", speedup * first.1 / threads as f64)]);
        }
        csv.write_record(row)?;
    }
    output::print(&String::from_utf8(csv.into_inner()?)?)
}

/// What was seen on one number of threads: microseconds, and the FMA peak.
#[derive(Debug, Clone)]
struct Measured {
    best: f64,
    medians: Vec<f64>,
    peak: f64,
}

impl Measured {
    fn turn(
        &mut self,
        ctx: &Context,
        args: &Args,
        seconds: f64,
        runner: &mut dyn Runner,
    ) -> Result<(), Box<dyn Error>> {
        // Before and after, and the higher counts: clock rates change, and a fraction of a peak that was too low says too much.
        let peak = || fma_peak(ctx, Duration::from_secs_f64((seconds / 4.0).clamp(0.02, 0.2))).map(|peak| peak.gflops);
        let before = peak()?;
        let Times { best, median, .. } = time(seconds, || match args.mode {
            Mode::Forward => runner.forward(),
            Mode::Train => runner.train(),
        })?;
        self.peak = self.peak.max(before).max(peak()?);
        self.best = self.best.min(best);
        self.medians.push(median);
        Ok(())
    }

    /// The columns of a row.
    fn row(
        &self,
        ctx: &Context,
        args: &Args,
        problem: &Problem,
        threads: usize,
    ) -> Result<Vec<String>, Box<dyn Error>> {
        let Shape { batch, features, hidden, depth } = args.shape();
        let Self { best, ref medians, peak } = *self;
        let mut medians = medians.clone();
        medians.sort_by(f64::total_cmp);
        let median = medians[medians.len() / 2];
        let weights = 4.0 * problem.weights() as f64;
        let moved = match args.mode {
            Mode::Forward => weights,
            Mode::Train => 3.0 * weights,
        };
        let stream = read_bandwidth(ctx, moved as usize, Duration::from_millis(50))?;
        let gflops = problem.flops() * args.mode.factor() / best / 1e3;
        let form = args.form.to_possible_value().map(|form| form.get_name().to_owned()).unwrap_or_default();
        let block = match (args.unfused, args.block, args.form) {
            (true, ..) => "unfused",
            (false, Skip::None, _) => "plain",
            (false, _, Form::Bare) => "residual",
            _ => &form,
        };
        Ok(vec![
            batch.to_string(),
            features.to_string(),
            hidden.to_string(),
            depth.to_string(),
            block.into(),
            problem.form.activation.name().into(),
            args.mode.name().into(),
            threads.to_string(),
            ctx.isa().to_string(),
            format!("{best:.3}"),
            format!("{median:.3}"),
            format!("{gflops:.2}"),
            format!("{peak:.2}"),
            format!("{:.4}", gflops / peak),
            format!("{:.1}", moved / best / 1e3),
            format!("{stream:.1}"),
        ])
    }
}
