//! Forward and backward.

use crate::context::{Context, Workspace, workspace};
use crate::function::Function;
use crate::memory::{ConstMatrix, Gradient, Matrix, Parameter, list, list_mut, shared};
use crate::status::{Failure, Status, enter};
use resblock::{AffineGradMut, GradMode, GradsMut, ParamsRef, Role};

/// Gradients replace what is there.
pub const RESBLOCK_OVERWRITE: u32 = 0;
/// Gradients are added to what is there.
pub const RESBLOCK_ACCUMULATE: u32 = 1;

/// y = f(x; params), and nothing is recorded. x: rows × inputs; y: rows × outputs; `params`: one for each tensor of the function, in its order.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "one for each operand of the formula")]
pub unsafe extern "C" fn resblock_infer(
    function: *const Function,
    context: *const Context,
    workspace: *mut Workspace,
    params: *const Parameter,
    count: usize,
    x: ConstMatrix,
    y: Matrix,
) -> Status {
    // SAFETY: `memory`.
    enter(|| unsafe { forward(function, context, workspace, (params, count), x, y, None) })
}

/// As resblock_infer, with a record for backward: resblock_record_len floats of the caller's.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "one for each operand of the formula")]
pub unsafe extern "C" fn resblock_forward(
    function: *const Function,
    context: *const Context,
    workspace: *mut Workspace,
    params: *const Parameter,
    count: usize,
    x: ConstMatrix,
    y: Matrix,
    record: *mut f32,
    record_len: usize,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        unsafe {
            let record = list_mut("record", record, record_len)?;
            forward(function, context, workspace, (params, count), x, y, Some(record))
        }
    })
}

/// # Safety
/// The contract of `memory`.
unsafe fn forward(
    function: *const Function,
    context: *const Context,
    ws: *mut Workspace,
    (params, count): (*const Parameter, usize),
    x: ConstMatrix,
    y: Matrix,
    record: Option<&mut [f32]>,
) -> Result<(), Failure> {
    // SAFETY: by the caller.
    let (function, context, ws, x, y, (affines, vectors)) = unsafe {
        let function = shared("function", function)?;
        let params = function.params(params, count)?;
        (function, shared("context", context)?, workspace(ws)?, x.view("x")?, y.view("y")?, params)
    };
    let params = ParamsRef { affines: &affines, vectors: &vectors };
    Ok(context.run(|| match record {
        Some(record) => function.functional.forward(&context.ctx, ws, params, x, y, record),
        None => function.functional.infer(&context.ctx, ws, params, x, y),
    })?)
}

/// From a record and dy = ∂L/∂y (rows × outputs): dx (rows × inputs), unless it is NULL, and the gradients that `grads` has a place for: one for each
/// tensor of the function; of running averages there is none. `params` are those of the forward pass; the record may be read again. `mode`:
/// RESBLOCK_OVERWRITE or RESBLOCK_ACCUMULATE, of the parameters' gradients.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "one for each operand of the formula")]
pub unsafe extern "C" fn resblock_backward(
    function: *const Function,
    context: *const Context,
    workspace_: *mut Workspace,
    params: *const Parameter,
    count: usize,
    record: *const f32,
    record_len: usize,
    dy: ConstMatrix,
    dx: *const Matrix,
    grads: *const Gradient,
    mode: u32,
) -> Status {
    enter(|| {
        let mode = match mode {
            RESBLOCK_OVERWRITE => GradMode::Overwrite,
            RESBLOCK_ACCUMULATE => GradMode::Accumulate,
            other => return Err(Failure::new(Status::Setting, format!("mode: there is no number {other}"))),
        };
        // SAFETY: `memory`.
        let (function, context, ws, (affines, vectors), record, grads, dy, dx) = unsafe {
            let function = shared("function", function)?;
            let params = function.params(params, count)?;
            let (context, ws) = (shared("context", context)?, workspace(workspace_)?);
            let (record, grads) = (list("record", record, record_len)?, list("grads", grads, count)?);
            let dx = dx.as_ref().map(|dx| dx.view("dx")).transpose()?;
            (function, context, ws, params, record, grads, dy.view("dy")?, dx)
        };
        let (mut daffines, mut dvectors): (Vec<AffineGradMut<'_>>, Vec<Option<&mut [f32]>>) = Default::default();
        for (grad, tensor) in grads.iter().zip(&function.tensors) {
            let line = || {
                let wanted = grad.matrix((1, tensor.cols));
                // SAFETY: `memory`.
                wanted.map(|wanted| unsafe { list_mut("grads", wanted.data, tensor.cols) }).transpose()
            };
            match tensor.role {
                Role::Weight => {
                    let weights = grad.matrix((tensor.rows, tensor.cols));
                    // SAFETY: `memory`.
                    let weights = weights.map(|weights| unsafe { weights.view("grads") }).transpose()?;
                    daffines.push(AffineGradMut { weights, bias: None });
                }
                Role::Bias => {
                    let bias = line()?;
                    if let Some(map) = daffines.last_mut() {
                        map.bias = bias;
                    }
                }
                _ => dvectors.push(line()?),
            }
        }
        let params = ParamsRef { affines: &affines, vectors: &vectors };
        let grads = GradsMut { affines: &mut daffines, vectors: &mut dvectors };
        let functional = &function.functional;
        Ok(context.run(|| functional.backward(&context.ctx, ws, params, record, dy, dx, grads, mode))?)
    })
}

/// Brings running averages of BatchNorms up to date with the batch of a recorded pass: `running` has one list for each tensor of the function, NULL but
/// for running averages.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_update_statistics(
    function: *const Function,
    record: *const f32,
    record_len: usize,
    momentum: f32,
    running: *const *mut f32,
    count: usize,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let (function, record, running) = unsafe {
            (shared("function", function)?, list("record", record, record_len)?, list("running", running, count)?)
        };
        function.check_count("running", count)?;
        let mut vectors = Vec::new();
        for (&at, tensor) in running.iter().zip(&function.tensors) {
            if matches!(tensor.role, Role::Weight | Role::Bias) {
                continue;
            }
            // SAFETY: `memory`.
            let line = (!at.is_null()).then(|| unsafe { list_mut("running", at, tensor.cols) }).transpose()?;
            vectors.push(line);
        }
        Ok(function.functional.update_statistics(record, momentum, &mut vectors)?)
    })
}
