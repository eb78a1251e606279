//! Threads that are not rayon's: those of a framework that has a pool of its own.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A piece of work for a thread of a [`HostPool`]: it takes part in a call, if that is still on, and ends with it.
pub type Job = Box<dyn FnOnce() + Send>;

/// Threads of a host, for calls within [`crate::within_pool`].
pub trait HostPool: Send + Sync {
    /// Threads that a call may use, the calling one among them.
    fn threads(&self) -> usize;

    /// Does `job` on another thread, whenever one is free. It must not be done before this returns. No call waits for one that has not begun, so it may
    /// come late, or be dropped.
    fn spawn(&self, job: Job);
}

/// The pool that calls of this thread use.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) pool: Arc<dyn HostPool>,
    /// Another one for each time that a pool is entered: helpers belong to one.
    pub(super) scope: u64,
}

thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// That of the calling thread; None: rayon's.
pub(super) fn current() -> Option<Host> {
    HOST.try_with(|host| host.borrow().clone()).ok().flatten()
}

/// Threads of that pool.
pub(super) fn threads() -> Option<usize> {
    current().map(|host| host.pool.threads().max(1))
}

/// Enters a pool until what this returns is dropped.
pub(super) fn enter(pool: Arc<dyn HostPool>) -> Entered {
    static SCOPES: AtomicU64 = AtomicU64::new(1);
    let scope = SCOPES.fetch_add(1, Ordering::Relaxed);
    Entered { before: HOST.replace(Some(Host { pool, scope })) }
}

/// The pool from before.
pub(super) struct Entered {
    before: Option<Host>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        HOST.set(self.before.take());
    }
}
