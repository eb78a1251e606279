//! A load test: threads that call without pause, in shapes, modes, instruction sets, block sizes, batch splits and pools drawn at
//! random. Every bit of every call is compared, and memory must stay flat.
//!
//! `RESBLOCK_SOAK_SECONDS` (2) and `RESBLOCK_SOAK_THREADS` (4) say how long and how many. Alone in its binary, so that the memory
//! of the process is that of the load.

mod common;

use common::problem::{Problem, Split, Trained};
use common::watchdog::Watchdog;
use common::{ACTIVATIONS, MapGrad, Rng, Stage, Threads, context, isas, pool, random_stack, same};
use resblock::{Blocking, Context, Par, Workspace};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Growth of resident memory, from the highest value of the first window to the highest of the last, that is not a leak: the
/// allocator's arenas, one for each thread that allocates, fill up at chance.
const BOUND: u64 = 32 << 20;

/// The whole batch, half of the time.
const SPLITS: [Split; 4] = [&[], &[], &[13, 4, 30], &[1, 7]];

/// Calls before memory is measured: by then every thread has met most cases.
const WARM_UP: u64 = 400;

struct Case {
    problem: Problem,
    fresh: Trained,
    accumulated: Trained,
}

/// Layers of every kind and activation, from nothing to work for several threads.
fn cases() -> Vec<Case> {
    let mut rng = Rng::new(1);
    let rng = &mut rng;
    let mut stages: Vec<(usize, Vec<Stage>)> = Vec::new();
    for (i, phi) in ACTIVATIONS.into_iter().enumerate() {
        let (rows, d, h) = (1 + rng.below(40), 1 + rng.below(60), 1 + rng.below(90));
        stages.push((rows, vec![Stage::block(rng, d, h, phi, i % 2 == 0, i % 3 != 0)]));
        stages.push((rows, vec![Stage::linear(rng, d, h, phi, i % 3 != 0)]));
        stages.push((1 + i, random_stack(rng, (7, 20 + i, 33, 5), 1 + i % 4, phi, i % 2 == 0)));
    }
    let (a, b) = (ACTIVATIONS[1], ACTIVATIONS[4]);
    stages.push((0, vec![Stage::block(rng, 5, 9, a, true, true)]));
    stages.push((150, vec![Stage::block(rng, 96, 112, b, true, true)]));
    stages.push((5, vec![Stage::block(rng, 500, 410, a, true, true)]));
    stages.push((70, random_stack(rng, (20, 64, 64, 10), 4, b, true)));
    let solve = |(rows, stages)| {
        let problem = Problem::random(rng, stages, rows);
        Case { fresh: problem.oracle(false), accumulated: problem.oracle(true), problem }
    };
    stages.into_iter().map(solve).collect()
}

fn all_same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(&a, &b)| same(a, b))
}

fn all_trained_same(a: &Trained, b: &Trained) -> bool {
    let grads = |(a, b): (&MapGrad<f32>, &MapGrad<f32>)| all_same(&a.dw, &b.dw) && all_same(&a.db, &b.db);
    all_same(&a.y, &b.y)
        && all_same(&a.dx, &b.dx)
        && a.grads.len() == b.grads.len()
        && a.grads.iter().zip(&b.grads).all(grads)
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len())]
}

/// One call of any kind; true if every bit is right.
fn call(rng: &mut Rng, cases: &[Case], ws: &mut Workspace) -> bool {
    let case = &cases[rng.below(cases.len())];
    let tiny = Blocking { rows: 1 + rng.below(40), hidden: 1 + rng.below(100), depth: 1 + rng.below(100) };
    let blocking = if rng.below(2) == 0 { Blocking::default() } else { tiny };
    let ctx = context(pick(rng, &isas())).with_blocking(blocking);
    let split = pick(rng, &SPLITS);
    let mode = rng.below(3);
    let solve = |ctx: Context, ws: &mut Workspace| match mode {
        0 => all_same(&case.problem.infer(&ctx, ws, split), &case.fresh.y),
        1 => all_trained_same(&case.problem.train(&ctx, ws, split, false), &case.fresh),
        _ => all_trained_same(&case.problem.train(&ctx, ws, split, true), &case.accumulated),
    };
    let threads = [Threads::Seq, Threads::Rayon(1), Threads::Rayon(2), Threads::Rayon(3), Threads::Rayon(8)];
    match rng.below(8) {
        // In the global pool, which all callers share, from outside it.
        0 => solve(ctx.with_par(Par::Rayon(0)), ws),
        // Two calls at once, one of them in a workspace of its own.
        1 => pool(2).install(|| {
            let ctx = ctx.with_par(Par::Rayon(0));
            let (a, b) = rayon::join(|| solve(ctx, ws), || solve(ctx, &mut Workspace::new()));
            a && b
        }),
        _ => pick(rng, &threads).run(ctx, |ctx| solve(ctx, ws)),
    }
}

/// Bytes of resident memory; nothing where the system does not say.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    // Pages of 4 KiB, or larger: the growth is then understated by the same factor as the bound is generous.
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}: no number")))
}

#[test]
fn a_load_of_mixed_calls_gives_right_bits_and_flat_memory() {
    let (seconds, threads) = (setting("RESBLOCK_SOAK_SECONDS", 2), setting("RESBLOCK_SOAK_THREADS", 4));
    let _watchdog = Watchdog::new("soak", 2 * seconds + Watchdog::GENEROUS);
    let cases = cases();
    let (stop, calls, wrong) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        for seed in 0..threads {
            let (cases, stop, calls, wrong) = (&cases, &stop, &calls, &wrong);
            scope.spawn(move || {
                let (mut rng, mut ws) = (Rng::new(seed), Workspace::new());
                while !stop.load(Ordering::Relaxed) {
                    if !call(&mut rng, cases, &mut ws) {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                    if calls.fetch_add(1, Ordering::Relaxed) % 500 == 0 {
                        ws = Workspace::new();
                    }
                }
            });
        }
        let (start, end) = (Instant::now(), Duration::from_secs(seconds));
        while start.elapsed() < end {
            std::thread::sleep(Duration::from_millis(50));
            if calls.load(Ordering::Relaxed) >= WARM_UP {
                samples.extend(resident());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (calls, wrong) = (calls.into_inner(), wrong.into_inner());
    assert!(calls > 0, "no call was made");
    assert_eq!(wrong, 0, "calls of {calls} with wrong bits");
    let window = samples.len().div_ceil(3).min(60 * 20);
    let highest = |samples: &[u64]| samples.iter().max().copied().unwrap_or(0);
    let (first, last) = (highest(&samples[..window]), highest(&samples[samples.len() - window..]));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    // Less than two windows apart, the two are no measure of each other.
    let judged = samples.len() >= 2 * window && window > 0;
    let memory_flat = if judged { " and flat memory" } else { "" };
    let memory = if judged {
        format!(
            "resident after warm-up {:.1} MiB at most in the first {} s, {:.1} MiB in the last (bound: {:.0} MiB more)",
            mib(first),
            window.div_ceil(20),
            mib(last),
            mib(BOUND)
        )
    } else {
        format!("memory not judged in fewer than {WARM_UP} calls")
    };
    assert!(last <= first + BOUND, "memory grew from {first} to {last} bytes");
    println!(
        "proof: right bits{memory_flat} under load | tests/soak.rs: {threads} threads x {seconds} s of mixed calls, 0 wrong; \
         {memory} | {calls} | ok"
    );
}
