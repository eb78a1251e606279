//! What is printed.

use crate::data::Split;
use crate::{Kind, Options, Probe, Run};
use resblock::{Context, GradientFlow};
use std::fmt::Write;

/// What is about to be done.
pub(crate) fn heading(options: &Options, split: &Split, ctx: &Context) -> String {
    let Options { depth, width, hidden, epochs, batch, .. } = options;
    format!(
        "{} handwritten digits to learn from, {} held out. {depth} blocks, width {width}, hidden {hidden}; {epochs} epochs in \
         batches of {batch}.\n{}, threads: {}",
        split.train.len(),
        split.held_out.len(),
        ctx.isa(),
        ctx.par().threads(),
    )
}

/// The gradient norm at the entrances of the first and the last block.
fn ends(flow: &GradientFlow, depth: u16) -> (f64, f64) {
    let norm = |block: u16| flow.norms().get(usize::from(block) - 1).copied().unwrap_or(f64::NAN);
    (norm(1), norm(depth))
}

/// A row for each net.
pub(crate) fn nets(options: &Options, runs: &[Run]) -> String {
    let mut text = format!(
        "\n{:58}{:>26}{:>23}\n{:<9}{:>5}{:>7}{:>12}{:>13}{:>12}{:>14}{:>12}{:>11}{:>12}{:>9}\n",
        "",
        "gradient norm at block 1",
        format!("at block {}", options.depth),
        "net",
        "seed",
        "depth",
        "parameters",
        "train loss",
        "held-out",
        "before",
        "after",
        "before",
        "after",
        "seconds",
    );
    for Run { kind, seed, outcome } in runs {
        let (first_before, last_before) = ends(&outcome.flow_before, options.depth);
        let (first_after, last_after) = ends(&outcome.flow_after, options.depth);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{kind:<9}{seed:>5}{:>7}{:>12}{:>13.6}{:>10.2} %\
             {first_before:>14.2e}{first_after:>12.2e}{last_before:>11.2e}{last_after:>12.2e}{:>9.1}",
            options.depth,
            outcome.parameters,
            outcome.train_loss,
            100.0 * outcome.held_out_accuracy,
            outcome.seconds,
        );
    }
    text
}

/// Mean and least held-out accuracy of each kind.
pub(crate) fn seeds(kinds: &[Kind], runs: &[Run]) -> String {
    let mut text = String::new();
    for &kind in kinds {
        let accuracies: Vec<f64> =
            runs.iter().filter(|run| run.kind == kind).map(|run| 100.0 * run.outcome.held_out_accuracy).collect();
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        let least = accuracies.iter().copied().fold(f64::INFINITY, f64::min);
        let _ = writeln!(text, "{kind:<9}held-out: mean {mean:.2} %, least {least:.2} % of {} seeds", accuracies.len());
    }
    text
}

/// The plain net's gradient under other initialisations.
pub(crate) fn probes(options: &Options, probes: &[Probe]) -> String {
    let mut text = "The plain net's gradient before training, W2 scaled otherwise:\n".to_owned();
    for Probe { label, scale, flow } in probes {
        let (first, last) = ends(flow, options.depth);
        let depth = options.depth;
        let _ = writeln!(text, "  by {scale:.3} ({label}): {first:.2e} at block 1, {last:.2e} at block {depth}");
    }
    text
}
