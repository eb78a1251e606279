//! One measurement as a CSV row.

use crate::cli::{Args, Mode};
use crate::support::problem::{Problem, Shape};
use crate::timing::{Times, time};
use crate::{output, serve, threads};
use resblock::{Skip, fma_peak, read_bandwidth};
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

/// Measures what `args` say and prints the row.
pub(crate) fn one_shot(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.unfused && args.threads != 1 {
        return Err("--unfused runs on one thread: leave out --threads".into());
    }
    let shape @ Shape { batch, features, hidden, depth } = args.shape();
    serve::check_size(shape)?;
    let ctx = threads::context(args.threads, args)?;
    let problem = Problem::random(shape, args.activation, args.block);
    let mut runner = serve::runner(&ctx, &problem, args)?;
    // Before and after, and the higher counts: clock rates change, and a fraction of a peak that was too low says too much.
    let peak =
        || fma_peak(&ctx, Duration::from_secs_f64((args.seconds / 4.0).clamp(0.02, 0.2))).map(|peak| peak.gflops);
    let before = peak()?;
    let Times { best, median, .. } = time(args.seconds, || match args.mode {
        Mode::Forward => runner.forward(),
        Mode::Train => runner.train(),
    })?;
    let peak = before.max(peak()?);
    let weights = 8.0 * (features * hidden * depth) as f64;
    let moved = match args.mode {
        Mode::Forward => weights,
        Mode::Train => 3.0 * weights,
    };
    let stream = read_bandwidth(&ctx, moved as usize, Duration::from_millis(50))?;
    let gflops = shape.flops() * args.mode.factor() / best / 1e3;
    let block = match (args.unfused, args.block) {
        (true, _) => "unfused",
        (false, Skip::Identity) => "residual",
        (false, _) => "plain",
    };
    let mut csv = csv::Writer::from_writer(Vec::new());
    if !args.no_header {
        csv.write_record(COLUMNS)?;
    }
    csv.write_record([
        batch.to_string(),
        features.to_string(),
        hidden.to_string(),
        depth.to_string(),
        block.into(),
        args.activation.name().into(),
        args.mode.name().into(),
        args.threads.to_string(),
        ctx.isa().to_string(),
        format!("{best:.3}"),
        format!("{median:.3}"),
        format!("{gflops:.2}"),
        format!("{peak:.2}"),
        format!("{:.4}", gflops / peak),
        format!("{:.1}", moved / best / 1e3),
        format!("{stream:.1}"),
    ])?;
    output::print(&String::from_utf8(csv.into_inner()?)?)
}
