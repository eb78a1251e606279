//! The door in every order of events that the memory model allows, by `loom`. The crate `.ci/model` runs it.

use super::door::Door;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a call has borrowed: loom sees any access that is not in order with another, by pieces or by the leader.
struct Borrowed([UnsafeCell<u32>; 3]);

// SAFETY: loom checks each access.
unsafe impl Sync for Borrowed {}

impl Borrowed {
    fn new() -> Self {
        Self([UnsafeCell::new(0), UnsafeCell::new(0), UnsafeCell::new(0)])
    }

    fn get(&self, at: usize) -> u32 {
        // SAFETY: loom checks it.
        self.0[at].with(|cell| unsafe { *cell })
    }

    fn add(&self, at: usize, value: u32) {
        // SAFETY: loom checks it.
        self.0[at].with_mut(|cell| unsafe { *cell += value });
    }
}

/// The cell that pieces read; they write those of their own numbers.
const INPUT: usize = 2;

/// Every order of events in which no thread is interrupted more than three times where it might go on.
fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// `stay`: whether helpers wait for phases as long as the call lasts; else one takes part in what is open, and leaves.
fn model(helpers: usize, phases: u64, stay: bool, fails: bool) {
    check(move || {
        let door = Arc::new(Door::new(helpers));
        door.begin(1, helpers, 0, || {});
        if !stay {
            door.end();
        }
        let threads: Vec<_> = (1..=helpers)
            .map(|own| {
                let door = Arc::clone(&door);
                thread::spawn(move || door.help(own, |_| true))
            })
            .collect();
        let data = &Borrowed::new();
        for number in 1..=phases {
            data.add(INPUT, 1);
            let run = |piece: usize, _: usize| {
                if fails && piece == 1 {
                    std::panic::resume_unwind(Box::new(7u32));
                }
                data.add(piece, data.get(INPUT));
            };
            let result = catch_unwind(AssertUnwindSafe(|| door.phase(number, helpers + 1, 2, &run)));
            assert_eq!(result.is_err(), fails);
        }
        door.end();
        let sum: u32 = (1..=phases as u32).sum();
        assert!(fails || (data.get(0), data.get(1)) == (sum, sum));
        threads.into_iter().for_each(|helper| helper.join().expect("a helper"));
    });
}

#[test]
fn one_helper_and_two_phases() {
    model(1, 2, true, false);
}

#[test]
fn two_helpers_and_one_phase() {
    // Two that wait for the leader would wait for each other, as loom sees it.
    model(2, 1, false, false);
}

#[test]
fn a_piece_that_panics() {
    model(1, 1, true, true);
    model(1, 2, false, true);
}

/// A helper that leaves as the next call begins, or stays for it.
#[test]
fn a_helper_between_two_calls() {
    check(|| {
        let door = Arc::new(Door::new(1));
        door.begin(1, 1, 0, || {});
        let helper = {
            let door = Arc::clone(&door);
            thread::spawn(move || door.help(1, |_| true))
        };
        door.end();
        let mut sent = 0;
        door.begin(2, 1, 0, || sent += 1);
        let data = &Borrowed::new();
        door.phase(1, 2, 1, &|piece, _| data.add(piece, 1));
        assert_eq!(data.get(0), 1);
        door.end();
        if sent == 1 {
            // The job that was sent for the one that had left.
            door.help(1, |_| true);
        }
        helper.join().expect("a helper");
    });
}
