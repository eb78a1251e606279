//! `Par`: how many threads a call may use, and of which pool.

use super::host;
use std::error::Error as _;
use std::hint::black_box;
use std::io;
use std::panic::catch_unwind;
use std::sync::OnceLock;

/// How many threads a call may use, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Par {
    /// The calling thread alone.
    #[default]
    Seq,
    /// At most this many threads of the rayon pool that the call is made in (the global one, outside any pool), the calling
    /// thread among them; 0: as many as the pool has. Small work takes fewer. `pool.install(|| ...)` chooses a pool.
    ///
    /// Within [`crate::within_pool`] and [`crate::within_parallel_for`] they are threads of a host's.
    ///
    /// # Where there is no pool
    /// Rayon is asked only by a call that has work for two threads, and `Rayon(1)` never asks. The first that does so outside any
    /// pool starts the global one; if the system refuses its threads (a limit of processes or of memory, a target without threads),
    /// this call and all later ones run on the calling thread. They do so, too, if a program's own `build_global` failed; rayon
    /// says that by a panic alone, which is caught, once, after the panic hook has printed it.
    ///
    /// # Waiting
    /// The calling thread computes too, and the others are helpers: a job each in the pool, which takes part if it comes in time. A call
    /// waits for nobody who has not begun on a piece of its work, and never for a thread to start. So it goes on alone in a pool whose
    /// threads are busy, or wait in turn for the caller, and it runs no other tasks of the pool meanwhile: calls of tasks, of tasks in
    /// tasks, or in a pool of one thread are as any other. Helpers that come too late help the caller's next call, or leave at once; at
    /// most one job for each is ever in the pool's queue.
    ///
    /// While a call goes on, its helpers stay on their threads, and [`crate::Context::with_linger`] says how long they wait
    /// there for the next one.
    ///
    /// # Fork
    /// A child that `fork` makes has none of its parent's threads. If the parent used the global pool through a call of this
    /// crate, calls of the child outside any pool see that and run on the calling thread; its own threads may make pools. A child
    /// that was forked inside a pool, or whose parent used the global pool through rayon alone, sends for helpers that never come, and
    /// does its work alone, as far as rayon itself stands being forked: call with [`Par::Seq`] there.
    Rayon(usize),
}

impl Par {
    /// Threads that a call may use now: 1 where no pool is to be had.
    pub fn threads(self) -> usize {
        self.threads_for(usize::MAX)
    }

    /// Threads for work that is worth so many. The pool is asked, and so the global one started, only where that is more than one.
    pub(crate) fn threads_for(self, useful: usize) -> usize {
        let most = match self {
            Par::Seq => 1,
            Par::Rayon(0) => useful,
            Par::Rayon(n) => n.min(useful),
        };
        if most <= 1 { 1 } else { most.min(pool_threads()) }
    }
}

/// Threads of the pool that a call made here would use, the caller among them: 1 where it has to do without.
pub(super) fn pool_threads() -> usize {
    let of_rayon =
        || if rayon::current_thread_index().is_some() { rayon::current_num_threads() } else { global_pool_threads() };
    host::threads().unwrap_or_else(of_rayon)
}

/// Threads of the global pool, which is started if it has not been; 1 if that fails, and in a process forked from the one that
/// started it.
fn global_pool_threads() -> usize {
    static POOL: OnceLock<(u32, usize)> = OnceLock::new();
    let (process, threads) = *POOL.get_or_init(|| (process(), start_global_pool()));
    if process == self::process() { threads } else { 1 }
}

/// Number of this process: another in one that was forked.
pub(super) fn process() -> u32 {
    if cfg!(unix) { std::process::id() } else { 0 } // targets without processes have none to tell, and panic
}

/// Memory that has to be there beside what each new thread takes. Threads that start at the limit of the address space abort the process
/// in the standard library, and leave the call itself without memory.
const SPARE: usize = 32 << 20;

/// Whether it fails or not, this is final: rayon tries once in a process.
fn start_global_pool() -> usize {
    let start = |thread: rayon::ThreadBuilder| {
        let mut spare = Vec::<u8>::new();
        spare.try_reserve_exact(SPARE).map_err(|_| io::ErrorKind::OutOfMemory)?;
        drop(black_box(spare)); // which keeps the compiler from leaving it out
        std::thread::Builder::new().spawn(|| thread.run()).map(drop)
    };
    // Where wasm has no threads, rayon's own start takes the calling thread for a pool of one, which an explicit one would rule out.
    if !cfg!(target_family = "wasm")
        && let Err(error) = rayon::ThreadPoolBuilder::new().spawn_handler(start).build_global()
        && error.source().is_some()
    {
        return 1; // the system's refusal; without a source: it was tried before, and we cannot know with what result
    }
    catch_unwind(rayon::current_num_threads).unwrap_or(1)
}
