//! The threads that calls run on.

use crate::cli::{Args, thread_count};
use rayon::ThreadPoolBuilder;
use resblock::{Context, Machine, Par};
use std::error::Error;
use std::time::Duration;

/// A context on so many threads. The calling thread becomes one of rayon's global pool: it then shares work with the others, and
/// waits for them, as one of them. From outside the pool, a call of 64x128x128 on two threads took 30 us instead of 18. To be called
/// once, by the thread that will make the calls.
pub(crate) fn context(threads: usize, args: &Args) -> Result<Context, Box<dyn Error>> {
    let mut ctx = Context::new()?;
    if let Some(linger) = args.linger {
        ctx = ctx.with_linger(Duration::from_micros(linger));
    }
    if threads > 1 {
        ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global()?;
        ctx = ctx.with_par(Par::Rayon(threads));
    }
    if args.machine {
        let machine = Machine::measured(&ctx, Duration::from_millis(600))?;
        eprintln!("{machine:?}");
        ctx = ctx.with_machine(machine);
    }
    Ok(ctx)
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
