//! Calls as custom calls of XLA's, for JAX: handlers of its foreign function interface, on its own thread pool.
//!
//! A handler is one C function of a call frame. What follows is the part of `xla/ffi/api/c_api.h` (version 0.x, stable in binary form: structs begin with
//! their size, and grow at their end) that handlers need; the Python tests compare sizes and offsets with the header that jaxlib ships.

use crate::function::Compiled;
use crate::threads::context;
use crate::view::View;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use resblock::{HostPool, Job, within_pool};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

/// What each struct begins with.
#[repr(C)]
struct Head {
    struct_size: usize,
    extension_start: *mut Extension,
}

#[repr(C)]
struct Extension {
    struct_size: usize,
    kind: c_int,
    next: *mut Extension,
}

#[repr(C)]
struct MetadataExtension {
    base: Extension,
    metadata: *mut Metadata,
}

#[repr(C)]
struct ApiVersion {
    head: Head,
    major: c_int,
    minor: c_int,
}

#[repr(C)]
struct Metadata {
    struct_size: usize,
    api_version: ApiVersion,
    traits: u32,
}

#[repr(C)]
struct Buffer {
    head: Head,
    dtype: c_int,
    data: *mut c_void,
    rank: i64,
    dims: *const i64,
}

/// Arguments, or results: types and addresses of buffers.
#[repr(C)]
struct Buffers {
    head: Head,
    size: i64,
    types: *const c_int,
    all: *const *const Buffer,
}

#[repr(C)]
struct Attributes {
    head: Head,
    size: i64,
    types: *const c_int,
    names: *const *const Span,
    all: *const *const c_void,
}

#[repr(C)]
struct Span {
    address: *const c_char,
    len: usize,
}

#[repr(C)]
struct Scalar {
    dtype: c_int,
    value: *const c_void,
}

/// An error of XLA's, which it frees.
type Failure = *mut c_void;

#[repr(C)]
struct CallFrame {
    head: Head,
    api: *const Api,
    ctx: *mut c_void,
    stage: c_int,
    args: Buffers,
    rets: Buffers,
    attrs: Attributes,
}

#[repr(C)]
struct ErrorArgs {
    head: Head,
    message: *const c_char,
    code: c_int,
}

#[repr(C)]
struct ScheduleArgs {
    head: Head,
    ctx: *mut c_void,
    task: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
}

#[repr(C)]
struct NumThreadsArgs {
    head: Head,
    ctx: *mut c_void,
    threads: *mut i64,
}

#[repr(C)]
struct DestroyArgs {
    head: Head,
    error: Failure,
}

#[repr(C)]
struct Api {
    head: Head,
    version: ApiVersion,
    internal: *const c_void,
    create_error: unsafe extern "C" fn(*mut ErrorArgs) -> Failure,
    error_message: *const c_void,
    destroy_error: unsafe extern "C" fn(*mut DestroyArgs),
    others: [*const c_void; 8],
    schedule: unsafe extern "C" fn(*mut ScheduleArgs) -> Failure,
    num_threads: unsafe extern "C" fn(*mut NumThreadsArgs) -> Failure,
}

const EXTENSION_METADATA: c_int = 1;
const STAGE_EXECUTE: c_int = 3;
const TYPE_S64: c_int = 5;
const TYPE_U32: c_int = 8;
const TYPE_F32: c_int = 11;
const ATTRIBUTE_SCALAR: c_int = 3;
const ATTRIBUTE_STRING: c_int = 4;
const CODE_INVALID_ARGUMENT: c_int = 3;
const CODE_INTERNAL: c_int = 13;
/// Of the interface that this was written for.
const VERSION: (c_int, c_int) = (0, 1);

fn head<T>() -> Head {
    Head { struct_size: size_of::<T>(), extension_start: ptr::null_mut() }
}

impl CallFrame {
    /// The attribute of this name and type.
    ///
    /// # Safety
    /// The frame is XLA's.
    unsafe fn attribute(&self, name: &str, kind: c_int) -> Option<*const c_void> {
        (0..usize::try_from(self.attrs.size).unwrap_or(0)).find_map(|at| {
            // SAFETY: lists of `size` each, by the interface.
            unsafe {
                let found = &**self.attrs.names.add(at);
                let bytes = std::slice::from_raw_parts(found.address.cast::<u8>(), found.len);
                (bytes == name.as_bytes() && *self.attrs.types.add(at) == kind).then(|| *self.attrs.all.add(at))
            }
        })
    }

    /// A whole number.
    ///
    /// # Safety
    /// As [`CallFrame::attribute`].
    unsafe fn number(&self, name: &str) -> Result<i64, String> {
        // SAFETY: an attribute of this type is a scalar, and one of type S64 an i64.
        unsafe {
            let scalar = self.attribute(name, ATTRIBUTE_SCALAR).map(|scalar| &*scalar.cast::<Scalar>());
            let number = scalar.filter(|scalar| scalar.dtype == TYPE_S64).map(|scalar| *scalar.value.cast::<i64>());
            number.ok_or_else(|| format!("resblock: no attribute {name}"))
        }
    }

    /// The compiled formula.
    ///
    /// # Safety
    /// As [`CallFrame::attribute`].
    unsafe fn compiled(&self) -> Result<Arc<Compiled>, String> {
        // SAFETY: an attribute of this type is a span of bytes.
        let bytes = unsafe {
            let span = self.attribute("formula", ATTRIBUTE_STRING).ok_or("resblock: no attribute formula")?;
            let span = &*span.cast::<Span>();
            std::slice::from_raw_parts(span.address.cast::<u8>(), span.len)
        };
        compiled(std::str::from_utf8(bytes).map_err(|error| error.to_string())?)
    }
}

/// The formula in JSON, compiled once.
fn compiled(json: &str) -> Result<Arc<Compiled>, String> {
    static ALL: Mutex<Option<HashMap<String, Arc<Compiled>>>> = Mutex::new(None);
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    if let Some(found) = all.get(json) {
        return Ok(Arc::clone(found));
    }
    let new = Arc::new(Compiled::new(json).map_err(|error| error.to_string())?);
    all.insert(json.into(), Arc::clone(&new));
    Ok(new)
}

impl Buffers {
    /// Buffer `at`, dense: all dimensions but the last are rows.
    ///
    /// # Safety
    /// The list is XLA's.
    unsafe fn view(&self, at: usize, dtype: c_int) -> Result<View, String> {
        if at >= usize::try_from(self.size).unwrap_or(0) {
            return Err(format!("resblock: no operand {at}"));
        }
        // SAFETY: `at` is in the list, and each entry is a buffer with `rank` dimensions.
        let (buffer, dims) = unsafe {
            let buffer = &**self.all.add(at);
            let rank = usize::try_from(buffer.rank).unwrap_or(0);
            (buffer, if rank == 0 { &[] } else { std::slice::from_raw_parts(buffer.dims, rank) })
        };
        if buffer.dtype != dtype {
            return Err(format!("resblock: operand {at} is of another type than expected"));
        }
        let sizes: Vec<usize> = dims.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
        let (cols, rows) = sizes.split_last().map_or((1, 1), |(&cols, rest)| (cols, rest.iter().product()));
        Ok(View::dense(buffer.data.cast(), rows, cols))
    }

    /// All from `first` on.
    ///
    /// # Safety
    /// As [`Buffers::view`].
    unsafe fn views(&self, first: usize) -> Result<Vec<View>, String> {
        // SAFETY: by the caller.
        (first..usize::try_from(self.size).unwrap_or(0)).map(|at| unsafe { self.view(at, TYPE_F32) }).collect()
    }
}

/// XLA's pool, during a call.
struct Pool {
    api: *const Api,
    ctx: *mut c_void,
    threads: usize,
    caller: ThreadId,
}

// SAFETY: XLA's pool takes tasks from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// A job and who must not do it: a pool may do a task at once, on the thread that brings it, and a job that helps a call ends with the call.
struct Task {
    job: Job,
    caller: ThreadId,
}

unsafe extern "C" fn task(data: *mut c_void) {
    // SAFETY: `data` is a box that `spawn` gave up, and each task is done once.
    let Task { job, caller } = *unsafe { Box::from_raw(data.cast::<Task>()) };
    if thread::current().id() != caller {
        job();
    }
}

impl HostPool for Pool {
    fn threads(&self) -> usize {
        self.threads
    }

    fn spawn(&self, job: Job) {
        let data = Box::into_raw(Box::new(Task { job, caller: self.caller }));
        let mut args = ScheduleArgs { head: head::<ScheduleArgs>(), ctx: self.ctx, task, data: data.cast() };
        // SAFETY: the interface and the context are those of the call that is on: only that spawns. What `task` takes is a box.
        unsafe {
            let failure = ((*self.api).schedule)(&raw mut args);
            if !failure.is_null() {
                // Nobody will do it.
                drop(Box::from_raw(data));
                ((*self.api).destroy_error)(&mut DestroyArgs { head: head::<DestroyArgs>(), error: failure });
            }
        }
    }
}

impl Pool {
    /// That of a call; None if it has none.
    ///
    /// # Safety
    /// The frame is XLA's.
    unsafe fn of(frame: &CallFrame) -> Option<Arc<Self>> {
        let mut threads = 0;
        let mut args = NumThreadsArgs { head: head::<NumThreadsArgs>(), ctx: frame.ctx, threads: &raw mut threads };
        // SAFETY: the interface is there as long as XLA is.
        let failure = unsafe { ((*frame.api).num_threads)(&raw mut args) };
        if !failure.is_null() {
            // SAFETY: an error that XLA has just made.
            unsafe { ((*frame.api).destroy_error)(&mut DestroyArgs { head: head::<DestroyArgs>(), error: failure }) };
            return None;
        }
        let threads = usize::try_from(threads).ok().filter(|&threads| threads > 0)?;
        Some(Arc::new(Self { api: frame.api, ctx: frame.ctx, threads, caller: thread::current().id() }))
    }
}

/// Does `call` of a frame, unless XLA only asks who we are; no panic leaves it.
unsafe fn handle(frame: *mut CallFrame, call: fn(&CallFrame) -> Result<(), String>) -> Failure {
    // SAFETY: XLA calls with a frame.
    let frame = unsafe { &*frame };
    let mut extension = frame.head.extension_start;
    // SAFETY: a list that ends with a null.
    while let Some(found) = unsafe { extension.as_ref() } {
        if found.kind == EXTENSION_METADATA {
            // SAFETY: an extension of this kind has metadata, which we are to fill in.
            unsafe {
                let metadata = (*extension.cast::<MetadataExtension>()).metadata;
                (*metadata).api_version.major = VERSION.0;
                (*metadata).api_version.minor = VERSION.1;
                (*metadata).traits = 0;
            }
            return ptr::null_mut();
        }
        extension = found.next;
    }
    if frame.stage != STAGE_EXECUTE {
        return ptr::null_mut();
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| call(frame)));
    let (message, code) = match outcome {
        Ok(Ok(())) => return ptr::null_mut(),
        Ok(Err(message)) => (message, CODE_INVALID_ARGUMENT),
        Err(_) => ("resblock: a panic".into(), CODE_INTERNAL),
    };
    let message = CString::new(message).unwrap_or_default();
    let mut args = ErrorArgs { head: head::<ErrorArgs>(), message: message.as_ptr(), code };
    // SAFETY: XLA copies the message.
    unsafe { ((*frame.api).create_error)(&raw mut args) }
}

/// Threads, and XLA's own where there are several.
fn within(frame: &CallFrame, threads: i64, call: impl FnOnce() -> PyResult<()>) -> Result<(), String> {
    // SAFETY: the frame is XLA's, as all functions here are called by `handle` alone.
    let pool = if threads == 1 { None } else { unsafe { Pool::of(frame) } };
    let done = match pool {
        Some(pool) => within_pool(pool, call),
        None => call(),
    };
    done.map_err(|error| error.to_string())
}

/// Arguments: x, what masks are drawn from (seed, its upper half, step), parameters. Results: y and, where it is recorded, the record.
fn forward(frame: &CallFrame) -> Result<(), String> {
    // SAFETY: the frame is XLA's. Arguments stay as they are for the call, and results are nobody else's: XLA makes no result of an argument unless asked to.
    unsafe {
        let (compiled, threads) = (frame.compiled()?, frame.number("threads")?);
        let (x, params) = (frame.args.view(0, TYPE_F32)?, frame.args.views(2)?);
        let draw = match frame.number("drawn")? {
            0 => None,
            _ => {
                let numbers = frame.args.view(1, TYPE_U32)?.words();
                let [low, high, step] = numbers.ok_or("resblock: draw: expected three numbers")?;
                Some((u64::from(low) | u64::from(high) << 32, step, 0))
            }
        };
        let y = frame.rets.view(0, TYPE_F32)?;
        let record = (frame.rets.size > 1).then(|| frame.rets.view(1, TYPE_F32)).transpose()?;
        let ctx = context(usize::try_from(threads).ok(), draw, frame.number("frozen")? != 0);
        let ctx = ctx.map_err(|error| error.to_string())?;
        within(frame, threads, || compiled.forward(&ctx, x, &params, y, record))
    }
}

/// Arguments: dy, the record, parameters. Results: dx, and the gradients of parameters that are learned, in order.
fn backward(frame: &CallFrame) -> Result<(), String> {
    // SAFETY: as above.
    unsafe {
        let (compiled, threads) = (frame.compiled()?, frame.number("threads")?);
        let (dy, record, params) = (frame.args.view(0, TYPE_F32)?, frame.args.view(1, TYPE_F32)?, frame.args.views(2)?);
        let dx = frame.rets.view(0, TYPE_F32)?;
        let mut results = frame.rets.views(1)?.into_iter();
        let grads = compiled.tensors.iter().map(|t| if t.name.role.is_learned() { results.next() } else { None });
        let grads = grads.collect();
        let ctx = context(usize::try_from(threads).ok(), None, false).map_err(|error| error.to_string())?;
        within(frame, threads, || compiled.backward(&ctx, dy, record, &params, Some(dx), &grads))
    }
}

unsafe extern "C" fn handle_forward(frame: *mut CallFrame) -> Failure {
    // SAFETY: XLA calls with a frame.
    unsafe { handle(frame, forward) }
}

unsafe extern "C" fn handle_backward(frame: *mut CallFrame) -> Failure {
    // SAFETY: as above.
    unsafe { handle(frame, backward) }
}

/// What JAX registers: a name and a handler each.
#[pyfunction]
pub(crate) fn xla_targets(py: Python<'_>) -> PyResult<Vec<(&'static str, Py<PyCapsule>)>> {
    type Handler = unsafe extern "C" fn(*mut CallFrame) -> Failure;
    let capsule = |name, handler: Handler| -> PyResult<_> {
        let tag: &'static CStr = c"xla._CUSTOM_CALL_TARGET";
        let pointer = NonNull::new(handler as *mut c_void);
        let pointer = pointer.ok_or_else(|| crate::error::refused(name, "no such handler"))?;
        // SAFETY: a function lives as long as the library, which is never unloaded.
        let capsule = unsafe { PyCapsule::new_with_pointer(py, pointer, tag)? };
        Ok((name, capsule.unbind()))
    };
    Ok(vec![capsule("resblock_forward", handle_forward)?, capsule("resblock_backward", handle_backward)?])
}
