//! Threads: how independent pieces of work are handed out.
//!
//! A piece of work owns what it writes: row blocks and panels are cut from the outputs by `chunks_mut` and its kin, so the
//! compiler rules races out and this file, like everything above it, has no `unsafe`. Pieces are claimed one at a time from an
//! iterator behind a lock (some 20 ns, for pieces of 10 microseconds and more), so that a slow core takes fewer. Which thread
//! computes a piece cannot change its bits.

use std::sync::{Mutex, PoisonError};

/// How many threads a call may use, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Par {
    /// The calling thread alone.
    #[default]
    Seq,
    /// At most this many threads of the rayon pool that the call is made in (the global one, outside any pool), the calling
    /// thread among them; 0: as many as the pool has. Small work takes fewer. `pool.install(|| ...)` chooses a pool.
    ///
    /// While a call waits for its threads, the calling thread may run other tasks of the pool: hold no lock and no borrow of a
    /// thread-local over it that such a task takes, too.
    Rayon(usize),
}

impl Par {
    /// Threads that a call may use now.
    pub fn threads(self) -> usize {
        match self {
            Par::Seq => 1,
            Par::Rayon(0) => rayon::current_num_threads(),
            Par::Rayon(n) => n.min(rayon::current_num_threads()),
        }
    }
}

/// Does every piece of work, on up to `scratch.len()` threads, each with a scratch of its own. The calling thread works too.
///
/// Allocates nothing itself; rayon allocates one small job for every thread but the caller's.
pub(crate) fn for_each<I, T: Send>(pieces: I, scratch: &mut [T], work: impl Fn(I::Item, &mut T) + Sync)
where
    I: Iterator + Send,
{
    let Some((mine, others)) = scratch.split_first_mut() else { return };
    if others.is_empty() {
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
    rayon::in_place_scope(|scope| {
        for scratch in others {
            scope.spawn(|_| run(scratch));
        }
        run(mine);
    });
}
