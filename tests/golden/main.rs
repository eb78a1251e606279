//! The same bits on every CPU, as data: digests of outputs, gradients and training runs are checked in (`digests.txt`), and every
//! machine, instruction set, thread count, block size, batch split and build reproduces them.
//!
//! The file is what the specification says: it is written by the sequential oracle, `resblock::reference`, with plain
//! `f32::mul_add` and no kernel, and the first test here compares it with the oracle again on every run. To write it anew,
//!
//! ```sh
//! RESBLOCK_GOLDEN=write cargo test --test golden -- specification
//! ```
//!
//! By default a configuration meets every thread count on the whole batch in default blocks (where there is much work, on the
//! fastest set alone), and every other block size and batch split on one thread count in turn. `RESBLOCK_GOLDEN=full` crosses all.
//!
//! A target without a hardware fused multiply-add is not skipped: `f32::mul_add` is exact in software too, so the test passes
//! there, slowly, and says so.

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod digest;
mod training;

use cases::Config;
use common::family::has_statistics;
use common::problem::Split;
use common::{Layout, Threads, context, isas};
use resblock::{Blocking, Context, Workspace};
use std::fmt::Write;

const THREADS: [Threads; 6] =
    [Threads::Seq, Threads::Rayon(1), Threads::Rayon(2), Threads::Rayon(3), Threads::Rayon(8), Threads::Rayon(16)];

/// Default blocks, and ones that make every loop iterate.
const BLOCKINGS: [Option<Blocking>; 3] =
    [None, Some(Blocking { rows: 1, hidden: 1, depth: 1 }), Some(Blocking { rows: 5, hidden: 17, depth: 16 })];

/// The whole batch, single rows, and uneven micro-batches.
const SPLITS: [Split; 3] = [&[], &[1], &[5, 1, 9, 2]];

/// Where there is much work, tiny blocks and single rows would take minutes: the defaults, and one of each that still cuts.
const LARGE_BLOCKINGS: [Option<Blocking>; 2] = [None, Some(Blocking { rows: 9, hidden: 80, depth: 64 })];
const LARGE_SPLITS: [Split; 2] = [&[], &[33, 1, 7, 40]];

/// Prints what was compared, for the table of proofs.
fn proof(what: &str, configs: usize, (blockings, splits): (&[Option<Blocking>], &[Split]), cases: usize) {
    let sets: Vec<&str> = isas().iter().map(|isa| isa.name()).collect();
    let build = if cfg!(debug_assertions) { "debug assertions" } else { "release" };
    let crossed = if setting_is("full") { "crossed" } else { "each met, in turn" };
    println!(
        "proof: bits equal the checked-in digests, {what} | {configs} configurations x sets {} x threads {THREADS:?} x {} \
         blockings x {} batch splits, {crossed}; {build} | {cases} | ok",
        sets.join(" "),
        blockings.len(),
        splits.len(),
    );
}

/// True unless `f32::mul_add` is a function that computes it from integer operations.
fn has_hardware_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return cfg!(any(target_arch = "aarch64", target_feature = "fma"));
}

fn setting_is(value: &str) -> bool {
    std::env::var("RESBLOCK_GOLDEN").is_ok_and(|setting| setting == value)
}

/// Every way to run something: instruction set, threads, block sizes and how the batch is cut. The first cut meets every thread
/// count on the first sets, as many as `crossed` says.
fn ways(blockings: &[Option<Blocking>], splits: &[Split], crossed: usize) -> Vec<(Context, Threads, Split)> {
    let mut ways = Vec::new();
    for (set, isa) in isas().into_iter().enumerate() {
        let cuts = blockings.iter().flat_map(|&blocking| splits.iter().map(move |&split| (blocking, split)));
        for (cut, (blocking, split)) in cuts.enumerate() {
            let ctx = context(isa).with_blocking(blocking.unwrap_or_default());
            let all = setting_is("full") || (cut == 0 && set < crossed);
            // In turn, from the most threads down.
            let turn = (THREADS.len() - 1 - cut % THREADS.len() + set) % THREADS.len();
            let threads = if all { &THREADS[..] } else { &THREADS[turn..=turn] };
            ways.extend(threads.iter().map(|&threads| (ctx, threads, split)));
        }
    }
    ways
}

/// Runs every configuration in every way and compares digests.
fn reproduce(what: &str, configs: &[Config], blockings: &[Option<Blocking>], splits: &[Split], crossed: usize) {
    let (expected, ways) = (digest::checked_in(), ways(blockings, splits, crossed));
    let mut cases = 0;
    for config in configs {
        let (name, problem) = (config.to_string(), config.problem());
        let want = expected.get(&name[..]).unwrap_or_else(|| panic!("no digest of {name:?} is checked in"));
        for &(ctx, threads, split) in &ways {
            let what = format!("{name}, {threads:?}, {ctx:?}, pieces {split:?}");
            let (inferred, fresh, accumulated) = threads.run(ctx, |ctx| {
                let mut ws = Workspace::new();
                let inferred = problem.infer(&ctx, &mut ws, split);
                (inferred, problem.train(&ctx, &mut ws, split, false), problem.train(&ctx, &mut ws, split, true))
            });
            let got = digest::line(&fresh, &accumulated);
            if got != *want {
                // The oracle says which element it is.
                fresh.assert_same(&what, &problem.oracle(false));
                accumulated.assert_same(&what, &problem.oracle(true));
                panic!("{what}: equals the oracle, but not the checked-in digests: {got} and {want}");
            }
            common::assert_same(format_args!("{what}: infer"), &inferred, &fresh.y);
            common::assert_same(format_args!("{what}: dx beside accumulated gradients"), &accumulated.dx, &fresh.dx);
            cases += 1;
        }
    }
    proof(what, configs.len(), (blockings, splits), cases);
}

#[test]
fn the_checked_in_digests_are_what_the_specification_says() {
    if !has_hardware_fma() {
        println!("golden: no hardware fused multiply-add here; f32::mul_add computes it exactly, and slowly");
    }
    let mut text = String::from(
        "# Digests of outputs, gradients and training runs: the first 64 bits of SHA-256 over their bits, little-endian, NaN as\n\
         # 7fc00000. Written by the sequential oracle (tests/golden/main.rs), reproduced by every instruction set.\n",
    );
    let configs = [cases::small(), cases::large()].concat();
    for config in &configs {
        let problem = config.problem();
        writeln!(text, "{config}: {}", digest::line(&problem.oracle(false), &problem.oracle(true))).expect("a string");
    }
    for run in training::RUNS {
        writeln!(text, "{}: {}", run.name, run.oracle()).expect("a string");
    }
    for (name, case) in cases::family() {
        let (fresh, accumulated) = (case.oracle(false), case.oracle(true));
        writeln!(text, "{name}: {}", digest::family_line(&fresh, &accumulated)).expect("a string");
    }
    if setting_is("write") {
        std::fs::write(digest::PATH, &text).expect("a writable file");
        return println!("golden: wrote {}", digest::PATH);
    }
    let file = digest::FILE;
    for (checked_in, oracle) in file.lines().zip(text.lines()) {
        assert_eq!(checked_in, oracle, "the checked-in line and the oracle's");
    }
    assert_eq!(file.lines().count(), text.lines().count(), "a configuration too few or too many");
    let cases = configs.len() + training::RUNS.len() + cases::family().len();
    println!(
        "proof: the checked-in digests are the specification's | recomputed by resblock::reference | {cases} | ok"
    );
}

#[test]
fn small_linear_layers_reproduce_the_digests() {
    let configs = Vec::from_iter(cases::small().into_iter().filter(|c| c.to_string().starts_with("linear")));
    reproduce("linear layers", &configs, &BLOCKINGS, &SPLITS, usize::MAX);
}

#[test]
fn small_blocks_reproduce_the_digests() {
    let configs = Vec::from_iter(cases::small().into_iter().filter(|c| c.to_string().starts_with("block ")));
    reproduce("blocks", &configs, &BLOCKINGS, &SPLITS, usize::MAX);
}

#[test]
fn small_stacks_reproduce_the_digests() {
    let is_stack = |c: &Config| ["stack", "blocks "].iter().any(|kind| c.to_string().starts_with(kind));
    let configs = Vec::from_iter(cases::small().into_iter().filter(is_stack));
    reproduce("stacks", &configs, &BLOCKINGS, &SPLITS, usize::MAX);
}

#[test]
fn named_blocks_reproduce_the_digests() {
    let expected = digest::checked_in();
    // Batches cut once: the first rows of a second call.
    let (ways, mut cases) = (ways(&BLOCKINGS, &[&[]], usize::MAX), 0);
    for (name, case) in cases::family() {
        let want = expected.get(&name[..]).unwrap_or_else(|| panic!("no digest of {name:?} is checked in"));
        for (way, &(ctx, threads, _)) in ways.iter().enumerate() {
            let cut = if way % 2 == 0 || has_statistics(&case.form) { case.rows } else { case.rows / 3 };
            let run = |accumulate| {
                threads.run(ctx, |ctx| case.owned(&ctx, &mut Workspace::new(), Layout::Tight, cut, accumulate))
            };
            let (fresh, accumulated) = (run(false), run(true));
            let got = digest::family_line(&fresh, &accumulated);
            if got != *want {
                fresh.assert_same(&name, &case.oracle(false));
                accumulated.assert_same(&name, &case.oracle(true));
                panic!(
                    "{name}, {threads:?}, {ctx:?}: equals the oracle, but not the checked-in digests: {got} and {want}"
                );
            }
            cases += 1;
        }
    }
    proof("named blocks", cases::family().len(), (&BLOCKINGS, &[&[], &[]]), cases);
}

#[test]
fn work_shared_by_threads_reproduces_the_digests() {
    reproduce("work for 16 threads", &cases::large(), &LARGE_BLOCKINGS, &LARGE_SPLITS, 1);
}

#[test]
fn training_runs_of_20_steps_reproduce_the_digests() {
    let (expected, ways) = (digest::checked_in(), ways(&LARGE_BLOCKINGS, &LARGE_SPLITS, 1));
    let mut cases = 0;
    for run in training::RUNS {
        let want = expected.get(run.name).unwrap_or_else(|| panic!("no digest of {:?} is checked in", run.name));
        for &(ctx, threads, split) in &ways {
            let got = threads.run(ctx, |ctx| run.run(&ctx, split));
            assert_eq!(got, *want, "{}, {threads:?}, {ctx:?}, pieces {split:?}", run.name);
            cases += 1;
        }
    }
    proof("training runs of 20 steps", training::RUNS.len(), (&LARGE_BLOCKINGS, &LARGE_SPLITS), cases);
}
