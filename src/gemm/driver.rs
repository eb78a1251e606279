//! Threads: how independent pieces of work are handed out.
//!
//! A piece of work owns what it writes: row blocks and panels are cut from the outputs by `chunks_mut` and its kin, so the
//! compiler rules races out and this file, like everything above it, has no `unsafe`. Pieces are claimed one at a time from an
//! iterator behind a lock (some 20 ns, for pieces of 10 microseconds and more), so that a slow core takes fewer. Which thread
//! computes a piece cannot change its bits.

use std::cell::Cell;
use std::error::Error as _;
use std::hint::black_box;
use std::io;
use std::panic::catch_unwind;
use std::sync::{Mutex, OnceLock, PoisonError};

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
    /// # Where there is no pool
    /// Rayon is asked only by a call that has work for two threads, and `Rayon(1)` never asks. The first that does so outside any
    /// pool starts the global one; if the system refuses its threads (a limit of processes or of memory, a target without threads),
    /// this call and all later ones run on the calling thread. They do so, too, if a program's own `build_global` failed; rayon
    /// says that by a panic alone, which is caught, once, after the panic hook has printed it.
    ///
    /// # Waiting
    /// The calling thread computes too, and returns when every thread that it asked for has come and gone. So
    /// - a call waits for threads of the pool that are busy with other tasks, even if it has done all the work itself by then;
    /// - it never returns if the pool's threads wait, in turn, for the caller: for a message that it sends after the call, say.
    ///   Call with [`Par::Seq`] there, or in a pool kept for such calls;
    /// - while a thread of the pool waits in a call, it may run other tasks of the pool: hold no lock and no borrow of a thread-local
    ///   over a call that such a task takes, too. Calls of such a task run on its thread alone, so that they do not pile up on
    ///   one stack;
    /// - a task of one pool that installs into another waits in rayon, which runs further tasks of the first pool meanwhile, on
    ///   top of it on the same stack. A thousand such tasks may lie some 500 deep, and 20,000 overflow the stack, whatever they
    ///   install. Call in the pool that the task is in, or install first and make the tasks in there.
    ///
    /// # Fork
    /// A child that `fork` makes has none of its parent's threads. If the parent used the global pool through a call of this
    /// crate, calls of the child outside any pool see that and run on the calling thread; its own threads may make pools. A child
    /// that was forked inside a pool, or whose parent used the global pool through rayon alone, would wait for threads that are not
    /// there: it has to call with [`Par::Seq`], or in a pool that it makes itself.
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

thread_local! {
    /// True while this thread is in a call that shares its work, and so perhaps in another task of the pool.
    static SHARING: Cell<bool> = const { Cell::new(false) };
}

/// Threads of the pool that a call made here would use, the caller among them: 1 where it has to do without.
fn pool_threads() -> usize {
    if SHARING.get() {
        1
    } else if rayon::current_thread_index().is_some() {
        rayon::current_num_threads()
    } else {
        global_pool_threads()
    }
}

/// Threads of the global pool, which is started if it has not been; 1 if that fails, and in a process forked from the one that
/// started it.
fn global_pool_threads() -> usize {
    static POOL: OnceLock<(u32, usize)> = OnceLock::new();
    let (process, threads) = *POOL.get_or_init(|| (process(), start_global_pool()));
    if process == self::process() { threads } else { 1 }
}

/// Number of this process: another in one that was forked.
fn process() -> u32 {
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

/// Does every piece of work, on up to `scratch.len()` threads, each with a scratch of its own. The calling thread works too.
///
/// Allocates nothing itself; rayon allocates one small job for every thread but the caller's.
pub(crate) fn for_each<I, T: Send>(pieces: I, scratch: &mut [T], work: impl Fn(I::Item, &mut T) + Sync)
where
    I: Iterator + Send,
{
    let Some((mine, others)) = scratch.split_first_mut() else { return };
    // The pool may be another one than when the threads were counted: a recorded pass can go on elsewhere.
    if others.is_empty() || pool_threads() == 1 {
        return pieces.for_each(|piece| work(piece, mine));
    }
    let queue = Mutex::new(pieces);
    // The lock is held only while the next piece is taken. If that ever panics, the others stop at the poisoned lock's state,
    // which is a valid iterator, and rayon passes the panic on to the caller.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = |scratch: &mut T| {
        while let Some(piece) = next() {
            work(piece, scratch);
        }
    };
    let _sharing = Sharing::begin();
    rayon::in_place_scope(|scope| {
        for scratch in others {
            scope.spawn(|_| run(scratch));
        }
        run(mine);
    });
}

/// Marks the time in which this thread shares its work, and ends it by unwinding, too.
struct Sharing;

impl Sharing {
    fn begin() -> Self {
        SHARING.set(true);
        Self
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        SHARING.set(false);
    }
}
