//! The layer API: thin, safe, typed. Layers own parameters; everything else is the caller's.

pub(crate) mod block;
mod fold;
pub(crate) mod formula;
pub(crate) mod functional;
mod index;
pub(crate) mod init;
pub(crate) mod keep;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod sequence;
pub(crate) mod stack;
mod statistics;

use crate::context::Context;
use crate::error::{Error, expect_len, expect_shape};
use crate::gemm::factor::Factor;
use crate::mat::{MatMut, MatRef};
use crate::params::gradients::Gradients;
use crate::params::name::{Place, Within};
use crate::params::network::Parameters;
use crate::params::tensor::{TensorMut, TensorRef};
use crate::program::Program;
use crate::program::step::Side;
use crate::run::explain::{Explanation, Purpose, explain};
use crate::run::record::{Record, record_len};
use crate::run::source::{Slots, Source};
use crate::run::workspace::Workspace;
use crate::run::{Network, Wanted, backward, forward};
use crate::weights::{Affine, Vector};
use keep::{Keep, keeping};
use std::sync::Arc;

/// A network or a part of one: [`crate::Linear`], [`crate::Block`], [`crate::Stack`] or [`crate::Sequence`]. (Sealed: a network is a program
/// of this crate's parts.)
///
/// `infer` runs forward and keeps nothing. `forward` keeps what the gradients need and returns a [`Pass`], the only thing that
/// has a `backward`: a forward that saved nothing cannot be differentiated, because there is nothing to call.
///
/// Results are the same bits for any [`Context`] and any batch that a row comes in.
pub trait Layer: Compiled + Sized {
    /// Features of an input row.
    fn inputs(&self) -> usize {
        self.program().inputs()
    }

    /// Features of an output row.
    fn outputs(&self) -> usize {
        self.program().outputs()
    }

    /// Number of affine maps (a weight matrix and perhaps a bias each).
    fn affine_count(&self) -> usize {
        self.program().affines.len()
    }

    /// Affine map `index`, in the order that a row meets them.
    fn affine(&self, index: usize) -> Option<&Affine>;

    /// Affine map `index`, to be changed.
    fn affine_mut(&mut self, index: usize) -> Option<&mut Affine>;

    /// Where affine map `index` is: `blocks.3.first`, say.
    fn affine_name(&self, index: usize) -> Place;

    /// Number of vectors of parameters that are no biases: gains, shifts and running averages of norms, scales.
    fn vector_count(&self) -> usize {
        self.program().vectors.len()
    }

    /// Vector `index`, in the order that a row meets them.
    fn vector(&self, index: usize) -> Option<&Vector>;

    /// Vector `index`, to be changed.
    fn vector_mut(&mut self, index: usize) -> Option<&mut Vector>;

    /// Every parameter with its name, layer by layer: the weights (outputs, inputs) and the bias of each affine map in turn, and then the
    /// vectors.
    fn parameters(&self) -> impl Iterator<Item = TensorRef<'_>> {
        let mut all = Vec::new();
        self.tensors(Within::default(), &mut |tensor| all.push(tensor));
        all.into_iter()
    }

    /// Every parameter, in the same order, to be changed.
    fn parameters_mut(&mut self) -> impl Iterator<Item = TensorMut<'_>> {
        let mut all = Vec::new();
        self.tensors_mut(Within::default(), &mut |tensor| all.push(tensor));
        all.into_iter()
    }

    /// Number of learnable numbers.
    fn parameter_count(&self) -> usize {
        self.parameters().filter(|p| p.role().is_learned()).map(|p| p.shape().0 * p.shape().1).sum()
    }

    /// Brings the running averages of every BatchNorm up to date with the batch of a recorded pass: running = fma(m, new, (1 - m) running), where m is
    /// the momentum, new the mean of the batch, and its variance times n / (n - 1). A step of training does so once, when it is sure to count: PyTorch's
    /// momentum is 0.1, and 1 / (number of the step) gives a plain average. A pass with frozen statistics and a batch of no rows change nothing.
    ///
    /// The record is one of [`Layer::forward_to`] or of [`Layer::forward_to_slice`]; that of [`Layer::forward`] is in the workspace
    /// ([`Workspace::record`]).
    ///
    /// ```
    /// # use resblock::*;
    /// # fn main() -> Result<(), Error> {
    /// let mut block = Block::with_form(&BlockForm::resnet_v2(2, 3), &mut Init::he(1))?;
    /// # let (ctx, mut ws, mut grads, mut adam) = (Context::new()?, Workspace::new(), Gradients::new(&block)?, AdamW::new(1e-3));
    /// # let (x, mut y, dy) = ([1.0, 2.0, -1.0, 0.0], [0.0; 4], [0.0; 4]);
    /// let pass = block.forward(&ctx, &mut ws, rows_of(&x, 2)?, rows_of_mut(&mut y, 2)?)?;
    /// pass.backward(rows_of(&dy, 2)?, None, &mut grads, GradMode::Overwrite)?;
    /// adam.step(&ctx, &mut block, &grads)?;
    /// block.update_statistics(ws.record().as_slice(), 0.1)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] if the momentum is not in [0, 1]; [`Error::Record`] if it is not a record of this network, or its statistics are NaN or
    /// infinite, as after a batch that holds such values; [`Error::Length`]. Nothing is changed then.
    fn update_statistics(&mut self, record: &[f32], momentum: f32) -> Result<(), Error> {
        let program = Arc::clone(self.program());
        statistics::update(&program, record, momentum, |at, update| {
            if let Some(running) = self.vector_mut(at) {
                update(running.as_mut_slice());
            }
        })
    }

    /// y = f(x), nothing kept. x: `n x inputs`, y: `n x outputs`; any strides, any n, 0 included.
    ///
    /// # Errors
    /// [`Error::Shape`] naming `x` or `y`; [`Error::Overflow`] if a size overflows, [`Error::Memory`] if there is no memory for
    /// the workspace. `y` is then untouched.
    fn infer(&self, ctx: &Context, ws: &mut Workspace, x: MatRef<'_>, y: MatMut<'_>) -> Result<(), Error> {
        check(self, x, &y)?;
        forward(ctx, ws, network(self)?, (x, None), y, None).map(|_| ())
    }

    /// y = f(x), keeping in `ws` what backward needs. x: `n x inputs`, y: `n x outputs`; any strides, any n, 0 included. The
    /// [`Pass`] borrows layer and workspace, so that neither can change before it is used or dropped.
    ///
    /// # Errors
    /// [`Error::Shape`] naming `x` or `y`; [`Error::Overflow`] if a size overflows, [`Error::Memory`] if there is no memory for
    /// the workspace. `y` is then untouched.
    fn forward<'a>(
        &'a self,
        ctx: &Context,
        ws: &'a mut Workspace,
        x: MatRef<'_>,
        y: MatMut<'_>,
    ) -> Result<Pass<'a, Self>, Error> {
        check(self, x, &y)?;
        record(ctx, ws, network(self)?, (x, None), y)?;
        Ok(Pass { layer: self, ws, ctx: *ctx, rows: x.rows() })
    }

    /// As [`Layer::forward`], with a record that lives on its own: any number of them, on any thread, each read by
    /// [`Layer::backward`] as often as one likes.
    ///
    /// # Errors
    /// As [`Layer::forward`]; the record then holds nothing.
    fn forward_to(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        x: MatRef<'_>,
        y: MatMut<'_>,
        record: &mut Record,
    ) -> Result<(), Error> {
        check(self, x, &y)?;
        record_into(ctx, ws, network(self)?, (x, None), y, record)
    }

    /// How a call on `n` rows would go: the parts and their steps, where each value lives, memory, operations, blocks and threads, what is
    /// fused and what is not. For reading; nothing is computed.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a size overflows.
    fn explain(&self, ctx: &Context, n: usize, purpose: Purpose) -> Result<Explanation, Error> {
        explain(ctx, self.program(), n, purpose)
    }

    /// Floats of the record of a batch of `n` rows: 32, those of the statistics of the batch, and a fixed number for each row, whatever threads and block
    /// sizes are.
    ///
    /// # Errors
    /// [`Error::Overflow`] if that overflows.
    fn record_len(&self, n: usize) -> Result<usize, Error> {
        record_len(self.program(), n, self.inputs())
    }

    /// Sets what recorded passes keep for backward: [`Keep::All`] at first; a network made of layers has what they have. Records of before are no
    /// longer of this network.
    ///
    /// ```
    /// # use resblock::*;
    /// # fn main() -> Result<(), Error> {
    /// let blocks = (0..6).map(|i| Block::with_form(&BlockForm::gpt2(64, 256), &mut Init::he(i)));
    /// let mut net = Stack::from_blocks(blocks.collect::<Result<_, _>>()?)?;
    /// let all = net.record_len(128)?;
    /// net.set_keep(Keep::Inputs)?;
    /// assert!(net.record_len(128)? < all / 10);
    /// net.set_keep(Keep::Within { bytes: 1 << 20, rows: 128 })?;
    /// assert!(net.record_len(128)? * 4 <= 1 << 20);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] naming `bytes` if not even what enters each layer fits; [`Error::Overflow`], [`Error::Memory`]. Nothing is changed then.
    fn set_keep(&mut self, keep: Keep) -> Result<(), Error> {
        let program = keeping(self.program(), keep)?;
        self.replace_program(program);
        Ok(())
    }

    /// As [`Layer::forward_to`], with the record in the caller's memory: [`Layer::record_len`] floats. It is fastest at a multiple of 64
    /// bytes, and right anywhere. It may be moved and copied, but not changed.
    ///
    /// # Errors
    /// As [`Layer::forward`]; [`Error::Length`] naming `record`.
    fn forward_to_slice(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        x: MatRef<'_>,
        y: MatMut<'_>,
        record: &mut [f32],
    ) -> Result<(), Error> {
        check(self, x, &y)?;
        expect_len("record", self.record_len(x.rows())?, record.len())?;
        forward(ctx, ws, network(self)?, (x, None), y, Some(record))
    }

    /// Backward from a record ([`Record::as_slice`], or the caller's memory) and dy = ∂L/∂y (`n x outputs`), as [`Pass::backward`]. The
    /// weights are those of now: what they were when the pass was recorded is the caller's to know.
    ///
    /// # Errors
    /// As [`Pass::backward`]; [`Error::Length`] or [`Error::Record`] if it is not a record of this network and so many rows.
    #[allow(clippy::too_many_arguments, reason = "one for each operand, as in `Pass::backward`")]
    fn backward(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        record: &[f32],
        dy: MatRef<'_>,
        dx: Option<MatMut<'_>>,
        grads: &mut Gradients,
        mode: GradMode,
    ) -> Result<(), Error> {
        check_backward(self, dy.rows(), dy, dx.as_ref(), grads)?;
        let wanted = Wanted { dx, grads: Slots::Owned(grads), accumulate: mode == GradMode::Accumulate, norms: None };
        backward(ctx, ws, network(self)?, record, dy, wanted)
    }
}

fn check<L: Layer>(layer: &L, x: MatRef<'_>, y: &MatMut<'_>) -> Result<(), Error> {
    expect_shape("x", (x.rows(), layer.inputs()), x.shape())?;
    expect_shape("y", (x.rows(), layer.outputs()), y.shape())
}

/// What the engine runs: the program of a network, compiled when it is made.
#[allow(unreachable_pub, missing_docs, reason = "seals the public trait `Layer`: nameable by nobody outside")]
pub trait Compiled: Sync {
    fn program(&self) -> &Arc<Program>;
    /// By one of the same forms.
    fn replace_program(&mut self, program: Arc<Program>);
    /// Calls `see` with every parameter, named as in a network where the layer is at `within`.
    fn tensors<'a>(&'a self, within: Within, see: &mut dyn FnMut(TensorRef<'a>));
    fn tensors_mut<'a>(&'a mut self, within: Within, see: &mut dyn FnMut(TensorMut<'a>));
}

impl<L: Layer> Parameters for L {
    fn visit<'a>(&'a self, see: &mut dyn FnMut(TensorRef<'a>)) {
        self.tensors(Within::default(), see);
    }
    fn visit_mut<'a>(&'a mut self, see: &mut dyn FnMut(TensorMut<'a>)) {
        self.tensors_mut(Within::default(), see);
    }
}

impl Gradients {
    /// Zero gradients for every parameter of `layer`.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn new<L: Layer>(layer: &L) -> Result<Self, Error> {
        Self::of(layer)
    }
}

impl<L: Layer> Source for L {
    fn map(&self, affine: usize, side: Side) -> (Factor<'_>, Option<&[f32]>) {
        let Some(map) = self.affine(affine) else { unreachable!("`network` has seen every affine map") };
        match side {
            Side::Forward => (Factor::stored(map.weights().view()), map.padded_bias()),
            Side::Adjoint => (Factor::transposed(map.weights().view()), None),
        }
    }
    fn vector(&self, index: usize) -> &[f32] {
        Layer::vector(self, index).map(Vector::padded).unwrap_or_default()
    }
}

/// A layer for the executor, once its parameters have been seen to have the sizes that it was compiled for: each can be replaced.
fn network<L: Layer>(layer: &L) -> Result<Network<'_>, Error> {
    let program = layer.program();
    let shape = |i| layer.affine(i).map(|map| (map.inputs(), map.outputs()));
    program.check(shape, |i| Layer::vector(layer, i).map(|vector| vector.as_slice().len()))?;
    Ok(Network { program, source: layer })
}

/// A forward pass with its record in the workspace.
fn record(
    ctx: &Context,
    ws: &mut Workspace,
    net: Network<'_>,
    given: (MatRef<'_>, Option<MatRef<'_>>),
    y: MatMut<'_>,
) -> Result<(), Error> {
    let mut record = std::mem::take(&mut ws.record);
    let result = record_into(ctx, ws, net, given, y, &mut record);
    ws.record = record;
    result
}

fn record_into(
    ctx: &Context,
    ws: &mut Workspace,
    net: Network<'_>,
    given: (MatRef<'_>, Option<MatRef<'_>>),
    y: MatMut<'_>,
    record: &mut Record,
) -> Result<(), Error> {
    let len = record_len(net.program, given.0.rows(), given.0.cols())?;
    let result = forward(ctx, ws, net, given, y, Some(record.room(len)?));
    if result.is_err() {
        record.clear();
    }
    result
}

fn check_backward<L: Layer>(
    layer: &L,
    rows: usize,
    dy: MatRef<'_>,
    dx: Option<&MatMut<'_>>,
    grads: &Gradients,
) -> Result<(), Error> {
    expect_shape("dy", (rows, layer.outputs()), dy.shape())?;
    if let Some(dx) = dx {
        expect_shape("dx", (rows, layer.inputs()), dx.shape())?;
    }
    grads.check("grads", layer)
}

/// What becomes of the values that parameter gradients hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GradMode {
    /// They are replaced.
    Overwrite,
    /// Each element's chain of multiply-adds goes on from its value: micro-batches one after the other give the same bits as
    /// the whole batch at once.
    Accumulate,
}

/// A recorded forward pass: the right to run backward, once.
#[derive(Debug)]
#[must_use = "a recorded pass that is not differentiated was recorded in vain: use `infer`"]
pub struct Pass<'a, L> {
    layer: &'a L,
    ws: &'a mut Workspace,
    ctx: Context,
    rows: usize,
}

impl<L: Layer> Pass<'_, L> {
    /// From dy = ∂L/∂y (`n x outputs`), computes the parameter gradients that `grads` has and, if given, dx = ∂L/∂x
    /// (`n x inputs`), the skip gradient included.
    ///
    /// # Errors
    /// [`Error::Shape`] naming `dy` or `dx`, [`Error::Mismatch`] if `grads` was made for another network,
    /// [`Error::Overflow`], [`Error::Memory`]. Outputs are then untouched.
    pub fn backward(
        self,
        dy: MatRef<'_>,
        dx: Option<MatMut<'_>>,
        grads: &mut Gradients,
        mode: GradMode,
    ) -> Result<(), Error> {
        self.run(dy, dx, grads, mode, None)
    }

    /// As [`Pass::backward`], and measures the gradient on its way down.
    ///
    /// # Errors
    /// As [`Pass::backward`].
    pub fn backward_probed(
        self,
        dy: MatRef<'_>,
        dx: Option<MatMut<'_>>,
        grads: &mut Gradients,
        mode: GradMode,
        flow: &mut GradientFlow,
    ) -> Result<(), Error> {
        self.run(dy, dx, grads, mode, Some(&mut flow.norms))
    }

    fn run(
        self,
        dy: MatRef<'_>,
        dx: Option<MatMut<'_>>,
        grads: &mut Gradients,
        mode: GradMode,
        mut norms: Option<&mut Vec<f64>>,
    ) -> Result<(), Error> {
        check_backward(self.layer, self.rows, dy, dx.as_ref(), grads)?;
        if let Some(norms) = &mut norms {
            norms.resize(self.layer.program().parts.len(), 0.0);
        }
        let norms = norms.map(|norms| &mut norms[..]);
        // The record lies in the workspace: it is taken out for the time of the call.
        let record = std::mem::take(&mut self.ws.record);
        let wanted = Wanted { dx, grads: Slots::Owned(grads), accumulate: mode == GradMode::Accumulate, norms };
        let result =
            network(self.layer).and_then(|net| backward(&self.ctx, self.ws, net, record.as_slice(), dy, wanted));
        self.ws.record = record;
        result
    }
}

/// How the gradient fares on its way through the layers: Frobenius norms ‖∂L/∂y_t‖ over the batch, where y_t is the output of
/// stage t, summed in f64 in a fixed order.
///
/// In a [`crate::Stack`] with projections, stage 0 is the input projection, so `norms()[t]` is ‖∂L/∂x_t‖ at the *entrance* of
/// block t, and `norms()[depth]` that at the exit of the last block. In one without, stage t is block t, so `norms()[t]` is that
/// at the *exit* of block t. The last entry is ‖∂L/∂y‖ itself. In a plain stack they fall
/// or grow geometrically towards t = 0, unless the initial weights keep variances; with skips they stay of one size. That is what
/// the skip is for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GradientFlow {
    norms: Vec<f64>,
}

impl GradientFlow {
    /// An empty probe; a backward pass fills it.
    pub fn new() -> Self {
        Self::default()
    }

    /// ‖∂L/∂y_t‖ for each stage t in forward order.
    pub fn norms(&self) -> &[f64] {
        &self.norms
    }
}
