//! The team on real threads. (`model` runs the door through every order of events.)

use super::door::Door;
use super::host::{HostPool, Job};
use super::parallel_for::within_parallel_for;
use super::pieces::{Chunks, Numbers, Pieces};
use super::{JOBS_SENT, Team, par, within_pool};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

const LINGERS: [Duration; 2] = [Duration::ZERO, Duration::from_micros(50)];

/// A pool whose thread number 0 is the calling one for the time of `f`.
fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(f)
}

/// Some phases of so many pieces, each of which must be done once, by a thread with a scratch of its own.
fn phases(team: &mut Team, threads: usize, count: usize) {
    let (mut done, mut crew) = (vec![0u32; count], vec![0usize; threads]);
    for phase in 1..=3 {
        team.each(count, Chunks::new(&mut done, 1), &mut crew, |piece, mine| {
            *mine += piece.len();
            piece.iter_mut().for_each(|n| *n += 1);
        });
        assert!(done.iter().all(|&n| n == phase), "{threads} threads, {count} pieces: {done:?}");
        assert_eq!(crew.iter().sum::<usize>(), count * phase as usize);
    }
}

#[test]
fn each_piece_is_done_once_on_any_number_of_threads() {
    for pool in [1, 2, 3, 8, 64] {
        in_pool(pool, || {
            for linger in LINGERS {
                for threads in [1, 2, 3, 7, 64] {
                    for count in [0, 1, 2, 3, 5, 16, 17, 100] {
                        phases(&mut Team::new(threads, linger), threads, count);
                    }
                }
            }
        });
    }
}

#[test]
fn a_panic_of_a_piece_is_the_callers_and_the_next_phase_is_whole() {
    in_pool(3, || {
        for at in [0, 3, 7, 8] {
            let (mut team, mut crew) = (Team::new(3, LINGERS[1]), [(); 3]);
            let begun = AtomicUsize::new(0);
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                team.each(9, Numbers, &mut crew, |index, ()| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    assert_ne!(index, at, "planted");
                });
            }));
            let payload = panicked.expect_err("a panic");
            assert!(payload.downcast_ref::<String>().is_some_and(|text| text.contains("planted")));
            assert!((1..=9).contains(&begun.into_inner()));
            phases(&mut team, 3, 17);
        }
        // Between phases: the call ends, and so does nothing else.
        let panicked = catch_unwind(|| {
            let mut team = Team::new(3, LINGERS[1]);
            phases(&mut team, 3, 5);
            panic!("planted");
        });
        assert!(panicked.is_err());
        phases(&mut Team::new(3, LINGERS[1]), 3, 17);
    });
}

#[test]
fn calls_into_a_busy_pool_wait_for_nobody_and_leave_one_job_for_each_helper() {
    let (release, blocked) = channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let busy = AtomicUsize::new(0);
    in_pool(3, || {
        rayon::in_place_scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|_| {
                    busy.fetch_add(1, Ordering::SeqCst);
                    let _ = blocked.lock().map(|blocked| blocked.recv());
                });
            }
            while busy.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            let before = JOBS_SENT.get();
            for _ in 0..1000 {
                phases(&mut Team::new(3, Duration::ZERO), 3, 4);
            }
            assert_eq!(JOBS_SENT.get() - before, 2, "jobs sent");
            drop(release);
        });
        // Helpers that come late help a later call, or leave.
        for _ in 0..100 {
            phases(&mut Team::new(3, Duration::from_millis(1)), 3, 16);
        }
    });
}

#[test]
fn a_call_inside_of_a_call_runs_on_its_thread_alone() {
    in_pool(2, || {
        let mut outer = Team::new(2, LINGERS[1]);
        phases(&mut Team::new(2, LINGERS[1]), 2, 9);
        phases(&mut outer, 2, 9);
    });
}

#[test]
fn helpers_that_are_kept_are_sent_for_once() {
    in_pool(3, || {
        let before = JOBS_SENT.get();
        let panicked = catch_unwind(|| {
            super::kept(|| {
                for _ in 0..20 {
                    super::kept(|| phases(&mut Team::new(3, Duration::ZERO), 3, 9));
                }
                assert_eq!(JOBS_SENT.get() - before, 2);
                panic!("planted");
            })
        });
        assert_eq!(panicked.expect_err("a panic").downcast_ref(), Some(&"planted"));
        phases(&mut Team::new(3, Duration::ZERO), 3, 9);
    });
}

/// Another pool's threads as helpers: some that come in time, some that run one after the other when all is done.
#[test]
fn any_thread_may_help_at_any_time() {
    for late in [false, true] {
        let door = Arc::new(Door::new(4));
        door.begin(1, 4, 0, || {});
        let stop = AtomicBool::new(false);
        let done: Vec<AtomicUsize> = (0..50).map(|_| AtomicUsize::new(0)).collect();
        std::thread::scope(|scope| {
            let help = |own: usize| {
                while !stop.load(Ordering::Relaxed) {
                    door.help(own, |_| true);
                    std::thread::yield_now();
                }
            };
            let helpers = || (1..=4).map(|own| scope.spawn(move || help(own))).collect::<Vec<_>>();
            let early = if late { Vec::new() } else { helpers() };
            for number in 1..=40 {
                door.phase(number, 5, done.len(), &|piece, place| {
                    assert!(place < 5);
                    done[piece].fetch_add(1, Ordering::Relaxed);
                });
            }
            door.end();
            let all = if late { helpers() } else { early };
            stop.store(true, Ordering::Relaxed);
            all.into_iter().for_each(|helper| helper.join().expect("a helper"));
        });
        assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 40), "late: {late}");
    }
}

#[test]
fn pieces_of_a_grid_are_all_of_it_once() {
    use super::pieces::{Columns, Grid};
    for (rows, width, block, panels, across) in
        [(7usize, 64, 3, 1, 3), (5, 48, 5, 2, 2), (4, 32, 1, 3, 1), (0, 32, 4, 1, 2)]
    {
        let grid = Grid { down: rows.div_ceil(block), rows: block, panels, across };
        let mut memory = vec![0.0f32; rows * width];
        // A place of all but the first and the last panel, written; what is left is read.
        let places = [(16, width - 32)];
        let pieces = Columns::new(&mut memory, width, &places, grid);
        let mut cells = 0;
        for index in 0..grid.pieces() {
            // SAFETY: one after the other, each once.
            let cut = unsafe { pieces.piece(index) };
            cells += cut.places[0].len();
            cut.places[0].iter_mut().for_each(|v| *v += 1.0);
            assert!(cut.left[0].iter().chain(cut.left[1]).all(|&v| v == 0.0));
        }
        assert_eq!(cells, rows * (width - 32));
        assert_eq!(memory.iter().sum::<f32>(), (rows * (width - 32)) as f32);
    }
}

/// What a host may do with a loop of so many turns.
type Loop = fn(usize, &(dyn Fn(usize) + Sync));

const LOOPS: [(&str, Loop); 4] = [
    ("at once", |count, body| std::thread::scope(|scope| (0..count).for_each(|i| drop(scope.spawn(move || body(i)))))),
    ("one after the other", |count, body| (0..count).for_each(body)),
    ("one, and the others when it is over", |count, body| {
        std::thread::scope(|scope| drop(scope.spawn(|| body(count - 1))));
        std::thread::scope(|scope| (1..count).for_each(|i| drop(scope.spawn(move || body(i)))));
    }),
    ("not at all", |_, _| ()),
];

#[test]
fn a_hosts_loop_is_asked_once_and_does_each_piece_once() {
    for (name, parallel_for) in LOOPS {
        for threads in [1, 2, 3, 8] {
            for linger in [Duration::ZERO, Duration::from_secs(1000)] {
                let asked = AtomicUsize::new(0);
                let host = |count: usize, body: &(dyn Fn(usize) + Sync)| {
                    asked.fetch_add(1, Ordering::Relaxed);
                    parallel_for(count, body);
                };
                let done = within_parallel_for(threads, host, || {
                    for count in [0, 1, 5, 100] {
                        phases(&mut Team::new(threads, linger), threads, count);
                        super::kept(|| phases(&mut Team::new(threads, linger), threads, count));
                    }
                    par::pool_threads()
                });
                assert_eq!(asked.into_inner(), 1);
                assert_eq!(done, if name == "not at all" { 1 } else { threads }, "{name}");
            }
        }
    }
}

#[test]
fn a_hosts_threads_help_and_the_pool_from_before_comes_back() {
    in_pool(2, || {
        let mut team = Team::new(2, Duration::ZERO);
        phases(&mut team, 2, 16);
        drop(team);
        let ids = std::sync::Mutex::new(std::collections::BTreeSet::new());
        within_parallel_for(3, LOOPS[0].1, || {
            assert_eq!(par::pool_threads(), 3);
            let mut team = Team::new(3, Duration::ZERO);
            // Until three have come: each piece waits for the others.
            let here = AtomicUsize::new(0);
            team.each(3, Numbers, &mut [(); 3], |_, ()| {
                here.fetch_add(1, Ordering::Relaxed);
                while here.load(Ordering::Relaxed) < 3 {
                    std::thread::yield_now();
                }
                ids.lock().expect("a list").insert(format!("{:?}", std::thread::current().id()));
            });
        });
        assert_eq!(ids.into_inner().expect("a list").len(), 3);
        assert_eq!(par::pool_threads(), 2);
        phases(&mut Team::new(2, Duration::ZERO), 2, 16);
    });
}

#[test]
fn a_panic_in_a_hosts_loop_is_the_callers() {
    for (_, parallel_for) in LOOPS {
        let panicked = catch_unwind(|| {
            within_parallel_for(3, parallel_for, || {
                let (mut team, mut crew) = (Team::new(3, LINGERS[1]), [(); 3]);
                team.each(9, Numbers, &mut crew, |index, ()| assert_ne!(index, 7, "planted"));
            });
        });
        let payload = panicked.expect_err("a panic");
        assert!(payload.downcast_ref::<String>().is_some_and(|text| text.contains("planted")));
        within_parallel_for(3, parallel_for, || phases(&mut Team::new(3, LINGERS[1]), 3, 17));
    }
}

#[test]
fn a_pool_of_a_hosts_may_be_late_or_drop_its_jobs() {
    #[derive(Default)]
    struct Late(std::sync::Mutex<Vec<Job>>);
    impl HostPool for Late {
        fn threads(&self) -> usize {
            4
        }
        fn spawn(&self, job: Job) {
            self.0.lock().expect("a list").push(job);
        }
    }
    let pool = Arc::new(Late::default());
    within_pool(pool.clone(), || {
        phases(&mut Team::new(4, Duration::ZERO), 4, 17);
        phases(&mut Team::new(4, Duration::ZERO), 4, 17);
    });
    let mut jobs = std::mem::take(&mut *pool.0.lock().expect("a list"));
    assert_eq!(jobs.len(), 3, "one for each helper, however many calls there were");
    drop(jobs.pop());
    jobs.into_iter().for_each(|job| job()); // each returns at once
}
