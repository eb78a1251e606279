//! Compiled formulas.

use crate::error::{raised, refused};
use crate::formulas::{Description, Tensor, read, tensors};
use crate::threads::{context, run};
use crate::view::View;
use pyo3::prelude::*;
use resblock::{
    AffineGradMut, AffineRef, Context, Functional, GradMode, GradsMut, Layer, MatMut, MatRef, ParamsRef, Role,
    Sequence, Workspace,
};
use std::sync::{Arc, Mutex, PoisonError};

/// A formula, or a chain of them, without parameters.
#[pyclass(frozen, module = "resblock._native")]
pub(crate) struct Function {
    pub(crate) compiled: Arc<Compiled>,
}

/// What is behind it, for other threads too.
pub(crate) struct Compiled {
    pub(crate) functional: Functional,
    pub(crate) tensors: Vec<Tensor>,
    /// As many as calls ran at once.
    workspaces: Mutex<Vec<Workspace>>,
}

/// Views of parameters, or of places for gradients, one for each tensor.
type Views = Vec<Option<View>>;

impl Compiled {
    pub(crate) fn new(json: &str) -> PyResult<Self> {
        let Description { formulas, keep } = read("formula", json)?;
        let functional = Functional::formulas(&formulas).and_then(|chain| chain.with_keep(keep)).map_err(raised)?;
        Ok(Self { functional, tensors: tensors(&formulas), workspaces: Mutex::default() })
    }

    fn with_workspace<R>(&self, f: impl FnOnce(&mut Workspace) -> R) -> R {
        let list = || self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let mut workspace = list().pop().unwrap_or_default();
        let result = f(&mut workspace);
        list().push(workspace);
        result
    }

    /// Parameters as calls take them.
    ///
    /// # Safety
    /// As [`View::matrix`], of each.
    unsafe fn params<'a>(&self, views: &[View]) -> PyResult<(Vec<AffineRef<'a>>, Vec<&'a [f32]>)> {
        if views.len() != self.tensors.len() {
            let names: Vec<_> = self.tensors.iter().map(|tensor| tensor.name.to_string()).collect();
            let (expected, names) = (names.len(), names.join(", "));
            return Err(refused("params", format_args!("expected {expected} ({names}), found {}", views.len())));
        }
        let (mut affines, mut vectors): (Vec<AffineRef<'a>>, Vec<&'a [f32]>) = Default::default();
        for (view, tensor) in views.iter().zip(&self.tensors) {
            // SAFETY: by the caller.
            unsafe {
                match tensor.name.role {
                    Role::Weight => affines.push(AffineRef { weights: view.matrix("params")?, bias: None }),
                    Role::Bias => {
                        let bias = view.line("params")?;
                        if let Some(map) = affines.last_mut() {
                            map.bias = Some(bias);
                        }
                    }
                    _ => vectors.push(view.line("params")?),
                }
            }
        }
        Ok((affines, vectors))
    }

    /// y = f(x), with a record or without.
    ///
    /// # Safety
    /// As [`View::matrix`] of x and parameters, as [`View::matrix_mut`] of y and record.
    pub(crate) unsafe fn forward(
        &self,
        ctx: &Context,
        x: View,
        params: &[View],
        y: View,
        record: Option<View>,
    ) -> PyResult<()> {
        // SAFETY: by the caller.
        let ((affines, vectors), x, y, record) = unsafe {
            let record = record.map(|record| record.line_mut("record")).transpose()?;
            (self.params(params)?, x.matrix("x")?, y.matrix_mut("y")?, record)
        };
        let params = ParamsRef { affines: &affines, vectors: &vectors };
        let call = |ws: &mut Workspace| match record {
            Some(record) => self.functional.forward(ctx, ws, params, x, y, record),
            None => self.functional.infer(ctx, ws, params, x, y),
        };
        run(ctx, || self.with_workspace(call)).map_err(raised)
    }

    /// dx and the gradients that there is a place for.
    ///
    /// # Safety
    /// As [`View::matrix`] of dy, record and parameters, as [`View::matrix_mut`] of dx and gradients.
    pub(crate) unsafe fn backward(
        &self,
        ctx: &Context,
        dy: View,
        record: View,
        params: &[View],
        dx: Option<View>,
        grads: &Views,
    ) -> PyResult<()> {
        if grads.len() != self.tensors.len() {
            return Err(refused("grads", format_args!("expected {}, found {}", self.tensors.len(), grads.len())));
        }
        // SAFETY: by the caller.
        let ((affines, vectors), dy, record, dx) = unsafe {
            let dx = dx.map(|dx| dx.matrix_mut("dx")).transpose()?;
            (self.params(params)?, dy.matrix("dy")?, record.line("record")?, dx)
        };
        let (mut daffines, mut dvectors): (Vec<AffineGradMut<'_>>, Vec<Option<&mut [f32]>>) = Default::default();
        for (view, tensor) in grads.iter().zip(&self.tensors) {
            // SAFETY: by the caller.
            unsafe {
                match tensor.name.role {
                    Role::Weight => {
                        let weights = view.map(|view| view.matrix_mut("grads")).transpose()?;
                        daffines.push(AffineGradMut { weights, bias: None });
                    }
                    Role::Bias => {
                        let bias = view.map(|view| view.line_mut("grads")).transpose()?;
                        if let Some(map) = daffines.last_mut() {
                            map.bias = bias;
                        }
                    }
                    _ => dvectors.push(view.map(|view| view.line_mut("grads")).transpose()?),
                }
            }
        }
        let params = ParamsRef { affines: &affines, vectors: &vectors };
        let grads = GradsMut { affines: &mut daffines, vectors: &mut dvectors };
        let call =
            |ws: &mut Workspace| self.functional.backward(ctx, ws, params, record, dy, dx, grads, GradMode::Overwrite);
        run(ctx, || self.with_workspace(call)).map_err(raised)
    }
}

/// Views of a list of operands, of which some may be None.
fn views(operand: &'static str, objects: &[Option<Bound<'_, PyAny>>]) -> PyResult<Views> {
    objects.iter().map(|object| object.as_ref().map(|object| View::of(operand, object)).transpose()).collect()
}

fn all_views(operand: &'static str, objects: &[Bound<'_, PyAny>]) -> PyResult<Vec<View>> {
    objects.iter().map(|object| View::of(operand, object)).collect()
}

#[pymethods]
impl Function {
    /// Compiles a description in JSON.
    #[new]
    fn new(json: &str) -> PyResult<Self> {
        Ok(Self { compiled: Arc::new(Compiled::new(json)?) })
    }

    /// Features of an input row.
    #[getter]
    fn inputs(&self) -> usize {
        self.compiled.functional.inputs()
    }

    /// Features of an output row.
    #[getter]
    fn outputs(&self) -> usize {
        self.compiled.functional.outputs()
    }

    /// (name, role, rows, columns) of each parameter, in the order of calls.
    #[getter]
    fn tensors(&self) -> Vec<(String, String, usize, usize)> {
        let all = self.compiled.tensors.iter();
        all.map(|t| (t.name.to_string(), t.name.role.to_string(), t.rows, t.cols)).collect()
    }

    /// Floats of the record of a batch of n rows are the first number, and n times the second.
    #[getter]
    fn record_size(&self) -> PyResult<(usize, usize)> {
        let len = |n| self.compiled.functional.record_len(n).map_err(raised);
        let (none, one) = (len(0)?, len(1)?);
        Ok((none, one - none))
    }

    /// y = f(x; params), and the record if there is a place for it.
    #[pyo3(signature = (x, params, y, record=None, draw=None, frozen=false, threads=None))]
    #[allow(clippy::too_many_arguments, reason = "one for each operand of the formula")]
    fn forward(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        params: Vec<Bound<'_, PyAny>>,
        y: &Bound<'_, PyAny>,
        record: Option<&Bound<'_, PyAny>>,
        draw: Option<(u64, u32, u64)>,
        frozen: bool,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let ctx = context(threads, draw, frozen)?;
        let (x, params, y) = (View::of("x", x)?, all_views("params", &params)?, View::of("y", y)?);
        let record = record.map(|record| View::of("record", record)).transpose()?;
        // SAFETY: the arguments hold what the views are of; the package makes y and record anew for each call.
        py.detach(|| unsafe { self.compiled.forward(&ctx, x, &params, y, record) })
    }

    /// dx, if there is a place for it, and the gradients that there is one for.
    #[pyo3(signature = (dy, record, params, dx, grads, threads=None))]
    #[allow(clippy::too_many_arguments, reason = "one for each operand of the formula")]
    fn backward(
        &self,
        py: Python<'_>,
        dy: &Bound<'_, PyAny>,
        record: &Bound<'_, PyAny>,
        params: Vec<Bound<'_, PyAny>>,
        dx: Option<&Bound<'_, PyAny>>,
        grads: Vec<Option<Bound<'_, PyAny>>>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let ctx = context(threads, None, false)?;
        let (dy, record, params) = (View::of("dy", dy)?, View::of("record", record)?, all_views("params", &params)?);
        let (dx, grads) = (dx.map(|dx| View::of("dx", dx)).transpose()?, views("grads", &grads)?);
        // SAFETY: as above, of dx and gradients.
        py.detach(|| unsafe { self.compiled.backward(&ctx, dy, record, &params, dx, &grads) })
    }

    /// Brings running averages up to date with the batch of a recorded pass: one entry for each parameter, None but for running averages.
    fn update_statistics(
        &self,
        record: &Bound<'_, PyAny>,
        momentum: f32,
        running: Vec<Option<Bound<'_, PyAny>>>,
    ) -> PyResult<()> {
        let (record, running) = (View::of("record", record)?, views("running", &running)?);
        if running.len() != self.compiled.tensors.len() {
            return Err(refused(
                "running",
                format_args!("expected {}, found {}", self.compiled.tensors.len(), running.len()),
            ));
        }
        let vectors = running.iter().zip(&self.compiled.tensors);
        let vectors = vectors.filter(|(_, tensor)| !matches!(tensor.name.role, Role::Weight | Role::Bias));
        // SAFETY: as above, of the running averages.
        let vectors = vectors.map(|(view, _)| view.map(|view| unsafe { view.line_mut("running") }).transpose());
        let mut vectors = vectors.collect::<PyResult<Vec<_>>>()?;
        // SAFETY: as above.
        let record = unsafe { record.line("record")? };
        self.compiled.functional.update_statistics(record, momentum, &mut vectors).map_err(raised)
    }

    /// A copy of parameters that do not change, laid out as kernels like them best.
    fn pack(&self, params: Vec<Bound<'_, PyAny>>) -> PyResult<Packed> {
        let params = all_views("params", &params)?;
        // SAFETY: as above.
        let (affines, vectors) = unsafe { self.compiled.params(&params)? };
        let net = self.compiled.functional.pack(ParamsRef { affines: &affines, vectors: &vectors }).map_err(raised)?;
        Ok(Packed { net, compiled: Arc::clone(&self.compiled) })
    }
}

/// A formula with a copy of its parameters.
#[pyclass(frozen, module = "resblock._native")]
pub(crate) struct Packed {
    net: Sequence,
    compiled: Arc<Compiled>,
}

#[pymethods]
impl Packed {
    /// y = f(x).
    #[pyo3(signature = (x, y, threads=None))]
    fn infer(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        y: &Bound<'_, PyAny>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let ctx = context(threads, None, false)?;
        let (x, y) = (View::of("x", x)?, View::of("y", y)?);
        py.detach(|| {
            // SAFETY: the arguments hold what the views are of; the package makes y anew for each call.
            let (x, y): (MatRef<'_>, MatMut<'_>) = unsafe { (x.matrix("x")?, y.matrix_mut("y")?) };
            run(&ctx, || self.compiled.with_workspace(|ws| self.net.infer(&ctx, ws, x, y))).map_err(raised)
        })
    }
}
