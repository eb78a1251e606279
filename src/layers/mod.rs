//! The layer API: thin, safe, typed. Layers own parameters; everything else is the caller's.

pub(crate) mod affines;
pub(crate) mod block;
pub(crate) mod gradients;
pub(crate) mod init;
pub(crate) mod linear;
pub(crate) mod stack;
pub(crate) mod summary;

use crate::context::{Context, Workspace};
use crate::error::{Error, expect_shape};
use crate::gemm::factor::Factor;
use crate::mat::{MatMut, MatRef};
use crate::program::{Program, Side};
use crate::run::source::Source;
use crate::run::{Network, Wanted, backward, forward, record_len};
use crate::weights::Affine;
use gradients::{AffineName, Gradients, Parameter};
use std::sync::Arc;

/// A network or a part of one: [`crate::Linear`], [`crate::Block`] or [`crate::Stack`]. (Sealed: the kernels know these three.)
///
/// `infer` runs forward and keeps nothing. `forward` keeps what the gradients need and returns a [`Pass`], the only thing that
/// has a `backward`: a forward that saved nothing cannot be differentiated, because there is nothing to call.
///
/// Results are the same bits for any [`Context`] and any batch that a row comes in.
pub trait Layer: Compiled + Sized {
    /// Features of an input row.
    fn inputs(&self) -> usize;

    /// Features of an output row.
    fn outputs(&self) -> usize;

    /// Number of affine maps (a weight matrix and perhaps a bias each).
    fn affine_count(&self) -> usize;

    /// Affine map `index`, in the order that a row meets them.
    fn affine(&self, index: usize) -> Option<&Affine>;

    /// Affine map `index`, to be changed.
    fn affine_mut(&mut self, index: usize) -> Option<&mut Affine>;

    /// Name of affine map `index`: `blocks.3.first`, say.
    fn affine_name(&self, index: usize) -> AffineName;

    /// Every parameter with its name: the weights (outputs, inputs) and the bias of each affine map in turn.
    fn parameters(&self) -> impl Iterator<Item = Parameter<'_>> {
        (0..self.affine_count()).flat_map(|i| {
            let name = self.affine_name(i);
            self.affine(i).into_iter().flat_map(move |affine| Parameter::of(name, affine))
        })
    }

    /// Number of learnable numbers.
    fn parameter_count(&self) -> usize {
        self.parameters().map(|p| p.shape().0 * p.shape().1).sum()
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
        let block_rows = record(ctx, ws, network(self)?, (x, None), y)?;
        Ok(Pass { layer: self, ws, ctx: *ctx, block_rows, rows: x.rows() })
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
}

impl<L: Layer> Source for L {
    fn factor(&self, affine: usize, side: Side) -> Factor<'_> {
        let weights = self.affine(affine).map(|map| map.weights().view());
        let weights = weights.unwrap_or_else(|| unreachable!("`network` has seen every affine map"));
        match side {
            Side::Forward => Factor::stored(weights),
            Side::Adjoint => Factor::transposed(weights),
        }
    }
    fn bias(&self, affine: usize) -> Option<&[f32]> {
        self.affine(affine)?.padded_bias()
    }
}

/// A layer for the executor, once its parameters have been seen to have the sizes that it was compiled for: each can be replaced.
fn network<L: Layer>(layer: &L) -> Result<Network<'_>, Error> {
    let program = layer.program();
    program.check(|i| layer.affine(i).map(|map| (map.inputs(), map.outputs())))?;
    Ok(Network { program, source: layer })
}

/// A forward pass with its record in the workspace. Says of how many rows the blocks of the record are.
fn record(
    ctx: &Context,
    ws: &mut Workspace,
    net: Network<'_>,
    given: (MatRef<'_>, Option<MatRef<'_>>),
    y: MatMut<'_>,
) -> Result<usize, Error> {
    let len = record_len(net.program, given.0.rows(), given.0.cols())?;
    ws.record.grow(len)?;
    let mut record = std::mem::take(&mut ws.record);
    let result = forward(ctx, ws, net, given, y, Some(&mut record.as_mut_slice()[..len]));
    ws.record = record;
    result
}

/// What becomes of the values that parameter gradients hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    block_rows: usize,
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
        expect_shape("dy", (self.rows, self.layer.outputs()), dy.shape())?;
        if let Some(dx) = &dx {
            expect_shape("dx", (self.rows, self.layer.inputs()), dx.shape())?;
        }
        grads.check("grads", self.layer)?;
        if let Some(norms) = &mut norms {
            norms.resize(self.layer.program().parts.len(), 0.0);
        }
        let norms = norms.map(|norms| &mut norms[..]);
        let wanted = Wanted { dx, grads, accumulate: mode == GradMode::Accumulate, norms };
        // The record lies in the workspace: it is taken out for the time of the call.
        let record = std::mem::take(&mut self.ws.record);
        let result = network(self.layer).and_then(|net| {
            let len = record_len(net.program, self.rows, dy.cols())?;
            let record = (&record.as_slice()[..len], self.block_rows);
            backward(&self.ctx, self.ws, net, record, dy, wanted)
        });
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
