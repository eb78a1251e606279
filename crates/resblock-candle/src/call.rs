//! A recorded call: the record, and the gradients on their way from the operation's backward pass to where candle asks for them.

use crate::engine::{Engine, Lent, lock};
use crate::params::{Params, Place, Tensors};
use crate::view;
use candle_core::{CpuStorage, Error, Layout, Result, Shape, Tensor};
use resblock::{AffineGradMut, Context, GradMode, GradsMut, MatMut, MatRef, Workspace};
use std::sync::{Arc, Mutex, OnceLock};

/// Backward passes whose gradients wait at once. One that failed half way leaves its own here, until so many have come after it, or the graph goes.
const MOST_PUT_BY: usize = 16;
/// Keys are whole numbers that an f32 has.
const KEYS: u32 = 1 << 24;

/// What a recorded call leaves for backward: the graph holds it through its operations.
pub(crate) struct Call {
    pub(crate) engine: Arc<Engine>,
    pub(crate) ctx: Context,
    pub(crate) params: Params,
    /// Whether each parameter's gradient is wanted.
    pub(crate) wanted: Vec<bool>,
    /// Written once, read by every backward pass.
    record: OnceLock<Lent>,
    put_by: Mutex<PutBy>,
}

/// Gradients by the keys of the backward passes that made them.
#[derive(Default)]
struct PutBy {
    last: u32,
    waiting: Vec<(u32, Vec<Option<Tensor>>)>,
}

impl Call {
    pub(crate) fn new(engine: &Arc<Engine>, ctx: Context, params: &Params, wanted: Vec<bool>) -> Self {
        let (record, put_by) = Default::default();
        Self { engine: Arc::clone(engine), ctx, params: params.clone(), wanted, record, put_by }
    }

    /// The record, once there has been a forward pass.
    pub(crate) fn record(&self) -> &[f32] {
        self.record.get().map_or(&[], |lent| lent.record.as_slice())
    }

    /// Parameter `index`.
    pub(crate) fn parameter(&self, index: usize) -> &Tensor {
        match &self.params {
            Params::Tensors(tensors) => &tensors.all[index],
            Params::Packed(_) => unreachable!("parameters of which none wants a gradient"),
        }
    }

    /// y, and the record of it.
    pub(crate) fn forward(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = view::matrix(storage, layout)?;
        let mut lent = self.engine.record();
        let functional = &self.engine.functional;
        let y = output(&self.engine, x, |ws, y| match &self.params {
            Params::Packed(packed) => packed.forward(&self.ctx, ws, x, y, &mut lent.record).map_err(Error::wrap),
            Params::Tensors(tensors) => tensors.with(&self.engine.specs, |params| {
                functional.forward_to(&self.ctx, ws, params, x, y, &mut lent.record)
            }),
        })?;
        let _ = self.record.set(lent);
        Ok((CpuStorage::F32(y), result_shape(layout, functional.outputs())))
    }

    /// dx, if wanted, and the gradients of all parameters that want one.
    pub(crate) fn backward(&self, x: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Vec<Option<Tensor>>)> {
        view::check(dy, "resblock: gradient of y")?;
        let dy = view::with_rows(dy)?;
        let storage = view::read(&dy);
        let dy = view::matrix(view::cpu(&storage)?, dy.layout())?;
        let inputs = self.engine.functional.inputs();
        let mut dx = x.track_op().then(|| view::zeros(dy.rows(), inputs)).transpose()?;
        let dx_view = dx.as_mut().map(|dx| MatMut::new(dx, dy.rows(), inputs)).transpose().map_err(Error::wrap)?;
        let grads = match &self.params {
            Params::Packed(packed) => {
                let run = |ws: &mut Workspace| packed.backward(&self.ctx, ws, self.record(), dy, dx_view);
                self.engine.with_workspace(run).map_err(Error::wrap)?;
                Vec::new()
            }
            Params::Tensors(tensors) => self.gradients(tensors, dy, dx_view)?,
        };
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, grads))
    }

    fn gradients(&self, tensors: &Tensors, dy: MatRef<'_>, dx: Option<MatMut<'_>>) -> Result<Vec<Option<Tensor>>> {
        let specs = &self.engine.specs;
        let buffers = specs.iter().zip(&self.wanted);
        let buffers = buffers.map(|(spec, &wanted)| wanted.then(|| view::zeros(spec.rows, spec.cols)).transpose());
        let mut buffers = buffers.collect::<Result<Vec<_>>>()?;
        let (mut affines, mut vectors) = (Vec::new(), Vec::new());
        for (buffer, spec) in buffers.iter_mut().zip(specs) {
            let buffer = buffer.as_deref_mut();
            match spec.place {
                Place::Weights => {
                    let weights = buffer.map(|dw| MatMut::new(dw, spec.rows, spec.cols)).transpose();
                    affines.push(AffineGradMut { weights: weights.map_err(Error::wrap)?, bias: None });
                }
                Place::Bias => {
                    if let Some(map) = affines.last_mut() {
                        map.bias = buffer;
                    }
                }
                Place::Vector => vectors.push(buffer),
            }
        }
        let grads = GradsMut { affines: &mut affines, vectors: &mut vectors };
        self.engine.with_workspace(|ws| {
            tensors.with(&self.engine.specs, |params| {
                let functional = &self.engine.functional;
                functional.backward(&self.ctx, ws, params, self.record(), dy, dx, grads, GradMode::Overwrite)
            })
        })?;
        let tensor = |(grad, of): (Option<Vec<f32>>, &Tensor)| {
            grad.map(|grad| Tensor::from_vec(grad, of.shape(), of.device())).transpose()
        };
        buffers.into_iter().zip(&tensors.all).map(tensor).collect()
    }

    /// Puts gradients by, and returns the key to them.
    pub(crate) fn put_by(&self, grads: Vec<Option<Tensor>>) -> f32 {
        let mut put_by = lock(&self.put_by);
        put_by.last = put_by.last % KEYS + 1;
        if put_by.waiting.len() == MOST_PUT_BY {
            put_by.waiting.remove(0);
        }
        let key = put_by.last;
        put_by.waiting.push((key, grads));
        key as f32
    }

    /// The gradient of parameter `index` of the backward pass with this key; once.
    pub(crate) fn take(&self, key: f32, index: usize) -> Result<Option<Tensor>> {
        let mut put_by = lock(&self.put_by);
        let at = put_by.waiting.iter().position(|(found, _)| *found as f32 == key);
        let Some(at) = at else {
            candle_core::bail!("resblock: {MOST_PUT_BY} other backward passes of this graph have begun since this one")
        };
        let grads = &mut put_by.waiting[at].1;
        let grad = grads[index].take();
        if grads.iter().all(Option::is_none) {
            put_by.waiting.swap_remove(at);
        }
        Ok(grad)
    }
}

/// A fresh y, that `f` fills.
pub(crate) fn output(
    engine: &Engine,
    x: MatRef<'_>,
    f: impl FnOnce(&mut Workspace, MatMut<'_>) -> Result<()>,
) -> Result<Vec<f32>> {
    let outputs = engine.functional.outputs();
    let mut y = view::zeros(x.rows(), outputs)?;
    let view = MatMut::new(&mut y, x.rows(), outputs).map_err(Error::wrap)?;
    engine.with_workspace(|ws| f(ws, view))?;
    Ok(y)
}

/// The shape of x with the width of y.
pub(crate) fn result_shape(x: &Layout, outputs: usize) -> Shape {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    dims.into()
}
