//! One call: forward on burn's tensors, and what it leaves for backward.

use crate::engine::{Engine, Lent};
use crate::params::{with_grads, with_params};
use crate::view;
use burn::backend::flex::FlexTensor;
use resblock::{Context, Error, GradMode, MatMut, MatRef, Workspace};
use std::sync::Arc;

/// A recorded call: the graph holds it.
#[derive(Debug)]
pub(crate) struct Call {
    engine: Arc<Engine>,
    ctx: Context,
    /// As they were in the forward pass: burn's tensors are values, which nobody changes while we have them.
    params: Vec<FlexTensor>,
    record: Lent,
    /// Dimensions of x, if dx is wanted.
    x: Option<Vec<usize>>,
    /// Whether each parameter's gradient is wanted.
    wanted: Vec<bool>,
}

impl Call {
    /// y and its record.
    pub(crate) fn forward(
        engine: &Arc<Engine>,
        ctx: Context,
        params: Vec<FlexTensor>,
        x: &FlexTensor,
        (x_wanted, wanted): (bool, Vec<bool>),
    ) -> Result<(FlexTensor, Self), Error> {
        let mut record = engine.record();
        let y = output(engine, &params, x, |ws, params, x, y| {
            engine.functional.forward_to(&ctx, ws, params, x, y, &mut record.record)
        })?;
        let x = x_wanted.then(|| x.layout().shape().to_vec());
        Ok((y, Self { engine: Arc::clone(engine), ctx, params, record, x, wanted }))
    }

    /// y, and nothing for backward.
    pub(crate) fn infer(
        engine: &Engine,
        ctx: &Context,
        params: &[FlexTensor],
        x: &FlexTensor,
    ) -> Result<FlexTensor, Error> {
        output(engine, params, x, |ws, params, x, y| engine.functional.infer(ctx, ws, params, x, y))
    }

    pub(crate) fn record(&self) -> &[f32] {
        self.record.record.as_slice()
    }

    /// The gradients that are wanted: of x, then of parameters.
    pub(crate) fn backward(&self, dy: FlexTensor) -> Result<Vec<FlexTensor>, Error> {
        let (engine, functional) = (&self.engine, &self.engine.functional);
        let dy = view::with_rows(dy);
        let dy = view::matrix(&dy)?;
        let (n, inputs) = (dy.rows(), functional.inputs());
        let mut dx = self.x.as_ref().map(|_| vec![0.0; n * inputs]);
        let dx_view = dx.as_mut().map(|dx| MatMut::new(dx, n, inputs)).transpose()?;
        let grads = with_grads(&engine.specs, &self.wanted, |grads| {
            with_params(&engine.specs, &self.params, |params| {
                engine.with_workspace(|ws| {
                    let (ctx, record) = (&self.ctx, self.record());
                    functional.backward(ctx, ws, params, record, dy, dx_view, grads, GradMode::Overwrite)
                })
            })
        })?;
        let dx = dx.zip(self.x.as_ref()).map(|(dx, dims)| view::tensor(dx, dims));
        Ok(dx.into_iter().chain(grads).collect())
    }
}

/// A fresh y, that `f` fills.
fn output(
    engine: &Engine,
    params: &[FlexTensor],
    x: &FlexTensor,
    f: impl FnOnce(&mut Workspace, resblock::ParamsRef<'_>, MatRef<'_>, MatMut<'_>) -> Result<(), Error>,
) -> Result<FlexTensor, Error> {
    let outputs = engine.functional.outputs();
    let rows = view::matrix(x)?;
    let n = rows.rows();
    let mut y = vec![0.0; n * outputs];
    let y_view = MatMut::new(&mut y, n, outputs)?;
    with_params(&engine.specs, params, |params| engine.with_workspace(|ws| f(ws, params, rows, y_view)))?;
    let mut dims = x.layout().shape().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    Ok(view::tensor(y, &dims))
}
