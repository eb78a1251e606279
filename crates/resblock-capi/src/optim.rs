//! Losses, and the optimiser.

use crate::context::Context;
use crate::memory::{ConstMatrix, Matrix, exclusive, list, list_mut, shared};
use crate::status::{Status, enter};

/// Settings of AdamW.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment: 0.9.
    pub beta1: f32,
    /// Decay of the second moment: 0.999.
    pub beta2: f32,
    /// ε: 1e-8.
    pub eps: f32,
    /// Weight decay: 0.01.
    pub weight_decay: f32,
}

/// The usual settings. Does not return a status.
#[unsafe(no_mangle)]
pub extern "C" fn resblock_adamw_new(lr: f32) -> AdamW {
    let resblock::AdamW { lr, betas: (beta1, beta2), eps, weight_decay, .. } = resblock::AdamW::new(lr);
    AdamW { lr, beta1, beta2, eps, weight_decay }
}

/// Step number `step`, from 1 on, of one parameter of `len` elements, whose moments `m` and `v` the caller keeps: zeros before the first.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "one for each operand of the formula")]
pub unsafe extern "C" fn resblock_adamw_step(
    settings: AdamW,
    context: *const Context,
    step: u64,
    parameter: *mut f32,
    gradient: *const f32,
    m: *mut f32,
    v: *mut f32,
    len: usize,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let (context, p, g, m, v) = unsafe {
            let (p, g) = (list_mut("parameter", parameter, len)?, list("gradient", gradient, len)?);
            (shared("context", context)?, p, g, list_mut("m", m, len)?, list_mut("v", v, len)?)
        };
        let mut adam = resblock::AdamW::new(settings.lr);
        adam.betas = (settings.beta1, settings.beta2);
        (adam.eps, adam.weight_decay) = (settings.eps, settings.weight_decay);
        Ok(context.run(|| adam.update(&context.ctx, step, p, g, m, v))?)
    })
}

/// The mean cross entropy of softmax(logits) and labels, one for each row, and its gradient, unless `dlogits` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_softmax_cross_entropy(
    logits: ConstMatrix,
    labels: *const usize,
    dlogits: *const Matrix,
    loss: *mut f64,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let (labels, dlogits, loss, rows) = unsafe {
            let dlogits = dlogits.as_ref().map(|to| to.view("dlogits")).transpose()?;
            (list("labels", labels, logits.rows)?, dlogits, exclusive("loss", loss)?, logits.view("logits")?)
        };
        *loss = resblock::softmax_cross_entropy(rows, labels, dlogits)?;
        Ok(())
    })
}

/// The mean of (y - target)² over all elements, and its gradient, unless `dy` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_mean_squared_error(
    y: ConstMatrix,
    target: ConstMatrix,
    dy: *const Matrix,
    loss: *mut f64,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let (y, target, dy, loss) = unsafe {
            let dy = dy.as_ref().map(|dy| dy.view("dy")).transpose()?;
            (y.view("y")?, target.view("target")?, dy, exclusive("loss", loss)?)
        };
        *loss = resblock::mean_squared_error(y, target, dy)?;
        Ok(())
    })
}
