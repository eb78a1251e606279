//! Functions with parameters of their own: for inference, and as files.

use crate::context::{Context, Workspace, workspace};
use crate::form::Formula;
use crate::function::Function;
use crate::memory::{ConstMatrix, Matrix, Parameter, free, give, shared, text};
use crate::status::{Failure, Status, enter};
use resblock::{Checkpoint, Keep, Layer as _, ParamsRef, Sequence, Snapshot};
use std::ffi::c_char;

/// A function with a copy of its parameters, laid out as kernels like them best. Its results are the same bits.
pub struct Layer(Sequence);

/// A copy of parameters that do not change.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_layer_pack(
    function: *const Function,
    params: *const Parameter,
    count: usize,
    out: *mut *mut Layer,
) -> Status {
    // SAFETY: `memory`.
    enter(|| unsafe { give(out, || Ok(Layer(pack(function, params, count)?))) })
}

/// # Safety
/// The contract of `memory`.
unsafe fn pack(function: *const Function, params: *const Parameter, count: usize) -> Result<Sequence, Failure> {
    // SAFETY: by the caller.
    let (function, (affines, vectors)) = unsafe {
        let function = shared("function", function)?;
        (function, function.params(params, count)?)
    };
    Ok(function.functional.pack(ParamsRef { affines: &affines, vectors: &vectors })?)
}

/// The layer that a file has: safetensors, saved by resblock_layer_save or by the Rust crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_layer_load(
    path: *const c_char,
    formulas: *const Formula,
    count: usize,
    out: *mut *mut Layer,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        unsafe {
            give(out, || {
                let path = text("path", path)?;
                let mut net = Function::read(formulas, count, Keep::All)?.zeros()?;
                Checkpoint::load(path)?.restore(&mut net)?;
                Ok(Layer(net))
            })
        }
    })
}

/// Writes it to a file: safetensors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_layer_save(layer: *const Layer, path: *const c_char) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let (layer, path) = unsafe { (shared("layer", layer)?, text("path", path)?) };
        Ok(Snapshot::new(&layer.0).save(path)?)
    })
}

/// y = f(x).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_layer_infer(
    layer: *const Layer,
    context: *const Context,
    workspace_: *mut Workspace,
    x: ConstMatrix,
    y: Matrix,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let (layer, context, ws, x, y) = unsafe {
            let (layer, context) = (shared("layer", layer)?, shared("context", context)?);
            (layer, context, workspace(workspace_)?, x.view("x")?, y.view("y")?)
        };
        Ok(context.run(|| layer.0.infer(&context.ctx, ws, x, y))?)
    })
}

/// Frees it. NULL is let be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_layer_free(layer: *mut Layer) {
    // SAFETY: `memory`.
    unsafe { free(layer) }
}
