//! The problem run by this crate.

use super::problem::{Problem, Shape};
use super::{Results, Runner};
use aligned_vec::{AVec, ConstAlign};
use resblock::{
    Affine, Block, Context, Error, GradMode, Gradients, Layer, MatMut, MatRef, Part, Role, Stack, Workspace,
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
        let Shape { batch, features: d, hidden: h, depth } = problem.shape;
        let block = |index| -> Result<Block, Error> {
            let (w1, b1, w2, b2) = problem.block(index);
            // The problem has (inputs, outputs), the crate takes (outputs, inputs).
            let first = Affine::new(MatRef::new(w1, d, h)?.t(), Some(b1))?;
            let second = Affine::new(MatRef::new(w2, h, d)?.t(), Some(b2))?;
            Block::new(first, second, problem.phi, problem.skip)
        };
        let stack = Stack::from_blocks((0..depth).map(block).collect::<Result<_, _>>()?)?;
        let gradients = Gradients::new(&stack)?;
        let (x, dy) = (aligned(problem.x.iter().copied()), aligned(problem.dy.iter().copied()));
        let zeros = aligned(std::iter::repeat_n(0.0, batch * d));
        let (y, dx) = (zeros.clone(), zeros);
        Ok(Self { ctx: *ctx, problem, stack, workspace: Workspace::new(), gradients, x, dy, y, dx })
    }

    /// The same network, for functional calls.
    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }
}

impl Runner for Fused<'_> {
    fn forward(&mut self) -> Result<(), Error> {
        let Shape { batch: n, features: d, .. } = self.problem.shape;
        let (x, y) = (MatRef::new(&self.x, n, d)?, MatMut::new(&mut self.y, n, d)?);
        self.stack.infer(&self.ctx, &mut self.workspace, x, y)
    }

    fn train(&mut self) -> Result<(), Error> {
        let Shape { batch: n, features: d, .. } = self.problem.shape;
        let (x, y) = (MatRef::new(&self.x, n, d)?, MatMut::new(&mut self.y, n, d)?);
        let (dy, dx) = (MatRef::new(&self.dy, n, d)?, MatMut::new(&mut self.dx, n, d)?);
        let pass = self.stack.forward(&self.ctx, &mut self.workspace, x, y)?;
        pass.backward(dy, Some(dx), &mut self.gradients, GradMode::Overwrite)
    }

    fn results(&self) -> Result<Results, Error> {
        let mut all = Results { y: self.y.to_vec(), dx: self.dx.to_vec(), ..Results::default() };
        for gradient in self.gradients.iter() {
            let out = match (gradient.name().place.part, gradient.role()) {
                (Part::First, Role::Weight) => &mut all.dw1,
                (Part::First, Role::Bias) => &mut all.db1,
                (_, Role::Weight) => &mut all.dw2,
                _ => &mut all.db2,
            };
            let (at, (outputs, inputs)) = (out.len(), gradient.shape());
            out.resize(at + outputs * inputs, 0.0);
            gradient.write_to(MatMut::new(&mut out[at..], inputs, outputs)?.t())?;
        }
        Ok(all)
    }
}
