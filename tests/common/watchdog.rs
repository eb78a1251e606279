//! A deadlock must fail a test, not hang it.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Ends the process with a message unless it is dropped in time.
///
/// Time is counted in ticks of a second that this thread wakes up from, not read from a clock: a process that is stopped for
/// minutes and continued, or that shares its cores with much else, is not taken for one that hangs.
#[must_use = "a watchdog that is dropped watches nothing"]
pub(crate) struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// Far more than any test takes, under emulation on a busy machine too.
    pub(crate) const GENEROUS: u64 = 1800;

    pub(crate) fn new(what: &'static str, ticks: u64) -> Self {
        let (alive, dropped) = channel();
        std::thread::spawn(move || {
            for _ in 0..ticks {
                if dropped.recv_timeout(Duration::from_secs(1)) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
            eprintln!("{what}: not done after {ticks} s: a deadlock?");
            std::process::abort();
        });
        Self { _alive: alive }
    }
}
