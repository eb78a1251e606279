//! The problem run by functional calls, on weights that stay the caller's.

use super::problem::{Param, Problem, Shape};
use super::{Results, Runner};
use resblock::{
    AffineGradMut, AffineRef, Context, Error, Functional, GradMode, GradsMut, MatMut, MatRef, ParamsRef, Role, Stack,
    Workspace,
};

/// Which way round weights and their gradients lie in memory, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orientation {
    InputsOutputs,
    OutputsInputs,
}

/// A stack whose weights and gradients are in slices of our own.
pub(crate) struct Borrowed<'p> {
    ctx: Context,
    problem: &'p Problem,
    orientation: Orientation,
    net: Functional,
    workspace: Workspace,
    /// The parameters, weights in this orientation.
    params: Vec<Param>,
    record: Vec<f32>,
    results: Results,
}

/// Each matrix of a list, (rows, cols), transposed.
fn turned(all: &[f32], (rows, cols): (usize, usize)) -> Vec<f32> {
    let matrices = all.chunks((rows * cols).max(1));
    matrices.flat_map(|m| (0..cols).flat_map(move |j| (0..rows).map(move |i| m[i * cols + j]))).collect()
}

impl<'p> Borrowed<'p> {
    pub(crate) fn new(
        ctx: &Context,
        problem: &'p Problem,
        orientation: Orientation,
        stack: &Stack,
    ) -> Result<Self, Error> {
        let net = Functional::of(stack);
        let record = vec![0.0; net.record_len(problem.shape.batch)?];
        let mut params = problem.params.clone();
        if orientation == Orientation::OutputsInputs {
            for param in params.iter_mut().filter(|param| param.role == Role::Weight) {
                param.values = turned(&param.values, param.shape);
            }
        }
        let results = Results {
            y: vec![0.0; problem.dy.len()],
            dx: vec![0.0; problem.x.len()],
            grads: params.iter().map(|param| vec![0.0; param.values.len()]).collect(),
        };
        Ok(Self { ctx: *ctx, problem, orientation, net, workspace: Workspace::new(), params, record, results })
    }

    /// The parameters of every affine map, and every vector.
    fn lists(&self) -> Result<(Vec<AffineRef<'_>>, Vec<&[f32]>), Error> {
        let (mut affines, mut vectors): (Vec<AffineRef<'_>>, _) = (Vec::new(), Vec::new());
        for block in 0..self.problem.shape.depth {
            for param in &self.params {
                let ((inputs, outputs), values) = (param.shape, param.block(block));
                match (param.role, self.orientation) {
                    (Role::Weight, Orientation::InputsOutputs) => {
                        affines.push(AffineRef { weights: MatRef::new(values, inputs, outputs)?.t(), bias: None });
                    }
                    (Role::Weight, Orientation::OutputsInputs) => {
                        affines.push(AffineRef { weights: MatRef::new(values, outputs, inputs)?, bias: None });
                    }
                    (Role::Bias, _) => affines.iter_mut().last().into_iter().for_each(|map| map.bias = Some(values)),
                    _ => vectors.push(values),
                }
            }
        }
        Ok((affines, vectors))
    }
}

impl Runner for Borrowed<'_> {
    fn forward(&mut self) -> Result<(), Error> {
        let Shape { batch: n, features: d, .. } = self.problem.shape;
        let (mut ws, mut y) = (std::mem::take(&mut self.workspace), std::mem::take(&mut self.results.y));
        let (affines, vectors) = self.lists()?;
        let params = ParamsRef { affines: &affines, vectors: &vectors };
        let x = MatRef::new(&self.problem.x, n, d)?;
        self.net.infer(&self.ctx, &mut ws, params, x, MatMut::new(&mut y, n, self.problem.form.outputs)?)?;
        (self.workspace, self.results.y) = (ws, y);
        Ok(())
    }

    fn train(&mut self) -> Result<(), Error> {
        let Shape { batch: n, features: d, depth, .. } = self.problem.shape;
        let m = self.problem.form.outputs;
        let mut ws = std::mem::take(&mut self.workspace);
        let mut record = std::mem::take(&mut self.record);
        let mut all = std::mem::take(&mut self.results);
        let (affines, vectors) = self.lists()?;
        let params = ParamsRef { affines: &affines, vectors: &vectors };
        let x = MatRef::new(&self.problem.x, n, d)?;
        self.net.forward(&self.ctx, &mut ws, params, x, MatMut::new(&mut all.y, n, m)?, &mut record)?;
        let mut left: Vec<&mut [f32]> = all.grads.iter_mut().map(|grad| &mut grad[..]).collect();
        let (mut affine_grads, mut vector_grads): (Vec<AffineGradMut<'_>>, _) = (Vec::new(), Vec::new());
        for _ in 0..depth {
            for (param, left) in self.params.iter().zip(&mut left) {
                let (values, rest) = std::mem::take(left).split_at_mut(param.len());
                *left = rest;
                let (inputs, outputs) = param.shape;
                match (param.role, self.orientation) {
                    (Role::Weight, Orientation::InputsOutputs) => {
                        let weights = Some(MatMut::new(values, inputs, outputs)?.t());
                        affine_grads.push(AffineGradMut { weights, bias: None });
                    }
                    (Role::Weight, Orientation::OutputsInputs) => {
                        let weights = Some(MatMut::new(values, outputs, inputs)?);
                        affine_grads.push(AffineGradMut { weights, bias: None });
                    }
                    (Role::Bias, _) => {
                        if let Some(map) = affine_grads.last_mut() {
                            map.bias = Some(values);
                        }
                    }
                    (role, _) => vector_grads.push(role.is_learned().then_some(values)),
                }
            }
        }
        let grads = GradsMut { affines: &mut affine_grads, vectors: &mut vector_grads };
        let (dy, dx) = (MatRef::new(&self.problem.dy, n, m)?, MatMut::new(&mut all.dx, n, d)?);
        self.net.backward(&self.ctx, &mut ws, params, &record, dy, Some(dx), grads, GradMode::Overwrite)?;
        (self.workspace, self.record, self.results) = (ws, record, all);
        Ok(())
    }

    fn results(&self) -> Result<Results, Error> {
        let mut all = self.results.clone();
        if self.orientation == Orientation::OutputsInputs {
            for (param, grad) in self.params.iter().zip(&mut all.grads).filter(|(param, _)| param.role == Role::Weight)
            {
                let (inputs, outputs) = param.shape;
                *grad = turned(grad, (outputs, inputs));
            }
        }
        Ok(all)
    }
}
