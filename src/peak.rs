//! What the CPU can do, measured: the yardstick for every speed claim.

use crate::context::{Context, Machine};
use crate::error::Error;
use crate::gemm::buffers::Buffer;
use crate::gemm::epilogue::Epilogue;
use crate::gemm::factor::Factor;
use crate::gemm::macro_kernel::{Gemm, gemm};
use crate::gemm::panel_mat::PanelMat;
use crate::gemm::start::Start;
use crate::mat::MatRef;
use crate::simd::{Kernel, Simd};
use crate::team::Team;
use crate::team::par::Par;
use crate::team::pieces::{Chunks, Numbers};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Peak rate of fused multiply-adds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// Best rate seen, in 10^9 floating-point operations a second (an fma is two), all threads together.
    pub gflops: f64,
    /// Threads that ran.
    pub threads: usize,
}

/// The time, where asking for it does not panic.
fn now() -> Result<Instant, Error> {
    if cfg!(all(target_family = "wasm", target_os = "unknown")) { Err(Error::NoClock) } else { Ok(Instant::now()) }
}

/// Measures the FMA peak of the context's instruction set on its threads: independent fma chains in registers, for about
/// `duration`, best of many short runs.
///
/// # Errors
/// [`Error::NoClock`] on a target without one.
pub fn fma_peak(ctx: &Context, duration: Duration) -> Result<Peak, Error> {
    const STEPS: usize = 20_000;
    const PIECES: usize = 16; // for each thread, so that a thread that starts late costs little
    let threads = ctx.par().threads().max(1);
    let mut crew = vec![(); threads];
    let mut team = Team::new(threads, ctx.linger());
    let flops = ctx.isa().run(ChainFlops) as f64 * (STEPS * PIECES * threads) as f64;
    let (begin, mut best) = (now()?, f64::INFINITY);
    while begin.elapsed() < duration || best.is_infinite() {
        let t = Instant::now();
        team.each(PIECES * threads, Numbers, &mut crew, |_, ()| ctx.isa().run(Chains { steps: STEPS }));
        best = best.min(t.elapsed().as_secs_f64());
    }
    Ok(Peak { gflops: flops / best / 1e9, threads })
}

/// Measures how fast the context's threads read a buffer of so many bytes, again and again, by a plain loop: the yardstick for few
/// rows, which move every weight for two operations. For about `duration`, best of many passes, in 10^9 bytes a second.
///
/// # Errors
/// [`Error::Memory`] if there is not so much memory, [`Error::NoClock`] on a target without a clock.
pub fn read_bandwidth(ctx: &Context, bytes: usize, duration: Duration) -> Result<f64, Error> {
    let threads = ctx.par().threads().max(1);
    let mut crew = vec![(); threads];
    let mut buffer = Buffer::default();
    // Whole lines for each thread, at least some.
    let part = bytes.div_ceil(size_of::<f32>() * threads).max(1).next_multiple_of(LINES * 16);
    buffer.grow(part.saturating_mul(threads))?;
    // A buffer that fits a cache is read in less time than a clock resolves.
    let passes = (1 << 20) / buffer.as_slice().len().max(1) + 1;
    let mut team = Team::new(threads, ctx.linger());
    let (begin, mut best) = (now()?, f64::INFINITY);
    while begin.elapsed() < duration || best.is_infinite() {
        let t = Instant::now();
        team.each(threads, Chunks::new(buffer.as_mut_slice(), part), &mut crew, |data, ()| {
            ctx.isa().run(Reads { data, passes })
        });
        best = best.min(t.elapsed().as_secs_f64());
    }
    Ok((size_of_val(buffer.as_slice()) * passes) as f64 / best / 1e9)
}

impl Machine {
    /// This machine, measured on the context's threads for about `duration`: what plans are made from, in place of the default. Measure
    /// once, on a quiet machine, and keep the value: plans follow it, results do not.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not so much memory, [`Error::NoClock`] on a target without a clock.
    pub fn measured(ctx: &Context, duration: Duration) -> Result<Self, Error> {
        let (default, each) = (Self::default(), duration / 7);
        let alone = ctx.with_par(Par::Seq);
        let l2 = default.l2_kib as usize * 1024;
        let threads = ctx.par().threads().max(1);
        let mb_per_s = |gb_per_s: f64| (gb_per_s * 1e3) as u32;
        let fma_per_us = (fma_peak(&alone, each)?.gflops * 500.0) as u32;
        let l2_mb_per_s = mb_per_s(read_bandwidth(&alone, l2 / 2, each)?);
        // Four times what L2 holds, by one thread and by all.
        let l3_mb_per_s = mb_per_s(read_bandwidth(&alone, 4 * l2, each)?);
        let l3_all_mb_per_s = mb_per_s(read_bandwidth(ctx, 4 * l2 * threads, each)?).max(l3_mb_per_s);
        let mut machine = Self { fma_per_us, l2_mb_per_s, l3_mb_per_s, l3_all_mb_per_s, ..default };
        if threads > 1 {
            let ((two, _), (all, call)) = (team_costs(ctx, 2, each)?, team_costs(ctx, threads, each)?);
            machine.thread_ns = ((all - two).max(0.0) / (threads - 2).max(1) as f64) as u32;
            machine.phase_ns = (two - 2.0 * f64::from(machine.thread_ns)).max(0.0) as u32;
            machine.call_ns = (call / threads as f64) as u32;
        }
        Ok(machine)
    }
}

/// Nanoseconds of a phase of empty pieces, one for each thread, and those that a call of one phase takes beyond it: medians.
fn team_costs(ctx: &Context, threads: usize, duration: Duration) -> Result<(f64, f64), Error> {
    const PHASES: u32 = 100;
    let mut crew = vec![(); threads];
    let (mut phases, mut calls) = (Vec::new(), Vec::new());
    let begin = now()?;
    while begin.elapsed() < duration || phases.is_empty() {
        let t = Instant::now();
        let mut team = Team::new(threads, ctx.linger());
        for _ in 0..PHASES {
            team.each(threads, Numbers, &mut crew, |_, ()| {});
        }
        drop(team);
        phases.push(t.elapsed().as_nanos() as f64 / f64::from(PHASES));
        let t = Instant::now();
        for _ in 0..PHASES {
            Team::new(threads, ctx.linger()).each(threads, Numbers, &mut crew, |_, ()| {});
        }
        calls.push(t.elapsed().as_nanos() as f64 / f64::from(PHASES));
    }
    let [phase, call] = [phases, calls].map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    });
    Ok((phase, (call - phase).max(0.0)))
}

/// Cache lines that a read loop takes at a time, and how many of them it asks for ahead: 4 KiB.
const LINES: usize = 8;
const AHEAD: usize = 64;

struct Reads<'a> {
    data: &'a [f32],
    passes: usize,
}

impl Kernel for Reads<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sums = [s.splat(0.0); LINES];
        for _ in 0..self.passes {
            for lines in black_box(self.data).chunks_exact(LINES * 16) {
                for (sum, line) in sums.iter_mut().zip(lines.chunks_exact(16)) {
                    s.prefetch(line.as_ptr().wrapping_add(AHEAD * 16));
                    for vector in line.chunks(S::LANES) {
                        *sum = s.add(*sum, s.load(vector));
                    }
                }
            }
        }
        let mut lanes = [0.0; 16];
        for sum in sums {
            s.store(&mut lanes, sum);
            black_box(&lanes);
        }
    }
}

/// Independent chains: at least latency x throughput of any set's fma unit, few enough for 16 registers where there are 16.
const CHAINS: usize = 12;

struct Chains {
    steps: usize,
}

impl Kernel for Chains {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
        let mut acc = [s.splat(black_box(1.0)); CHAINS];
        for _ in 0..self.steps {
            for a in &mut acc {
                *a = s.fma(*a, x, y);
            }
        }
        let mut lanes = [0.0; 16];
        for a in acc {
            s.store(&mut lanes, a);
            black_box(&lanes);
        }
    }
}

/// Operations of one step of `Chains`.
struct ChainFlops;

impl Kernel for ChainFlops {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        2 * CHAINS * S::LANES
    }
}

/// The GEMM kernel alone on operands that stay in cache: for `benches/` and for finding out what a change costs.
#[doc(hidden)]
#[derive(Debug)]
pub struct KernelBench {
    ctx: Context,
    a: PanelMat,
    b: PanelMat,
    c: PanelMat,
}

impl KernelBench {
    /// c = a b with a `m x k` and b `k x n`.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a size overflows.
    pub fn new(ctx: &Context, m: usize, k: usize, n: usize) -> Result<Self, Error> {
        let fill = |rows, cols| PanelMat::from_mat(MatRef::with_strides(&[0.5], rows, cols, 0, 0)?);
        Ok(Self { ctx: *ctx, a: fill(m, k)?, b: fill(k, n)?, c: PanelMat::zeros(m, n)? })
    }

    /// One call.
    pub fn run(&mut self) {
        let epilogue = Epilogue::store(self.c.view_mut().into());
        let depth = self.ctx.k_block();
        let (a, b) = (self.a.view(), Factor::stored(self.b.view()));
        gemm(self.ctx.isa(), &mut Gemm { a, b, start: Start::Zero, depth, pack: &mut [] }, epilogue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_any_size_is_read_or_refused() {
        let ctx = Context::new().expect("a context");
        for bytes in [0, 1, 4096, 100_000] {
            let rate = read_bandwidth(&ctx, bytes, Duration::ZERO).expect("memory");
            assert!(rate > 0.0 && rate.is_finite(), "{bytes} bytes: {rate}");
        }
        assert!(matches!(read_bandwidth(&ctx, usize::MAX, Duration::ZERO), Err(Error::Memory { .. })));
    }
}
