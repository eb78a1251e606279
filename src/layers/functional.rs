//! Networks without weights of their own: every call brings them, in the caller's slices.

use super::keep::{Keep, keeping};
use super::sequence::{Node, Sequence};
use super::{Compiled, GradMode, Layer, statistics};
use crate::Activation;
use crate::context::Context;
use crate::error::{Error, expect_len, expect_shape};
use crate::gemm::buffers::Buffer;
use crate::gemm::pack::{pack, unpack};
use crate::gemm::panels::{PanelMut, PanelRef, panel_len};
use crate::mat::{MatMut, MatRef};
use crate::params::borrowed::{AffineGradMut, GradsMut, ParamsRef};
use crate::parts::{compile, compile_one};
use crate::program::form::{self, BlockForm, Form, NormForm, Skip};
use crate::program::norm::Norm;
use crate::program::{Program, wide};
use crate::run::borrowed::Borrowed;
use crate::run::record::{Record, record_len};
use crate::run::source::{Layout, Slots};
use crate::run::workspace::Workspace;
use crate::run::{Network, Wanted, backward, forward};
use crate::weights::{Affine, Vector};
use std::sync::Arc;

/// A network as a function of its input *and its parameters*, for hosts that keep parameters themselves: the formula of a layer, without
/// weights.
///
/// Calls take the parameters of each affine map in the order of [`Layer::affine`], from row-major slices or any strides, and write
/// gradients to slices of the same kind. Results are those of the layer with the same parameters, bit for bit. Weights are read
/// where they are, or put straight a few columns at a time as they come into use; after the first call of a size nothing is allocated.
///
/// ```
/// use resblock::{Activation, AffineGradMut, AffineRef, Context, Functional, GradMode, MatMut, MatRef, Skip, Workspace};
/// let (n, d, h) = (2, 3, 4);
/// let (x, w1, b1, w2, b2) = ([0.5; 6], [0.1; 12], [0.0; 4], [0.2; 12], [0.0; 3]);
/// let block = Functional::block(d, h, d, Activation::Gelu, Skip::Identity)?;
/// let params = [
///     AffineRef { weights: MatRef::new(&w1, h, d)?, bias: Some(&b1) }, // (outputs, inputs)
///     AffineRef { weights: MatRef::new(&w2, h, d)?.t(), bias: Some(&b2) }, // (inputs, outputs)
/// ];
/// let (ctx, mut ws) = (Context::new()?, Workspace::new());
/// let (mut y, mut record) = ([0.0; 6], vec![0.0; block.record_len(n)?]);
/// block.forward(&ctx, &mut ws, &params, MatRef::new(&x, n, d)?, MatMut::new(&mut y, n, d)?, &mut record)?;
///
/// let (dy, mut dx) = ([1.0; 6], [0.0; 6]);
/// let (mut dw1, mut db1, mut dw2) = ([0.0; 12], [0.0; 4], [0.0; 12]);
/// let mut grads = [
///     AffineGradMut { weights: Some(MatMut::new(&mut dw1, h, d)?), bias: Some(&mut db1) },
///     AffineGradMut { weights: Some(MatMut::new(&mut dw2, h, d)?.t()), bias: None },
/// ];
/// let (dy, dx) = (MatRef::new(&dy, n, d)?, MatMut::new(&mut dx, n, d)?);
/// block.backward(&ctx, &mut ws, &params, &record, dy, Some(dx), &mut grads, GradMode::Overwrite)?;
/// # Ok::<(), resblock::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Functional {
    program: Arc<Program>,
}

impl Functional {
    /// y = phi(x Wᵀ + b) (+ x).
    ///
    /// # Errors
    /// [`Error::Shape`] if the input is added to an output of another width; [`Error::Setting`] if it would be projected, as that of blocks alone is.
    pub fn linear(inputs: usize, outputs: usize, phi: Activation, skip: Skip) -> Result<Self, Error> {
        let skip = match skip {
            Skip::None => false,
            Skip::Identity => {
                expect_shape("weights", (inputs, inputs), (outputs, inputs))?;
                true
            }
            Skip::Projection => {
                return Err(Error::Setting { operand: "skip", reason: "a linear layer has no projection beside it" });
            }
        };
        let form = Form::Linear(form::Linear { inputs, outputs, phi, skip });
        Ok(Self { program: compile_one(form) })
    }

    /// y = phi(x W1ᵀ + b1) W2ᵀ + b2 (+ x).
    ///
    /// # Errors
    /// [`Error::Shape`] if the input is added to an output of another width.
    pub fn block(inputs: usize, hidden: usize, outputs: usize, phi: Activation, skip: Skip) -> Result<Self, Error> {
        Self::form(&BlockForm { outputs, skip, ..BlockForm::new(inputs, hidden, phi) })
    }

    /// y = φ(N(x)). Vectors are in the order of [`crate::NormLayer::from_vectors`].
    ///
    /// # Errors
    /// [`Error::Setting`] if ε is not finite and larger than 0, or the width 0.
    pub fn norm(width: usize, norm: Norm, phi: Activation) -> Result<Self, Error> {
        norm.check("width", width)?;
        Ok(Self { program: compile_one(Form::Norm(NormForm { width, norm, phi })) })
    }

    /// A block of any form. Affine maps and vectors are in the order of [`crate::Block::from_parts`].
    ///
    /// # Errors
    /// [`Error::Setting`] or [`Error::Shape`] if the form contradicts itself.
    pub fn form(form: &BlockForm) -> Result<Self, Error> {
        form.check()?;
        Ok(Self { program: compile_one(Form::Block(*form)) })
    }

    /// The formula of a layer or a whole network, without its weights.
    pub fn of<L: Layer>(layer: &L) -> Self {
        Self { program: Arc::clone(layer.program()) }
    }

    /// One formula after the other, as one network: y = f_k(... f_1(x)). Its affine maps and vectors are those of the first, of the second, and so on; a
    /// row block goes through all of it while it is in cache.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is none; [`Error::Shape`] naming `parts` if the inputs of one are not the outputs of the one before: expected and
    /// found (inputs, outputs) of that one; [`Error::Memory`].
    pub fn chain(parts: &[Self]) -> Result<Self, Error> {
        if parts.is_empty() {
            return Err(Error::Setting { operand: "parts", reason: "a chain needs at least one formula" });
        }
        for pair in parts.windows(2) {
            let (width, next) = (pair[0].outputs(), &pair[1]);
            expect_shape("parts", (width, next.outputs()), (next.inputs(), next.outputs()))?;
        }
        Ok(Self { program: compile(parts.iter().flat_map(|part| part.program.outline()))? })
    }

    /// A layer with a copy of these parameters, packed as kernels like them best: for weights that do not change. Its results are the same bits.
    ///
    /// # Errors
    /// As [`Functional::infer`], of the parameters.
    pub fn pack<'p>(&self, params: impl Into<ParamsRef<'p>>) -> Result<Sequence, Error> {
        let params = params.into();
        self.check_params(params)?;
        let mut affines = params.affines.iter().map(|map| Affine::new(map.weights, map.bias));
        let mut vectors = params.vectors.iter().map(|vector| Vector::new(vector));
        let forms = self.program.forms();
        let nodes = forms.map(|form| Node::take_parameters(&form, &mut affines, &mut vectors));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        let mut net = Sequence::new(nodes)?;
        net.replace_program(Arc::clone(&self.program)); // of the same forms
        Ok(net)
    }

    /// The same, with other records: see [`Layer::set_keep`].
    ///
    /// # Errors
    /// As [`Layer::set_keep`].
    pub fn with_keep(self, keep: Keep) -> Result<Self, Error> {
        Ok(Self { program: keeping(&self.program, keep)? })
    }

    /// Features of an input row.
    pub fn inputs(&self) -> usize {
        self.program.inputs()
    }

    /// Features of an output row.
    pub fn outputs(&self) -> usize {
        self.program.outputs()
    }

    /// (outputs, inputs) of the weights of each affine map.
    pub fn shapes(&self) -> impl ExactSizeIterator<Item = (usize, usize)> {
        self.program.affines.iter().map(|&(inputs, outputs)| (outputs, inputs))
    }

    /// Length of each vector.
    pub fn vector_lens(&self) -> impl ExactSizeIterator<Item = usize> {
        self.program.vectors.iter().copied()
    }

    /// Floats of the record of a batch of `n` rows: see [`Layer::record_len`].
    ///
    /// # Errors
    /// [`Error::Overflow`] if that overflows.
    pub fn record_len(&self, n: usize) -> Result<usize, Error> {
        record_len(&self.program, n, self.inputs())
    }

    /// y = f(x; params), nothing kept. x: `n x inputs`, y: `n x outputs`, any strides.
    ///
    /// # Errors
    /// [`Error::Length`] naming `params` if they are not one for each affine map; [`Error::Shape`] naming `x`, `y` or weights (`w1`, …),
    /// [`Error::Length`] naming a bias (`b1`, …); [`Error::Overflow`], [`Error::Memory`]. `y` is then untouched.
    pub fn infer<'p>(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        params: impl Into<ParamsRef<'p>>,
        x: MatRef<'_>,
        y: MatMut<'_>,
    ) -> Result<(), Error> {
        self.run(ctx, ws, params.into(), x, y, None)
    }

    /// As [`Functional::infer`], with a record for backward in the caller's memory: [`Functional::record_len`] floats.
    ///
    /// # Errors
    /// As [`Functional::infer`]; [`Error::Length`] naming `record`.
    pub fn forward<'p>(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        params: impl Into<ParamsRef<'p>>,
        x: MatRef<'_>,
        y: MatMut<'_>,
        record: &mut [f32],
    ) -> Result<(), Error> {
        expect_len("record", self.record_len(x.rows())?, record.len())?;
        self.run(ctx, ws, params.into(), x, y, Some(record))
    }

    /// As [`Functional::forward`], with a record of ours, which grows to what it needs.
    ///
    /// # Errors
    /// As [`Functional::infer`]; the record then holds nothing.
    pub fn forward_to<'p>(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        params: impl Into<ParamsRef<'p>>,
        x: MatRef<'_>,
        y: MatMut<'_>,
        record: &mut Record,
    ) -> Result<(), Error> {
        let room = record.room(self.record_len(x.rows())?)?;
        let result = self.run(ctx, ws, params.into(), x, y, Some(room));
        if result.is_err() {
            record.clear();
        }
        result
    }

    /// Brings running averages of the caller's up to date with the batch of a recorded pass, as [`Layer::update_statistics`]. `vectors`: one for each
    /// vector, None or of any value where it is none of them; an average that is None is left out.
    ///
    /// # Errors
    /// As [`Layer::update_statistics`]; [`Error::Length`] naming `vectors` or `vector`. Nothing is changed then.
    pub fn update_statistics(
        &self,
        record: &[f32],
        momentum: f32,
        vectors: &mut [Option<&mut [f32]>],
    ) -> Result<(), Error> {
        expect_len("vectors", self.program.vectors.len(), vectors.len())?;
        for (len, vector) in self.vector_lens().zip(&*vectors) {
            vector.as_ref().map_or(Ok(()), |vector| expect_len("vector", len, vector.len()))?;
        }
        statistics::update(&self.program, record, momentum, |at, update| {
            if let Some(running) = vectors[at].as_deref_mut() {
                update(running);
            }
        })
    }

    fn run(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        params: ParamsRef<'_>,
        x: MatRef<'_>,
        y: MatMut<'_>,
        record: Option<&mut [f32]>,
    ) -> Result<(), Error> {
        expect_shape("x", (x.rows(), self.inputs()), x.shape())?;
        expect_shape("y", (x.rows(), self.outputs()), y.shape())?;
        self.check_params(params)?;
        let mut lines = std::mem::take(&mut ws.lines);
        let result = lines.copy(&self.program, params).and_then(|()| {
            let source = Borrowed { maps: params.affines, lines: &lines };
            let net = Network { program: &self.program, source: &source };
            forward(ctx, ws, net, (x, None), y, record)
        });
        ws.lines = lines;
        result
    }

    /// Backward from a record and dy = ∂L/∂y (`n x outputs`): the gradients that `grads` has a place for, and dx if wanted. `params` are
    /// those of the forward pass.
    ///
    /// # Errors
    /// As [`Functional::infer`], naming `dy`, `dx`, `dw1`, `db1`, …; [`Error::Length`] or [`Error::Record`] if it is not a record of this
    /// network and so many rows. Outputs are then untouched.
    #[allow(clippy::too_many_arguments, reason = "one for each operand of the formula")]
    pub fn backward<'p, 'g, 'm: 'g>(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        params: impl Into<ParamsRef<'p>>,
        record: &[f32],
        dy: MatRef<'_>,
        dx: Option<MatMut<'_>>,
        grads: impl Into<GradsMut<'g, 'm>>,
        mode: GradMode,
    ) -> Result<(), Error> {
        let (params, GradsMut { affines, vectors }) = (params.into(), grads.into());
        expect_shape("dy", (dy.rows(), self.outputs()), dy.shape())?;
        if let Some(dx) = &dx {
            expect_shape("dx", (dy.rows(), self.inputs()), dx.shape())?;
        }
        self.check_params(params)?;
        self.check_grads(affines, vectors)?;
        let accumulate = mode == GradMode::Accumulate;
        let (mut staging, mut lines) = (std::mem::take(&mut ws.staged_grads), std::mem::take(&mut ws.lines));
        let ready = stage(ctx, affines, &mut staging, accumulate).and_then(|()| lines.copy(&self.program, params));
        let result = ready.and_then(|()| {
            let source = Borrowed { maps: params.affines, lines: &lines };
            let net = Network { program: &self.program, source: &source };
            let grads = Slots::Caller(GradsMut { affines: &mut *affines, vectors }, &mut staging);
            backward(ctx, ws, net, record, dy, Wanted { dx, grads, accumulate, norms: None })
        });
        if result.is_ok() {
            unstage(ctx, affines, &staging);
        }
        (ws.staged_grads, ws.lines) = (staging, lines);
        result
    }

    fn check_params(&self, ParamsRef { affines, vectors }: ParamsRef<'_>) -> Result<(), Error> {
        expect_len("params", self.program.affines.len(), affines.len())?;
        expect_len("vectors", self.program.vectors.len(), vectors.len())?;
        for (len, vector) in self.vector_lens().zip(vectors) {
            expect_len("vector", len, vector.len())?;
        }
        for (i, (map, shape)) in affines.iter().zip(self.shapes()).enumerate() {
            expect_shape(operand(i, ["w1", "w2", "w3", "w4", "weights"]), shape, map.weights.shape())?;
            if let Some(bias) = map.bias {
                expect_len(operand(i, ["b1", "b2", "b3", "b4", "bias"]), shape.0, bias.len())?;
            }
        }
        Ok(())
    }

    fn check_grads(&self, grads: &[AffineGradMut<'_>], vectors: &[Option<&mut [f32]>]) -> Result<(), Error> {
        expect_len("grads", self.program.affines.len(), grads.len())?;
        expect_len("dvectors", self.program.vectors.len(), vectors.len())?;
        for ((len, learned), vector) in self.vector_lens().zip(&self.program.learned).zip(vectors) {
            let Some(vector) = vector else { continue };
            expect_len("dvector", len, vector.len())?;
            if !learned {
                return Err(Error::Setting { operand: "dvector", reason: "a running average has no gradient" });
            }
        }
        for (i, (map, shape)) in grads.iter().zip(self.shapes()).enumerate() {
            if let Some(dw) = &map.weights {
                expect_shape(operand(i, ["dw1", "dw2", "dw3", "dw4", "dw"]), shape, dw.shape())?;
            }
            if let Some(db) = &map.bias {
                expect_len(operand(i, ["db1", "db2", "db3", "db4", "db"]), shape.0, db.len())?;
            }
        }
        Ok(())
    }
}

/// The name of an operand of affine map `index`: the last of the names for those that have none of their own.
fn operand(index: usize, names: [&'static str; 5]) -> &'static str {
    names[index.min(names.len() - 1)]
}

/// The panels of dWᵀ, (inputs, outputs), in which a gradient of unusual strides is made.
fn staged<'g, 'm>(grad: &'g mut AffineGradMut<'m>) -> Option<&'g mut MatMut<'m>> {
    grad.weights.as_mut().filter(|dw| matches!(Layout::of(dw), Layout::Other))
}

/// Room for the gradients that are made in panels, and what they go on from.
fn stage(
    ctx: &Context,
    grads: &mut [AffineGradMut<'_>],
    staging: &mut Vec<Buffer>,
    accumulate: bool,
) -> Result<(), Error> {
    if let Some(missing) = grads.len().checked_sub(staging.len()) {
        let bytes = missing.saturating_mul(size_of::<Buffer>());
        staging.try_reserve(missing).map_err(|_| Error::Memory { bytes })?;
        staging.resize_with(grads.len(), Default::default);
    }
    for (grad, buffer) in grads.iter_mut().zip(staging) {
        let Some(dw) = staged(grad) else { continue };
        let (outputs, inputs) = dw.shape();
        buffer.grow(panel_len("dw", inputs, outputs)?)?;
        if accumulate {
            let panels = PanelMut::new(&mut buffer.as_mut_slice()[..wide(outputs) * inputs], inputs, outputs);
            pack(ctx.isa(), dw.as_ref().t(), panels);
        }
    }
    Ok(())
}

/// Hands out what was made in panels.
fn unstage(ctx: &Context, grads: &mut [AffineGradMut<'_>], staging: &[Buffer]) {
    for (grad, buffer) in grads.iter_mut().zip(staging) {
        let Some(dw) = staged(grad) else { continue };
        let (outputs, inputs) = dw.shape();
        let panels = PanelRef::new(&buffer.as_slice()[..wide(outputs) * inputs], inputs, outputs);
        unpack(ctx.isa(), panels, &mut dw.reborrow().t(), 0);
    }
}
