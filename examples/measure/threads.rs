//! The threads that calls run on.

use crate::cli::{Args, thread_count};
use rayon::ThreadPoolBuilder;
use resblock::{Context, Draw, Machine, Par};
use std::error::Error;
use std::time::Duration;

/// A context on each of these numbers of threads. The calling thread becomes one of rayon's global pool, which has as many as the largest:
/// it then shares work with the others as one of them. To be called once, by the thread that will make the calls.
pub(crate) fn contexts(counts: &[usize], args: &Args) -> Result<Vec<Context>, Box<dyn Error>> {
    let mut ctx = Context::new()?.with_draw(Some(Draw::default()));
    if let Some(linger) = args.linger {
        ctx = ctx.with_linger(Duration::from_micros(linger));
    }
    let most = counts.iter().copied().max().unwrap_or(1);
    if most > 1 {
        ThreadPoolBuilder::new().num_threads(most).use_current_thread().build_global()?;
    }
    let on = |ctx: Context, threads: usize| ctx.with_par(if threads > 1 { Par::Rayon(threads) } else { Par::Seq });
    if args.machine {
        let machine = Machine::measured(&on(ctx, most), Duration::from_millis(700))?;
        eprintln!("{machine:?}");
        ctx = ctx.with_machine(machine);
    }
    Ok(counts.iter().map(|&threads| on(ctx, threads)).collect())
}

/// The number in `PEER_THREADS`, else `default`.
pub(crate) fn from_environment(default: usize) -> Result<usize, String> {
    match std::env::var_os("PEER_THREADS") {
        None => Ok(default),
        Some(text) => {
            let text = text.to_string_lossy();
            thread_count(&text).map_err(|error| format!("PEER_THREADS={text:?}: {error}"))
        }
    }
}
