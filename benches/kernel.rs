//! The GEMM kernel alone, on packed operands that fit the L1 cache, and what fraction of the fused multiply-add peak it reaches.
//! What the fused calls lose against this, they lose outside the kernel.

#[path = "support/config.rs"]
mod config;

use criterion::{BenchmarkId, Criterion, Throughput};
use resblock::{Context, Error, KernelBench, Par, fma_peak};
use std::time::{Duration, Instant};

/// (m, k, n): whole tiles of every instruction set (14 rows, 6 and 4 divide 84; 32 columns), 31 KiB in all; and a longer chain,
/// which stays in L1 where that has 48 KiB.
const SHAPES: [(usize, usize, usize); 2] = [(84, 48, 32), (28, 192, 32)];

fn main() -> Result<(), Error> {
    let mut criterion = config::criterion();
    // A kernel is one thread's.
    for (_, ctx) in config::contexts()?.into_iter().filter(|(_, ctx)| ctx.par() == Par::Seq) {
        report(&ctx)?;
        bench(&mut criterion, &ctx)?;
    }
    criterion.final_summary();
    Ok(())
}

fn bench(criterion: &mut Criterion, ctx: &Context) -> Result<(), Error> {
    let mut group = criterion.benchmark_group("kernel");
    for (m, k, n) in SHAPES {
        let mut kernel = KernelBench::new(ctx, m, k, n)?;
        group.throughput(Throughput::Elements((2 * m * k * n) as u64));
        group.bench_function(BenchmarkId::new(ctx.isa().name(), format!("{m}x{k}x{n}")), |b| b.iter(|| kernel.run()));
    }
    group.finish();
    Ok(())
}

/// Prints the fraction of the peak, peak and kernel by turns, so that a change of the clock rate strikes both.
fn report(ctx: &Context) -> Result<(), Error> {
    const CALLS: usize = 100;
    for (m, k, n) in SHAPES {
        let mut kernel = KernelBench::new(ctx, m, k, n)?;
        let (mut peak, mut rate) = (0.0f64, 0.0f64);
        for _ in 0..10 {
            peak = peak.max(fma_peak(ctx, Duration::from_millis(5))?.gflops);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(5) {
                let t = Instant::now();
                (0..CALLS).for_each(|_| kernel.run());
                rate = rate.max((CALLS * 2 * m * k * n) as f64 / t.elapsed().as_secs_f64() / 1e9);
            }
        }
        println!("kernel/{}/{m}x{k}x{n}: {rate:.1} of {peak:.1} Gflop/s, {:.3} of peak", ctx.isa(), rate / peak);
    }
    Ok(())
}
