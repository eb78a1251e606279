//! One call: forward on burn's tensors, and what it leaves for backward.

use crate::engine::{Engine, Lent};
use crate::params::{with_grads, with_params};
use crate::view;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use resblock::{Context, Error, GradMode, Layer, MatMut, MatRef, ParamsRef, Sequence, Workspace};
use std::sync::Arc;

/// A recorded call: the graph holds it.
#[derive(Debug)]
pub(crate) struct Call {
    engine: Arc<Engine>,
    ctx: Context,
    /// As they were in the forward pass: burn's tensors are values, which nobody changes while we have them.
    params: Vec<FlexTensor>,
    record: Lent,
    /// The shape of x, if dx is wanted.
    x: Option<Shape>,
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
        let y = output(engine, x, |ws, x, y| {
            let forward =
                |params: ParamsRef<'_>| engine.functional.forward_to(&ctx, ws, params, x, y, &mut record.record);
            with_params(&engine.specs, &params, forward)
        })?;
        let x = x_wanted.then(|| x.layout().shape().clone());
        Ok((y, Self { engine: Arc::clone(engine), ctx, params, record, x, wanted }))
    }

    /// y, and nothing for backward.
    pub(crate) fn infer(
        engine: &Engine,
        ctx: &Context,
        params: &[FlexTensor],
        x: &FlexTensor,
    ) -> Result<FlexTensor, Error> {
        output(engine, x, |ws, x, y| {
            with_params(&engine.specs, params, |params| engine.functional.infer(ctx, ws, params, x, y))
        })
    }

    /// The same with parameters that are packed.
    pub(crate) fn infer_packed(
        engine: &Engine,
        ctx: &Context,
        net: &Sequence,
        x: &FlexTensor,
    ) -> Result<FlexTensor, Error> {
        output(engine, x, |ws, x, y| net.infer(ctx, ws, x, y))
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
        let dx = dx.zip(self.x.clone()).map(|(dx, shape)| view::tensor(dx, shape));
        Ok(dx.into_iter().chain(grads).collect())
    }
}

/// A fresh y, that `f` fills.
fn output(
    engine: &Engine,
    x: &FlexTensor,
    f: impl FnOnce(&mut Workspace, MatRef<'_>, MatMut<'_>) -> Result<(), Error>,
) -> Result<FlexTensor, Error> {
    let outputs = engine.functional.outputs();
    let rows = view::matrix(x)?;
    let n = rows.rows();
    let mut y = vec![0.0; n * outputs];
    let y_view = MatMut::new(&mut y, n, outputs)?;
    engine.with_workspace(|ws| f(ws, rows, y_view))?;
    let mut shape = x.layout().shape().clone();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    Ok(view::tensor(y, shape))
}
