//! The layer API: thin, safe, typed. Layers own parameters; everything else is the caller's.

pub(crate) mod block;
pub(crate) mod init;
pub(crate) mod linear;
pub(crate) mod stack;

use crate::context::{Context, Workspace};
use crate::error::{Error, expect_shape};
use crate::fused::backward::{Wanted, backward};
use crate::fused::forward::forward;
use crate::fused::{Plan, Stages};
use crate::mat::{MatMut, MatRef};
use crate::params::gradients::Gradients;
use crate::params::name::Place;
use crate::params::tensor::{TensorMut, TensorRef};
use crate::weights::Affine;

/// A network or a part of one: [`crate::Linear`], [`crate::Block`] or [`crate::Stack`]. (Sealed: the kernels know these three.)
///
/// `infer` runs forward and keeps nothing. `forward` keeps what the gradients need and returns a [`Pass`], the only thing that
/// has a `backward`: a forward that saved nothing cannot be differentiated, because there is nothing to call.
///
/// Results are the same bits for any [`Context`] and any batch that a row comes in.
pub trait Layer: Stages + Sized {
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

    /// Where affine map `index` is: `blocks.3.first`, say.
    fn affine_name(&self, index: usize) -> Place;

    /// Every parameter with its name: the weights (outputs, inputs) and the bias of each affine map in turn.
    fn parameters(&self) -> impl Iterator<Item = TensorRef<'_>> {
        let maps = (0..self.affine_count()).filter_map(|i| Some((self.affine_name(i), self.affine(i)?)));
        maps.flat_map(|(place, map)| map.tensors(place))
    }

    /// Every parameter, in the same order, to be changed.
    fn parameters_mut(&mut self) -> impl Iterator<Item = TensorMut<'_>>;

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
        forward(ctx, ws, self, x, None, y, false).map(|_| ())
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
        let plan = forward(ctx, ws, self, x, None, y, true)?;
        Ok(Pass { layer: self, ws, ctx: *ctx, plan, rows: x.rows() })
    }
}

fn check<L: Layer>(layer: &L, x: MatRef<'_>, y: &MatMut<'_>) -> Result<(), Error> {
    expect_shape("x", (x.rows(), layer.inputs()), x.shape())?;
    expect_shape("y", (x.rows(), layer.outputs()), y.shape())
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
    plan: Plan,
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
            norms.resize(self.layer.len(), 0.0);
        }
        let norms = norms.map(|norms| &mut norms[..]);
        let wanted = Wanted { dx, grads, accumulate: mode == GradMode::Accumulate, norms };
        backward(&self.ctx, self.ws, self.layer, self.plan, dy, wanted)
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
