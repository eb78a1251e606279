//! The tables.

use crate::race::{Duel, Kind, OURS, Race, geometric_mean, kinds};
use std::error::Error;
use std::fmt::Write;

/// Rows within this much of the best of the others are called even.
const NOISE: f64 = 0.02;

pub(crate) fn markdown(race: &Race) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    writeln!(out, "## How it was measured\n")?;
    for (key, value) in &race.notes {
        writeln!(out, "- {key}: {value}")?;
    }
    let peers: Vec<String> = race.peers().into_iter().map(|(peer, version)| format!("{peer} ({version})")).collect();
    writeln!(out, "- raced against: {}\n", peers.join(", "))?;
    for (mode, title) in [("fwd", "Forward"), ("train", "Training step")] {
        writeln!(out, "## {title}\n")?;
        writeln!(
            out,
            "% of the FMA peak, ours : best of the others (which), and the ratio in bold where it is below {:.2}.\n",
            1.0 - NOISE
        )?;
        let kinds: Vec<Kind> = kinds().filter(|k| k.mode == mode).collect();
        let names: Vec<String> = kinds.iter().map(|k| name(*k)).collect();
        writeln!(out, "| batch × features × hidden | {} |\n|---|{}", names.join(" | "), "---|".repeat(kinds.len()))?;
        for case in &race.cases {
            let mut cells = Vec::new();
            for &kind in &kinds {
                cells.push(match race.duel(case, kind) {
                    Some(duel) => cell(&duel, race.number(&format!("peak_{}", kind.threads))?),
                    None => String::new(),
                });
            }
            writeln!(out, "| {} | {} |", readable(case), cells.join(" | "))?;
        }
        let means = kinds.iter().map(|&k| mean(race, &[k]).map_or(String::new(), |m| format!("**{m:.3}**")));
        writeln!(out, "| geometric mean of the ratios | {} |\n", means.collect::<Vec<_>>().join(" | "))?;
    }
    sums(race, &mut out)?;
    losses(race, &mut out)?;
    Ok(out)
}

/// Geometric means over both thread counts, and against each of the others.
fn sums(race: &Race, out: &mut String) -> Result<(), Box<dyn Error>> {
    let both: Vec<Vec<Kind>> =
        kinds().step_by(2).map(|k| kinds().filter(|o| o.mode == k.mode && o.act == k.act).collect()).collect();
    let titles = both.iter().map(|k| format!("{} {}", k[0].mode, k[0].act)).collect::<Vec<_>>().join(" | ");
    writeln!(out, "## Geometric means, one and two threads\n\nOurs over theirs, on the rows that both have.\n")?;
    writeln!(out, "| | {titles} |\n|---|{}", "---|".repeat(both.len()))?;
    let cells = |values: Vec<Option<f64>>| {
        values.into_iter().map(|v| v.map_or(String::new(), |v| format!("{v:.2}"))).collect::<Vec<_>>().join(" | ")
    };
    writeln!(
        out,
        "| the best of the row | {} |",
        both.iter().map(|k| mean(race, k).map_or(String::new(), |m| format!("{m:.3}"))).collect::<Vec<_>>().join(" | ")
    )?;
    for peer in race.peers().into_keys() {
        writeln!(out, "| {peer} | {} |", cells(both.iter().map(|k| against(race, k, peer)).collect()))?;
    }
    writeln!(out)?;
    Ok(())
}

fn losses(race: &Race, out: &mut String) -> Result<(), Box<dyn Error>> {
    let mut behind = Vec::new();
    let mut rows = 0;
    for case in &race.cases {
        for kind in kinds() {
            let Some(duel) = race.duel(case, kind) else { continue };
            rows += 1;
            if duel.ratio() < 1.0 - NOISE {
                behind.push((duel.ratio(), format!("{} {} ({})", readable(case), name(kind), duel.peer)));
            }
        }
    }
    behind.sort_by(|a, b| a.0.total_cmp(&b.0));
    writeln!(
        out,
        "## What we lose\n\nBehind the best of the others by more than {:.0} % in {} of {rows} rows:\n",
        100.0 * NOISE,
        behind.len()
    )?;
    for (ratio, what) in behind {
        writeln!(out, "- {ratio:.2}: {what}")?;
    }
    writeln!(out)?;
    Ok(())
}

fn cell(duel: &Duel<'_>, peak: f64) -> String {
    let Duel { ours, best, peer } = duel;
    let ratio = duel.ratio();
    let mark = if ratio < 1.0 - NOISE { "**" } else { "" };
    format!("{:.0} : {:.0} ({peer}) {mark}{ratio:.2}{mark}", 100.0 * ours / peak, 100.0 * best / peak)
}

fn mean(race: &Race, kinds: &[Kind]) -> Option<f64> {
    geometric_mean(
        kinds.iter().flat_map(|&kind| race.cases.iter().filter_map(move |c| Some(race.duel(c, kind)?.ratio()))),
    )
}

fn against(race: &Race, kinds: &[Kind], peer: &str) -> Option<f64> {
    let of = |case: &str, kind: Kind, who: &str| race.of(case, kind).find(|r| r.peer == who).map(|r| r.gflops);
    let ratio = |case: &str, kind: Kind| Some(of(case, kind, OURS)? / of(case, kind, peer)?);
    geometric_mean(kinds.iter().flat_map(|&kind| race.cases.iter().filter_map(move |case| ratio(case, kind))))
}

pub(crate) fn name(kind: Kind) -> String {
    let act = if kind.act == "gelu" { "tanh-GELU" } else { "ReLU" };
    format!("{act}, {} thread{}", kind.threads, if kind.threads == 1 { "" } else { "s" })
}

/// `64x64x64_L50` as a reader writes it.
pub(crate) fn readable(case: &str) -> String {
    let (shape, depth) = case.split_once("_L").map_or((case, None), |(shape, depth)| (shape, Some(depth)));
    let shape = shape.replace('x', " × ");
    depth.map_or(shape.clone(), |depth| format!("{shape}, {depth} blocks"))
}
