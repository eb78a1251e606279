//! Threads of calls: rayon's, or those of the OpenMP runtime that the process already has.

use crate::error::raised;
use pyo3::prelude::*;
use resblock::{Context, Draw, Par, within_parallel_for};
use std::ffi::{c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Threads of a call that does not say: 0, as many as there are.
static THREADS: OnceLock<AtomicUsize> = OnceLock::new();

fn setting() -> &'static AtomicUsize {
    THREADS.get_or_init(|| {
        let from = std::env::var("RESBLOCK_NUM_THREADS").ok().and_then(|text| text.trim().parse().ok());
        AtomicUsize::new(from.unwrap_or(0))
    })
}

/// Sets how many threads calls use that do not say; 0: as many as there are. At first it is RESBLOCK_NUM_THREADS, or 0.
#[pyfunction]
pub(crate) fn set_num_threads(threads: usize) {
    setting().store(threads, Ordering::Relaxed);
}

/// How many threads calls use that do not say; 0: as many as there are.
#[pyfunction]
pub(crate) fn num_threads() -> usize {
    setting().load(Ordering::Relaxed)
}

/// `GOMP_parallel` of GCC's OpenMP runtime: does `body(data)` on each of so many threads, the calling one among them, and returns when all are done.
type Parallel =
    unsafe extern "C" fn(body: unsafe extern "C" fn(*mut c_void), data: *mut c_void, threads: c_uint, flags: c_uint);

/// That of the runtime that PyTorch has brought, if somebody has told us.
static OPENMP: OnceLock<Parallel> = OnceLock::new();

/// Calls of more than one thread use those of the OpenMP runtime at `path`, which is loaded already: threads of two pools that wait for work would take
/// turns on the same cores. Whether there is one.
#[pyfunction]
pub(crate) fn use_openmp(path: &str) -> bool {
    let Ok(path) = std::ffi::CString::new(path) else { return false };
    // SAFETY: the path is a C string, and RTLD_NOLOAD opens only what the process has loaded already: no code runs. The handle is never closed.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_NOW) };
    if handle.is_null() {
        return false;
    }
    // SAFETY: an open handle, and a C string.
    let symbol = unsafe { libc::dlsym(handle, c"GOMP_parallel".as_ptr()) };
    if symbol.is_null() {
        return false;
    }
    // SAFETY: since GCC 4.9 the symbol has this signature; it is not null, and the handle stays open.
    let parallel = unsafe { std::mem::transmute::<*mut c_void, Parallel>(symbol) };
    OPENMP.get_or_init(|| parallel);
    true
}

/// How a call runs.
pub(crate) fn context(threads: Option<usize>, draw: Option<(u64, u32, u64)>, frozen: bool) -> PyResult<Context> {
    let par = match threads.unwrap_or_else(num_threads) {
        1 => Par::Seq,
        n => Par::Rayon(n),
    };
    let draw = draw.map(|(seed, step, first_row)| Draw { seed, step, first_row });
    // Helpers that waited for the next call would keep the host's own operations waiting.
    let ctx = Context::new().map_err(raised)?.with_par(par).with_linger(Duration::ZERO);
    Ok(ctx.with_draw(draw).with_frozen_statistics(frozen))
}

/// Does a call, on the threads that it is to have.
pub(crate) fn run<R: Send>(ctx: &Context, call: impl FnOnce() -> R + Send) -> R {
    let (Some(&parallel), Par::Rayon(most)) = (OPENMP.get(), ctx.par()) else { return call() };
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if most == 0 { all } else { most };
    within_parallel_for(threads, |count, body| openmp(parallel, count, body), call)
}

/// The loop of an OpenMP runtime, whose turns do not care for their number.
fn openmp(parallel: Parallel, count: usize, body: &(dyn Fn(usize) + Sync)) {
    /// What one thread of the team does.
    unsafe extern "C" fn turn(data: *mut c_void) {
        // SAFETY: `data` is the address of the reference below, which outlives the loop.
        let body = unsafe { *data.cast::<&(dyn Fn(usize) + Sync)>() };
        body(0);
    }
    let mut body = body;
    // SAFETY: `turn` takes what it is given here. The loop ends before this returns; `body` does not unwind: `within_parallel_for` carries panics.
    unsafe { parallel(turn, (&raw mut body).cast(), count.try_into().unwrap_or(c_uint::MAX), 0) };
}
