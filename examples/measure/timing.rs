//! Times of single calls.

use std::time::{Duration, Instant};

/// Times of a call, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) best: f64,
    pub(crate) median: f64,
    pub(crate) count: usize,
}

/// Fewest calls that are timed.
const FEWEST: usize = 5;
/// Most, so that the record of very short calls stays small.
const MOST: usize = 1_000_000;

/// Warms up, then times single calls for about `seconds`.
pub(crate) fn time<E>(seconds: f64, mut call: impl FnMut() -> Result<(), E>) -> Result<Times, E> {
    let begin = Instant::now();
    call()?;
    while begin.elapsed() < Duration::from_millis(30) {
        call()?;
    }
    let (begin, mut nanos) = (Instant::now(), Vec::new());
    while nanos.len() < FEWEST || (begin.elapsed().as_secs_f64() < seconds && nanos.len() < MOST) {
        let t = Instant::now();
        call()?;
        nanos.push(t.elapsed().as_nanos());
    }
    nanos.sort_unstable();
    let micros = |index: usize| nanos[index] as f64 / 1e3;
    Ok(Times { best: micros(0), median: micros(nanos.len() / 2), count: nanos.len() })
}
