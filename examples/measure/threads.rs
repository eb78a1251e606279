//! The threads that calls run on.

use crate::cli::thread_count;
use rayon::ThreadPoolBuilder;
use resblock::{Context, Par};
use std::error::Error;

/// A context on so many threads. The calling thread becomes one of rayon's global pool: it then shares work with the others, and
/// waits for them, as one of them. From outside the pool, a call of 64x128x128 on two threads took 30 us instead of 18. To be called
/// once, by the thread that will make the calls.
pub(crate) fn context(threads: usize) -> Result<Context, Box<dyn Error>> {
    let ctx = Context::new()?;
    if threads == 1 {
        return Ok(ctx);
    }
    ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global()?;
    Ok(ctx.with_par(Par::Rayon(threads)))
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
