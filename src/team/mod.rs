//! The team: the threads of a call.
//!
//! A call asks for its threads once ([`call`]) and goes through any number of phases with them ([`Team::each`]), at a microsecond each,
//! not a region of rayon's (10 µs on 16 threads, 26 after 30 µs of serial work). Helpers are jobs in the pool of the calling thread, one for
//! each, which wait for phases at the door of that thread (`door`) as long as the call lasts, and then linger for as long as the context says.
//! What may run where is `Par`'s to tell (`par`), or a host's that has threads of its own (`host`, `parallel_for`); how work is cut so that no two threads meet, that of `pieces`.

pub(crate) mod door;
pub(crate) mod host;
pub(crate) mod par;
pub(crate) mod parallel_for;
pub(crate) mod pieces;
mod sync;

// Built by a crate of its own, .ci/model, which has loom.
#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;

use door::{Door, MOST_PIECES, MOST_THREADS};
use host::HostPool;
use pieces::Pieces;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The door of a thread that makes calls.
struct Leader {
    door: Arc<Door>,
    /// Calls and phases so far.
    calls: u64,
    phases: u64,
    /// The process that it was made in: a fork has none of its helpers, and may have copied one in the middle of something.
    process: u32,
    /// The pool of a host that its helpers are of, or 0: rayon's.
    scope: u64,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.door.leave();
    }
}

thread_local! {
    /// The door of this thread, while no call of it is on. A thread belongs to one pool of rayon's, or to none, for ever; so do its helpers.
    static DOOR: Cell<Option<Box<Leader>>> = const { Cell::new(None) };
    /// Whether a call of this thread is on.
    static CALLING: Cell<bool> = const { Cell::new(false) };
    /// How many [`kept`] this thread is in: helpers stay between calls.
    static KEEPING: Cell<usize> = const { Cell::new(0) };
}

/// Does `f`, whose calls keep their helpers until it ends.
pub(crate) fn kept<R>(f: impl FnOnce() -> R) -> R {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            KEEPING.set(KEEPING.get() - 1);
            if KEEPING.get() == 0
                && let Ok(Some(leader)) = DOOR.try_with(Cell::take)
            {
                leader.door.end();
                let _ = DOOR.try_with(|door| door.set(Some(leader)));
            }
        }
    }
    KEEPING.set(KEEPING.get() + 1);
    let _end = End;
    f()
}

/// Does `f`, whose calls on more than one thread use those of `pool` in place of rayon's; [`crate::Par::Rayon`] still says how many. What is said there
/// of waiting holds here, too: a call waits for no job that has not begun. Helpers leave at the end of `f` at the latest.
pub fn within_pool<R>(pool: Arc<dyn HostPool>, f: impl FnOnce() -> R) -> R {
    /// The door from before; that of the pool closes for good.
    struct Outside(Option<Box<Leader>>);
    impl Drop for Outside {
        fn drop(&mut self) {
            let _ = DOOR.try_with(|door| door.set(self.0.take()));
        }
    }
    let _outside = Outside(DOOR.try_with(Cell::take).ok().flatten());
    let _entered = host::enter(pool);
    f()
}

#[cfg(test)]
thread_local! {
    /// Jobs that this thread has sent.
    static JOBS_SENT: Cell<usize> = const { Cell::new(0) };
}

/// The threads of a call.
pub(crate) struct Team {
    /// None: the calling thread alone.
    leader: Option<Box<Leader>>,
    threads: usize,
}

impl Team {
    /// The calling thread alone.
    pub(crate) const ALONE: Self = Self { leader: None, threads: 1 };

    /// The team of a call on up to `threads` threads, whose helpers stay for `linger` afterwards.
    pub(crate) fn new(threads: usize, linger: Duration) -> Self {
        let threads = if threads <= 1 { 1 } else { threads.min(par::pool_threads()).min(MOST_THREADS) };
        if threads == 1 {
            return Self::ALONE;
        }
        // No door while the thread ends, or while a call of it is on.
        let Ok(kept) = DOOR.try_with(Cell::take) else { return Self::ALONE };
        if CALLING.replace(true) {
            return Self::ALONE;
        }
        let (helpers, process, host) = (par::pool_threads(), par::process(), host::current());
        let scope = host.as_ref().map_or(0, |host| host.scope);
        let fits =
            |leader: &Leader| leader.door.helpers() >= helpers && leader.process == process && leader.scope == scope;
        let leader = kept.filter(|leader| fits(leader));
        let new = || Box::new(Leader { door: Arc::new(Door::new(helpers)), calls: 0, phases: 0, process, scope });
        let mut leader = leader.unwrap_or_else(new);
        leader.calls += 1;
        let linger = u64::try_from(linger.as_nanos()).unwrap_or(u64::MAX);
        let home = rayon::current_thread_index();
        let (door, mut jobs) = (&leader.door, 0);
        door.begin(leader.calls, threads - 1, linger, || {
            #[cfg(test)]
            JOBS_SENT.set(JOBS_SENT.get() + 1);
            let door = Arc::clone(door);
            match &host {
                None => rayon::spawn(move || help(&door, place_in_pool(home))),
                Some(host) => {
                    jobs += 1;
                    let own = jobs;
                    host.pool.spawn(Box::new(move || help(&door, own)));
                }
            }
        });
        Self { leader: Some(leader), threads }
    }

    /// Whether the calling thread is all there is.
    pub(crate) fn is_alone(&self) -> bool {
        self.leader.is_none()
    }

    /// A phase: does `work` for the first `count` pieces, each once, on as many threads as there are scratches, each with one of its
    /// own. A thread begins with those that are its own in each phase of so many pieces. `pieces` is used up: so no piece is ever
    /// handed out again, whatever `work` does with it.
    pub(crate) fn each<P: Pieces, T: Send>(
        &mut self,
        count: usize,
        pieces: P,
        scratch: &mut [T],
        work: impl Fn(P::Item, &mut T) + Sync,
    ) {
        let threads = self.threads.min(scratch.len()).min(count);
        let alone = threads <= 1 || count >= MOST_PIECES;
        let (Some(leader), false) = (&mut self.leader, alone) else {
            let Some(mine) = scratch.first_mut() else { return };
            for index in 0..count {
                // SAFETY: each index once, by this thread alone.
                work(unsafe { pieces.piece(index) }, mine);
            }
            return;
        };
        leader.phases += 1;
        let scratch = pieces::Chunks::new(scratch, 1);
        leader.door.phase(leader.phases, threads, count, &|index, place| {
            // SAFETY: the door gives each piece to one thread, once, and each thread of a phase another place; so no scratch is used by two.
            // This thread uses its own several times, one after the other.
            let (piece, mine) = unsafe { (pieces.piece(index), scratch.piece(place)) };
            if let Some(mine) = mine.first_mut() {
                work(piece, mine);
            }
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if let Some(leader) = self.leader.take() {
            CALLING.set(false);
            if KEEPING.get() == 0 {
                leader.door.end();
            }
            // A thread that is ending has no place to keep it, and needs none.
            let _ = DOOR.try_with(|door| door.set(Some(leader)));
        }
    }
}

/// The place of this thread of rayon's, in a pool whose thread number `home` calls, or another one. Places count from the leader's on: the others keep
/// theirs from call to call, and with it their pieces.
fn place_in_pool(home: Option<usize>) -> usize {
    let index = rayon::current_thread_index().unwrap_or(0);
    if home.is_some_and(|home| home <= index) { index } else { index + 1 }
}

/// What a helper does, from its own place, if it is free.
fn help(door: &Door, own: usize) {
    let mut since = None;
    door.help(own, |linger| {
        let Some(linger) = linger.filter(|&linger| linger > 0) else {
            since = None;
            return true;
        };
        let begun = *since.get_or_insert_with(Instant::now);
        begun.elapsed() >= Duration::from_nanos(linger)
    });
}
