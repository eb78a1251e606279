//! How calls run, and the memory that they reuse.

use crate::memory::{exclusive, free, give, null, text};
use crate::status::{Failure, Status, enter};
use resblock::{Draw, Isa, Par, within_parallel_for};
use std::ffi::{c_char, c_void};
use std::time::Duration;

/// One turn of a loop: `arg` is what the loop was given.
pub type Body = Option<unsafe extern "C" fn(arg: *mut c_void, index: usize)>;

/// A loop of the caller's: does body(arg, i) once for each i below count, on any threads, at once or one after the other, and returns when all are done.
pub type ParallelFor = Option<unsafe extern "C" fn(user: *mut c_void, count: usize, body: Body, arg: *mut c_void)>;

/// How calls run: threads, instruction set, and what masks of dropout are drawn from.
pub struct Context {
    pub(crate) ctx: resblock::Context,
    host: Option<Host>,
}

#[derive(Clone, Copy)]
struct Host {
    parallel_for: unsafe extern "C" fn(*mut c_void, usize, Body, *mut c_void),
    user: *mut c_void,
    threads: usize,
}

// SAFETY: the caller vouches that the loop may be called with its `user` from any thread that calls are made on.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

/// The memory that calls reuse: one for each call that runs at the same time.
pub struct Workspace(pub(crate) resblock::Workspace);

impl Context {
    /// Does a call on the threads that it is to have.
    pub(crate) fn run<R: Send>(&self, call: impl FnOnce() -> R + Send) -> R {
        let Some(host) = self.host else { return call() };
        within_parallel_for(host.threads, |count, body| host.each(count, body), call)
    }
}

impl Host {
    fn each(self, count: usize, body: &(dyn Fn(usize) + Sync)) {
        unsafe extern "C" fn turn(arg: *mut c_void, index: usize) {
            // SAFETY: `arg` is the address of the reference below, which outlives the loop.
            let body = unsafe { *arg.cast::<&(dyn Fn(usize) + Sync)>() };
            body(index);
        }
        let mut body = body;
        // SAFETY: the caller's loop, with the caller's `user`; `turn` takes what it is given here. It does not unwind: `within_parallel_for` carries panics.
        unsafe { (self.parallel_for)(self.user, count, Some(turn), (&raw mut body).cast()) };
    }
}

/// The fastest instruction set of this CPU, on the calling thread alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_context_new(out: *mut *mut Context) -> Status {
    // SAFETY: `memory`.
    enter(|| unsafe { give(out, || Ok(Context { ctx: resblock::Context::new()?, host: None })) })
}

/// Frees it. NULL is let be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_context_free(context: *mut Context) {
    // SAFETY: `memory`.
    unsafe { free(context) }
}

/// Changes a context.
///
/// # Safety
/// The contract of `memory`.
unsafe fn change(
    context: *mut Context,
    to: impl FnOnce(resblock::Context) -> Result<resblock::Context, Failure>,
) -> Status {
    enter(|| {
        // SAFETY: by the caller.
        let context = unsafe { exclusive("context", context)? };
        context.ctx = to(context.ctx)?;
        Ok(())
    })
}

/// At most so many threads of the library's own pool, the calling one among them; 1: that alone; 0: as many as the pool has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_context_set_threads(context: *mut Context, threads: usize) -> Status {
    let par = if threads == 1 { Par::Seq } else { Par::Rayon(threads) };
    enter(|| {
        // SAFETY: `memory`.
        let context = unsafe { exclusive("context", context)? };
        context.ctx = context.ctx.with_par(par);
        context.host = None;
        Ok(())
    })
}

/// Threads of the caller's: calls use at most so many turns of this loop at once. It is asked once for a call. NULL: the library's own, again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_context_set_parallel_for(
    context: *mut Context,
    threads: usize,
    parallel_for: ParallelFor,
    user: *mut c_void,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let context = unsafe { exclusive("context", context)? };
        context.host = parallel_for.map(|parallel_for| Host { parallel_for, user, threads: threads.max(1) });
        context.ctx = context.ctx.with_par(if threads > 1 { Par::Rayon(threads) } else { Par::Seq });
        Ok(())
    })
}

/// How long helpers wait for the next call after one: 50 microseconds, unless set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_context_set_linger(context: *mut Context, microseconds: u64) -> Status {
    // SAFETY: `memory`.
    unsafe { change(context, |ctx| Ok(ctx.with_linger(Duration::from_micros(microseconds)))) }
}

/// Another instruction set: `avx512`, `avx2`, `neon` or `scalar`. All give the same bits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_context_set_isa(context: *mut Context, name: *const c_char) -> Status {
    // SAFETY: `memory`.
    unsafe {
        change(context, |ctx| {
            let name = text("name", name)?;
            let isa = name.parse::<Isa>().map_err(|error| Failure::new(Status::Isa, error.to_string()))?;
            Ok(ctx.with_isa(isa)?)
        })
    }
}

/// What masks of dropout are drawn from in recorded passes: seed and step of a run, and which row of the batch is the first of a call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_context_set_draw(
    context: *mut Context,
    seed: u64,
    step: u32,
    first_row: u64,
) -> Status {
    // SAFETY: `memory`.
    unsafe { change(context, |ctx| Ok(ctx.with_draw(Some(Draw { seed, step, first_row })))) }
}

/// Nothing is dropped, as at first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_context_clear_draw(context: *mut Context) -> Status {
    // SAFETY: `memory`.
    unsafe { change(context, |ctx| Ok(ctx.with_draw(None))) }
}

/// Whether recorded passes normalise by the running averages of BatchNorms.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_context_set_frozen_statistics(context: *mut Context, frozen: bool) -> Status {
    // SAFETY: `memory`.
    unsafe { change(context, |ctx| Ok(ctx.with_frozen_statistics(frozen))) }
}

/// A workspace without memory yet. NULL only if the system gives none.
#[unsafe(no_mangle)]
pub extern "C" fn resblock_workspace_new() -> *mut Workspace {
    Box::into_raw(Box::new(Workspace(resblock::Workspace::new())))
}

/// Frees it. NULL is let be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_workspace_free(workspace: *mut Workspace) {
    // SAFETY: `memory`.
    unsafe { free(workspace) }
}

/// The core's workspace behind a handle.
///
/// # Safety
/// The contract of `memory`.
pub(crate) unsafe fn workspace<'a>(workspace: *mut Workspace) -> Result<&'a mut resblock::Workspace, Failure> {
    // SAFETY: by the caller.
    unsafe { workspace.as_mut() }.map(|workspace| &mut workspace.0).ok_or_else(|| null("workspace"))
}
