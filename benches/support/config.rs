//! What every bench runs on, and for how long.

use criterion::Criterion;
use resblock::{Context, Error, Isa, Par};
use std::time::Duration;

/// Every instruction set of this CPU, each with its name, on one thread; on each number of threads of a list in `RESBLOCK_BENCH_THREADS`, 1,2,4
/// say. The portable sets, for checking rather than for speed, take part only if `RESBLOCK_ISA` names them.
pub(crate) fn contexts() -> Result<Vec<(String, Context)>, Error> {
    let (ctx, chosen) = (Context::new()?, Isa::detect()?);
    let fast = |isa: &Isa| *isa == chosen || !matches!(isa, Isa::Scalar | Isa::Odd);
    let counts = thread_counts();
    let mut contexts = Vec::new();
    for isa in Isa::available().into_iter().filter(fast) {
        let ctx = ctx.with_isa(isa)?;
        contexts.extend(counts.iter().map(|&threads| match threads {
            1 => (isa.name().to_owned(), ctx),
            _ => (format!("{}-{threads}", isa.name()), ctx.with_par(Par::Rayon(threads))),
        }));
    }
    Ok(contexts)
}

/// The numbers of threads to bench on. Starts a pool of the largest, with the calling thread as one of it, once.
fn thread_counts() -> Vec<usize> {
    let list = std::env::var("RESBLOCK_BENCH_THREADS").unwrap_or_else(|_| "1".into());
    let counts = list.split(',').map(|count| count.trim().parse().ok().filter(|n| (1..=1024).contains(n)));
    let counts: Vec<usize> =
        counts.collect::<Option<_>>().expect("RESBLOCK_BENCH_THREADS is a list of numbers from 1 to 1024");
    let most = counts.iter().copied().max().unwrap_or(1);
    if most > 1 && rayon::current_thread_index().is_none() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(most).use_current_thread();
        pool.build_global().expect("a pool of so many threads");
    }
    counts
}

/// Short runs: shapes are many, and single times of these loops are steady. The command line may ask for others.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}
