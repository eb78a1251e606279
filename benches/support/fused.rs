//! The problem run by this crate.

use super::problem::{Problem, Shape};
use super::{Results, Runner};
use aligned_vec::{AVec, ConstAlign};
use resblock::{
    Block, Context, Error, GradMode, Gradients, Init, Keep, Layer, MatMut, MatRef, Role, Scheme, Stack, Workspace,
};

/// A stack with the weights of a problem, packed once, and everything that its calls write.
pub(crate) struct Fused<'p> {
    ctx: Context,
    problem: &'p Problem,
    stack: Stack,
    workspace: Workspace,
    gradients: Gradients,
    x: Aligned,
    dy: Aligned,
    y: Aligned,
    dx: Aligned,
}

/// From a cache line on, as the other libraries' drivers have theirs. A `Vec` need not start there, and then every row of y is
/// stored across two lines: 3 % of a forward pass of 64 features.
type Aligned = AVec<f32, ConstAlign<64>>;

fn aligned(values: impl IntoIterator<Item = f32>) -> Aligned {
    Aligned::from_iter(64, values)
}

impl<'p> Fused<'p> {
    pub(crate) fn new(ctx: &Context, problem: &'p Problem) -> Result<Self, Error> {
        let Shape { batch, features: d, depth, .. } = problem.shape;
        let block = |index| -> Result<Block, Error> {
            let mut block = Block::with_form(&problem.form, &mut Init::new(Scheme::Zeros, 0))?;
            for (mut tensor, param) in block.parameters_mut().zip(&problem.params) {
                let values = MatRef::new(param.block(index), param.shape.0, param.shape.1)?;
                // The problem has (inputs, outputs), the crate takes (outputs, inputs).
                tensor.read_from(if param.role == Role::Weight { values.t() } else { values })?;
            }
            Ok(block)
        };
        let stack = Stack::from_blocks((0..depth).map(block).collect::<Result<_, _>>()?)?;
        let gradients = Gradients::new(&stack)?;
        let (x, dy) = (aligned(problem.x.iter().copied()), aligned(problem.dy.iter().copied()));
        let zeros = |cols: usize| aligned(std::iter::repeat_n(0.0, batch * cols));
        let (y, dx) = (zeros(problem.form.outputs), zeros(d));
        Ok(Self { ctx: *ctx, problem, stack, workspace: Workspace::new(), gradients, x, dy, y, dx })
    }

    /// The same, with other records.
    pub(crate) fn keeping(mut self, keep: Keep) -> Result<Self, Error> {
        self.stack.set_keep(keep)?;
        Ok(self)
    }

    /// The same network, for functional calls.
    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }
}

impl Runner for Fused<'_> {
    fn forward(&mut self) -> Result<(), Error> {
        let Shape { batch: n, features: d, .. } = self.problem.shape;
        let m = self.problem.form.outputs;
        let (x, y) = (MatRef::new(&self.x, n, d)?, MatMut::new(&mut self.y, n, m)?);
        self.stack.infer(&self.ctx, &mut self.workspace, x, y)
    }

    fn train(&mut self) -> Result<(), Error> {
        let Shape { batch: n, features: d, .. } = self.problem.shape;
        let m = self.problem.form.outputs;
        let (x, y) = (MatRef::new(&self.x, n, d)?, MatMut::new(&mut self.y, n, m)?);
        let (dy, dx) = (MatRef::new(&self.dy, n, m)?, MatMut::new(&mut self.dx, n, d)?);
        let pass = self.stack.forward(&self.ctx, &mut self.workspace, x, y)?;
        pass.backward(dy, Some(dx), &mut self.gradients, GradMode::Overwrite)
    }

    fn results(&self) -> Result<Results, Error> {
        let params = &self.problem.params;
        let mut grads: Vec<Vec<f32>> = params.iter().map(|param| Vec::with_capacity(param.values.len())).collect();
        let learned: Vec<usize> = (0..params.len()).filter(|&i| params[i].role.is_learned()).collect();
        // Blocks have their parameters in one order.
        for (gradient, &i) in self.gradients.iter().zip(learned.iter().cycle()) {
            let (param, out) = (&params[i], &mut grads[i]);
            let at = out.len();
            out.resize(at + param.len(), 0.0);
            let out = MatMut::new(&mut out[at..], param.shape.0, param.shape.1)?;
            gradient.write_to(if param.role == Role::Weight { out.t() } else { out })?;
        }
        Ok(Results { y: self.y.to_vec(), dx: self.dx.to_vec(), grads })
    }
}
