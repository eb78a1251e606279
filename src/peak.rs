//! What the CPU can do, measured: the yardstick for every speed claim.

use crate::context::Context;
use crate::epilogue::Epilogue;
use crate::error::Error;
use crate::gemm::driver::for_each;
use crate::gemm::factor::Factor;
use crate::gemm::macro_kernel::{Gemm, Start, gemm};
use crate::gemm::panels::PanelMat;
use crate::mat::MatRef;
use crate::simd::{Kernel, Simd};
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

/// Measures the FMA peak of the context's instruction set on its threads: independent fma chains in registers, for about
/// `duration`, best of many short runs.
pub fn fma_peak(ctx: &Context, duration: Duration) -> Peak {
    const STEPS: usize = 20_000;
    const PIECES: usize = 16; // for each thread, so that a thread that starts late costs little
    let threads = ctx.par().threads().max(1);
    let mut crew = vec![(); threads];
    let flops = ctx.isa().run(ChainFlops) as f64 * (STEPS * PIECES * threads) as f64;
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed() < duration || best.is_infinite() {
        let t = Instant::now();
        for_each(0..PIECES * threads, &mut crew, |_, ()| ctx.isa().run(Chains { steps: STEPS }));
        best = best.min(t.elapsed().as_secs_f64());
    }
    Peak { gflops: flops / best / 1e9, threads }
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
        let epilogue = Epilogue::Store { out: self.c.view_mut().into() };
        let depth = self.ctx.blocking().k_block();
        let (a, b) = (self.a.view(), Factor::stored(self.b.view()));
        gemm(self.ctx.isa(), Gemm { a, b, start: Start::Zero, depth, pack: &mut [], epilogue });
    }
}
