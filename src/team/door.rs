//! The door between the leader of a call and its helpers: who may touch what a call has borrowed, and until when.
//!
//! A call is made of *phases*: pieces of work, in any order, on any thread, and then the next phase. The leader, who is the thread that
//! called, opens each, works on its pieces like anybody else, closes it when none is left, and waits until nobody is *inside*. Helpers come
//! and go. They hold nothing of the call but inside of a phase, so the leader never waits for one that has not come, or that is on
//! its way: a call without any helper is a call on one thread, and nothing can deadlock.
//!
//! ```text
//!   leader                                            helper
//!   job = ...                                         p = phase        (not 0, not the last one, and not too few threads)
//!   phase = (number, threads)      (release)          inside = p
//!   pieces                                            fence
//!   phase = 0                                         phase == p ?     no: inside = 0, and again
//!   fence                                             pieces of job
//!   each place: wait while inside != 0 (acquire)      inside = 0       (release)
//! ```
//!
//! The two fences are what it rests on: either the helper sees that the phase is closed, or the leader sees the helper inside
//! (Dekker's pattern; Maged Michael's hazard pointers use it in the same way). What a piece writes comes before `inside = 0`, and
//! that before all that the leader does after the phase. Each helper has a place of its own, a cache line that others only read:
//! a barrier costs no thread more than a few lines, where one counter for all would go from core to core (docs/design.md).
//!
//! Pieces are claimed from ranges, one for each thread, by a word beside its place: first those of one's own range, which are the same
//! ones in each call, so that weights stay in a core's cache; then what others have left. The word holds the phase's number, so nobody needs to
//! set it back.

use super::sync::{Apart, AtomicBool, AtomicU8, AtomicU64, Guarded, Mutex, fence, pause};
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

/// What a phase does: `run(piece, place)`.
pub(super) type Run<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The phase at hand.
struct Job {
    /// The leader's closure. Its lifetime ends with the phase, which nobody outlives inside.
    run: *const Run<'static>,
    pieces: usize,
}

/// Bits of a claim that count pieces; the others are the phase's number. A claim from 2⁴⁰ phases ago would be taken for one of now:
/// at a microsecond each that is two weeks in which a word beside a place in use was not touched, though every phase of two threads does.
const PIECE_BITS: u32 = 24;
/// Pieces of a phase are fewer.
pub(super) const MOST_PIECES: usize = 1 << PIECE_BITS;
/// Bits of the open phase's word that say how many threads it has; the others are its number.
const THREAD_BITS: u32 = 12;
/// Most threads of a call.
pub(super) const MOST_THREADS: usize = (1 << THREAD_BITS) - 1;

/// Nobody is here, nobody is on the way.
const EMPTY: u8 = 0;
/// A helper has been sent for.
const CALLED: u8 = 1;
/// A helper is here.
const HERE: u8 = 2;

/// What belongs to one thread. The leader has the first.
#[derive(Debug)]
struct Place {
    state: AtomicU8,
    /// The phase that the helper is inside of, or 0.
    inside: AtomicU64,
    /// The phase's number and how many pieces of this thread's range have been claimed.
    claims: AtomicU64,
}

pub(super) struct Door {
    /// Number and threads of the phase that is open, or 0. Numbers only grow.
    phase: Apart<AtomicU64>,
    /// The call that goes on, or 0. Helpers stay meanwhile.
    call: AtomicU64,
    /// How long helpers stay after a call, in nanoseconds.
    linger: AtomicU64,
    /// The leader's thread is gone.
    left: AtomicBool,
    job: Guarded<Job>,
    /// A piece has panicked; no more are claimed.
    failed: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    places: Box<[Apart<Place>]>,
}

// SAFETY: all fields but `job` may be shared. `job` is written by the leader while no phase is open and nobody is inside, and read by a
// helper inside of an open phase; the protocol above keeps the two apart, and orders them. Its pointer is to a closure that is `Sync`.
unsafe impl Sync for Door {}
// SAFETY: as above.
unsafe impl Send for Door {}

/// The range of pieces that is a thread's own.
fn share(place: usize, threads: usize, pieces: usize) -> Range<usize> {
    place * pieces / threads..(place + 1) * pieces / threads
}

/// Threads of the phase with this word; none where no phase is open.
fn threads_of(word: u64) -> usize {
    word as usize & MOST_THREADS
}

impl Door {
    /// For a leader and so many helpers.
    pub(super) fn new(helpers: usize) -> Self {
        let place = || Place { state: AtomicU8::new(EMPTY), inside: AtomicU64::new(0), claims: AtomicU64::new(0) };
        let nothing: *const Run<'static> = &|_: usize, _: usize| {};
        Self {
            phase: Apart::new(AtomicU64::new(0)),
            call: AtomicU64::new(0),
            linger: AtomicU64::new(0),
            left: AtomicBool::new(false),
            job: Guarded::new(Job { run: nothing, pieces: 0 }),
            failed: AtomicBool::new(false),
            panic: Mutex::new(None),
            places: (0..=helpers).map(|_| Apart::new(place())).collect(),
        }
    }

    pub(super) fn helpers(&self) -> usize {
        self.places.len() - 1
    }

    /// The leader begins call number `call`: sends for `helpers` helpers, those that are not here or on their way already.
    pub(super) fn begin(&self, call: u64, helpers: usize, linger: u64, mut send: impl FnMut()) {
        self.linger.store(linger, Relaxed);
        self.call.store(call, Release);
        // Either a helper that leaves sees the call, or it is seen to have left.
        fence(SeqCst);
        for place in self.places.iter().skip(1).take(helpers) {
            if place.state.load(Relaxed) == EMPTY
                && place.state.compare_exchange(EMPTY, CALLED, Relaxed, Relaxed).is_ok()
            {
                send();
            }
        }
    }

    /// The leader ends its call.
    pub(super) fn end(&self) {
        self.call.store(0, Release);
    }

    /// The leader's thread ends.
    pub(super) fn leave(&self) {
        self.left.store(true, Release);
    }

    /// The leader runs phase `number`, larger than any before: `run(piece, place)` once for each of `pieces` pieces, on up to `threads`
    /// threads, each with another number of its place, below `threads`. A panic of a piece is passed on when all have left.
    pub(super) fn phase(&self, number: u64, threads: usize, pieces: usize, run: &Run<'_>) {
        assert!((1..=self.places.len().min(MOST_THREADS)).contains(&threads), "a place for each thread");
        assert!(pieces < MOST_PIECES, "pieces that a claim can count");
        // SAFETY: only the lifetime changes. The pointer is followed inside of this phase alone, and the phase ends, also by
        // unwinding, in `Close`, which waits until nobody is inside.
        let run: *const Run<'static> = unsafe { std::mem::transmute(run as *const Run<'_>) };
        // SAFETY: no phase is open and nobody is inside: the last one's `Close` has seen to that, and only the leader opens one.
        self.job.with_mut(|job| unsafe { *job = Job { run, pieces } });
        let word = number << THREAD_BITS | threads as u64;
        self.phase.store(word, Release);
        let close = Close { door: self, threads };
        self.work(word, 0);
        drop(close);
        if self.failed.load(Relaxed) {
            self.failed.store(false, Relaxed);
            let payload = self.panic.lock().map_or_else(|poisoned| poisoned.into_inner().take(), |mut p| p.take());
            if let Some(payload) = payload {
                std::panic::resume_unwind(payload);
            }
        }
    }

    /// Takes part in the open phase, from place number `place`, which is one of its threads'.
    fn work(&self, word: u64, place: usize) {
        let (number, threads) = (word >> THREAD_BITS, threads_of(word));
        // SAFETY: the caller is the leader, with the phase open, or inside of it; the job is written while neither can be.
        let (run, pieces) = self.job.with(|job| unsafe { ((*job).run, (*job).pieces) });
        let all = AssertUnwindSafe(|| {
            for victim in (place..threads).chain(0..place) {
                let range = share(victim, threads, pieces);
                while let Some(next) = self.claim(number, victim, range.len()) {
                    // SAFETY: the closure lives as long as the phase, in which we are.
                    unsafe { (*run)(range.start + next, place) };
                }
            }
        });
        if let Err(payload) = catch_unwind(all) {
            let mut slot = self.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            slot.get_or_insert(payload);
            drop(slot);
            self.failed.store(true, Relaxed);
        }
    }

    /// The next piece of a range of `len` pieces, unless all are claimed.
    fn claim(&self, number: u64, owner: usize, len: usize) -> Option<usize> {
        let claims = &self.places[owner].claims;
        let mut seen = claims.load(Relaxed);
        loop {
            let taken = if seen >> PIECE_BITS == number & (u64::MAX >> PIECE_BITS) {
                seen & (MOST_PIECES as u64 - 1)
            } else {
                0
            };
            if taken >= len as u64 || self.failed.load(Relaxed) {
                return None;
            }
            match claims.compare_exchange_weak(seen, number << PIECE_BITS | (taken + 1), Relaxed, Relaxed) {
                Ok(_) => return Some(taken as usize),
                Err(now) => seen = now,
            }
        }
    }

    /// A helper comes, takes a place, that of its own number if it can, helps as long as it is wanted, and leaves. `patience` says whether
    /// the time to linger, in nanoseconds, is over; it begins anew with `None`.
    pub(super) fn help(&self, own: usize, mut patience: impl FnMut(Option<u64>) -> bool) {
        let take = |place: usize| {
            let state = &self.places[place].state;
            state.load(Relaxed) == CALLED && state.compare_exchange(CALLED, HERE, Relaxed, Relaxed).is_ok()
        };
        let mut places = [own].into_iter().chain(1..self.places.len());
        let Some(me) = places.find(|&place| (1..self.places.len()).contains(&place) && take(place)) else { return };
        let place = &self.places[me];
        let (mut last, mut turn) = (0, 0);
        patience(None);
        loop {
            let word = self.phase.load(Relaxed);
            if word != last && me < threads_of(word) {
                place.inside.store(word, Relaxed);
                fence(SeqCst);
                if self.phase.load(Acquire) == word {
                    self.work(word, me);
                    last = word;
                    turn = 0;
                    patience(None);
                }
                place.inside.store(0, Release);
                continue;
            }
            if self.left.load(Relaxed) || (self.call.load(Relaxed) == 0 && patience(Some(self.linger.load(Relaxed)))) {
                place.state.store(EMPTY, Relaxed);
                // Either the leader of the next call sees that we have left, or we see the call.
                fence(SeqCst);
                let stay = self.call.load(Relaxed) != 0
                    && !self.left.load(Relaxed)
                    && place.state.compare_exchange(EMPTY, HERE, AcqRel, Relaxed).is_ok();
                if !stay {
                    return;
                }
                patience(None);
            }
            pause(&mut turn);
        }
    }
}

/// Closes the phase and waits until nobody is inside.
struct Close<'a> {
    door: &'a Door,
    threads: usize,
}

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.door.phase.store(0, Relaxed);
        fence(SeqCst);
        // Nobody goes in whose place is not one of the phase's.
        for place in &self.door.places[1..self.threads] {
            let mut turn = 0;
            while place.inside.load(Acquire) != 0 {
                pause(&mut turn);
            }
        }
    }
}
