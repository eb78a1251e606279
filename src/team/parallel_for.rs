//! Calls on the threads of a host that knows one way to use them: do this for each of so many numbers, and come back when all are done.

use super::host::{HostPool, Job};
use super::within_pool;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Looks for a job before a thread goes to sleep: some 20 µs. Those of a call come within one or two.
const LOOKS: u32 = 2000;

/// The jobs of a call, for those who have come to help.
struct Queue {
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    over: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostPool for Queue {
    fn threads(&self) -> usize {
        self.threads
    }

    fn spawn(&self, job: Job) {
        lock(&self.state).jobs.push(job);
        self.changed.notify_one();
    }
}

impl Queue {
    /// Does jobs until the calls are over.
    fn help(&self) {
        let mut looks = 0;
        loop {
            let mut state = lock(&self.state);
            if state.over {
                return;
            }
            let job = state.jobs.pop();
            if job.is_none() && looks >= LOOKS {
                drop(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            drop(state);
            match job {
                Some(job) => job(),
                None => std::hint::spin_loop(),
            }
            looks += 1;
        }
    }

    fn end(&self) {
        let mut state = lock(&self.state);
        state.over = true;
        state.jobs.clear();
        drop(state);
        self.changed.notify_all();
    }
}

/// Does `f`, whose calls use the threads of a host's loop: `parallel_for(threads, body)` does `body(i)` once for each i below `threads`, on any threads, at
/// once or one after the other, and returns when all are done. It is asked once: so all calls of `f`, a training step, say, are one loop of the host's.
///
/// The first `body` that begins does `f`; the others help its calls, and return when `f` has. None waits for another to begin, so a loop that runs one
/// after the other, on one thread, is right, too, and so is one inside another. If the loop does nothing at all, `f` is done here, alone.
///
/// Calls use them as they would rayon's, [`crate::Par::Rayon`] says how many.
///
/// ```
/// use resblock::{Activation, Context, Init, Layer, Linear, Par, Workspace, rows_of, rows_of_mut, within_parallel_for};
///
/// let layer = Linear::with_init(64, 64, Activation::Relu, &mut Init::he(1))?;
/// let (ctx, mut ws) = (Context::new()?.with_par(Par::Rayon(0)), Workspace::new());
/// let (x, mut y) = (vec![1.0; 64 * 512], vec![0.0; 64 * 512]);
/// let host = |count: usize, body: &(dyn Fn(usize) + Sync)| {
///     std::thread::scope(|scope| (0..count).for_each(|i| drop(scope.spawn(move || body(i)))));
/// };
/// within_parallel_for(2, host, || layer.infer(&ctx, &mut ws, rows_of(&x, 64)?, rows_of_mut(&mut y, 64)?))?;
/// # Ok::<(), resblock::Error>(())
/// ```
///
/// # Panics
/// If `f` does, with the same payload, when the loop is over.
pub fn within_parallel_for<R: Send>(
    threads: usize,
    parallel_for: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
    f: impl FnOnce() -> R + Send,
) -> R {
    let queue = |threads| Arc::new(Queue { threads, state: Mutex::default(), changed: Condvar::new() });
    let helpers = queue(threads);
    let (todo, result) = (Mutex::new(Some(f)), Mutex::new(None));
    parallel_for(threads, &|_| {
        let first = lock(&todo).take();
        let Some(f) = first else { return helpers.help() };
        let outcome = catch_unwind(AssertUnwindSafe(|| within_pool(helpers.clone(), f)));
        *lock(&result) = Some(outcome);
        helpers.end();
    });
    let outcome = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (outcome, todo.into_inner().unwrap_or_else(PoisonError::into_inner)) {
        (Some(Ok(done)), _) => done,
        (Some(Err(panic)), _) => resume_unwind(panic),
        (None, Some(f)) => within_pool(queue(1), f),
        (None, None) => unreachable!("who takes what is to be done leaves a result"),
    }
}
