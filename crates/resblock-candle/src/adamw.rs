//! AdamW in one pass over each variable.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Error, InplaceOp2, Layout, Result, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use resblock::{Context, Par};
use std::cell::RefCell;

/// AdamW with candle's settings, in place of `candle_nn::AdamW`: that makes a dozen tensors for each variable at each step, this goes over parameter,
/// gradient and both moments once, by resblock's own kernel ([`resblock::AdamW`] has the formula and its rounding). For variables of f32 on the
/// CPU, whether this crate's layers use them or others.
///
/// An eps of 0, or so small that a divisor might be, is refused ([`resblock::AdamW::update`]). Decay is for every variable, as in `candle_nn`; give two optimisers two lists where biases and gains are to have none.
#[derive(Debug)]
pub struct AdamW {
    vars: Vec<Moments>,
    steps: u64,
    params: ParamsAdamW,
    ctx: Context,
}

/// A variable with its moments.
#[derive(Debug)]
struct Moments {
    var: Var,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Optimizer for AdamW {
    type Config = ParamsAdamW;

    /// Variables that are no floats are left out, as `candle_nn` does.
    fn new(vars: Vec<Var>, params: ParamsAdamW) -> Result<Self> {
        let mut all = Vec::new();
        for var in vars.into_iter().filter(|var| var.dtype().is_float()) {
            crate::view::check(&var, "resblock: variable")?;
            let (first, second) = (vec![0.0; var.elem_count()], vec![0.0; var.elem_count()]);
            all.push(Moments { var, first, second });
        }
        let ctx = Context::new().map_err(Error::wrap)?.with_par(Par::Rayon(0)).with_linger(std::time::Duration::ZERO);
        Ok(Self { vars: all, steps: 0, params, ctx })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let steps = self.steps + 1;
        let adam = self.settings();
        // All of them first: a step that is refused has changed nothing.
        for Moments { var, .. } in &self.vars {
            let Some(grad) = grads.get(var) else { continue };
            crate::view::check(grad, "resblock: gradient of a variable")?;
            if grad.dims() != var.dims() {
                candle_core::bail!("resblock: a gradient of shape {:?} for a variable of {:?}", grad.dims(), var.dims())
            }
        }
        for moments in &mut self.vars {
            let Some(grad) = grads.get(&moments.var) else { continue };
            let grad = grad.contiguous()?;
            let own = RefCell::new((&mut moments.first[..], &mut moments.second[..]));
            moments.var.inplace_op2(&grad, &Update { adam: &adam, ctx: &self.ctx, steps, own })?;
        }
        self.steps = steps;
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.params.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.params.lr = lr;
    }

    fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.step(&crate::backward(loss)?)
    }
}

impl AdamW {
    /// The settings.
    pub fn params(&self) -> &ParamsAdamW {
        &self.params
    }

    /// Sets the settings.
    pub fn set_params(&mut self, params: ParamsAdamW) {
        self.params = params;
    }

    /// The same with another context.
    pub fn with_context(self, ctx: Context) -> Self {
        Self { ctx, ..self }
    }

    fn settings(&self) -> resblock::AdamW {
        let ParamsAdamW { lr, beta1, beta2, eps, weight_decay } = self.params;
        let mut adam = resblock::AdamW::new(lr as f32);
        (adam.betas, adam.eps, adam.weight_decay) = ((beta1 as f32, beta2 as f32), eps as f32, weight_decay as f32);
        adam
    }
}

/// The step of one variable.
struct Update<'a> {
    adam: &'a resblock::AdamW,
    ctx: &'a Context,
    steps: u64,
    /// Its moments.
    own: RefCell<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "resblock-adamw"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, p_layout: &Layout, g: &CpuStorage, g_layout: &Layout) -> Result<()> {
        let g = crate::view::line(g, g_layout)?;
        let (CpuStorage::F32(p), true) = (p, p_layout.is_contiguous()) else {
            candle_core::bail!("resblock: a variable that is not contiguous, or not of F32")
        };
        let start = p_layout.start_offset();
        let p = p.get_mut(start..start + p_layout.shape().elem_count()).unwrap_or_default();
        let (first, second) = &mut *self.own.borrow_mut();
        self.adam.update(self.ctx, self.steps, p, g, first, second).map_err(Error::wrap)
    }
}
