//! The problem run by functional calls, on weights that stay the caller's.

use super::problem::{Problem, Shape};
use super::{Results, Runner};
use resblock::{AffineGradMut, AffineRef, Context, Error, Functional, GradMode, MatMut, MatRef, Stack, Workspace};

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
    w: [Vec<f32>; 2],
    record: Vec<f32>,
    results: Results,
}

impl<'p> Borrowed<'p> {
    pub(crate) fn new(
        ctx: &Context,
        problem: &'p Problem,
        orientation: Orientation,
        stack: &Stack,
    ) -> Result<Self, Error> {
        let Shape { batch, features: d, hidden: h, .. } = problem.shape;
        let net = Functional::of(stack);
        let record = vec![0.0; net.record_len(batch)?];
        let turned = |w: &[f32], inputs: usize, outputs: usize| -> Vec<f32> {
            let matrices = w.chunks(inputs * outputs);
            matrices
                .flat_map(|w| (0..outputs).flat_map(move |o| (0..inputs).map(move |i| w[i * outputs + o])))
                .collect()
        };
        let w = match orientation {
            Orientation::InputsOutputs => [problem.w1.clone(), problem.w2.clone()],
            Orientation::OutputsInputs => [turned(&problem.w1, d, h), turned(&problem.w2, h, d)],
        };
        let zeros = |v: &[f32]| vec![0.0; v.len()];
        let results = Results {
            y: zeros(&problem.x),
            dx: zeros(&problem.x),
            dw1: zeros(&problem.w1),
            db1: zeros(&problem.b1),
            dw2: zeros(&problem.w2),
            db2: zeros(&problem.b2),
        };
        Ok(Self { ctx: *ctx, problem, orientation, net, workspace: Workspace::new(), w, record, results })
    }

    /// The parameters of every affine map.
    fn params(&self) -> Result<Vec<AffineRef<'_>>, Error> {
        let Shape { features: d, hidden: h, depth, .. } = self.problem.shape;
        let view = |w, inputs, outputs| match self.orientation {
            Orientation::InputsOutputs => MatRef::new(w, inputs, outputs).map(MatRef::t),
            Orientation::OutputsInputs => MatRef::new(w, outputs, inputs),
        };
        let mut params = Vec::with_capacity(2 * depth);
        for block in 0..depth {
            let (_, b1, _, b2) = self.problem.block(block);
            let [w1, w2] = [0, 1].map(|i| &self.w[i][block * d * h..][..d * h]);
            params.push(AffineRef { weights: view(w1, d, h)?, bias: Some(b1) });
            params.push(AffineRef { weights: view(w2, h, d)?, bias: Some(b2) });
        }
        Ok(params)
    }
}

impl Runner for Borrowed<'_> {
    fn forward(&mut self) -> Result<(), Error> {
        let Shape { batch: n, features: d, .. } = self.problem.shape;
        let (mut ws, mut y) = (std::mem::take(&mut self.workspace), std::mem::take(&mut self.results.y));
        let x = MatRef::new(&self.problem.x, n, d)?;
        self.net.infer(&self.ctx, &mut ws, &self.params()?, x, MatMut::new(&mut y, n, d)?)?;
        (self.workspace, self.results.y) = (ws, y);
        Ok(())
    }

    fn train(&mut self) -> Result<(), Error> {
        let Shape { batch: n, features: d, hidden: h, depth } = self.problem.shape;
        let mut ws = std::mem::take(&mut self.workspace);
        let mut record = std::mem::take(&mut self.record);
        let mut all = std::mem::take(&mut self.results);
        let params = self.params()?;
        let x = MatRef::new(&self.problem.x, n, d)?;
        self.net.forward(&self.ctx, &mut ws, &params, x, MatMut::new(&mut all.y, n, d)?, &mut record)?;
        let view = |dw, inputs, outputs| match self.orientation {
            Orientation::InputsOutputs => MatMut::new(dw, inputs, outputs).map(MatMut::t),
            Orientation::OutputsInputs => MatMut::new(dw, outputs, inputs),
        };
        let mut grads = Vec::with_capacity(2 * depth);
        let first = all.dw1.chunks_mut(d * h).zip(all.db1.chunks_mut(h));
        let second = all.dw2.chunks_mut(d * h).zip(all.db2.chunks_mut(d));
        for ((dw1, db1), (dw2, db2)) in first.zip(second) {
            grads.push(AffineGradMut { weights: Some(view(dw1, d, h)?), bias: Some(db1) });
            grads.push(AffineGradMut { weights: Some(view(dw2, h, d)?), bias: Some(db2) });
        }
        let (dy, dx) = (MatRef::new(&self.problem.dy, n, d)?, MatMut::new(&mut all.dx, n, d)?);
        self.net.backward(&self.ctx, &mut ws, &params, &record, dy, Some(dx), &mut grads, GradMode::Overwrite)?;
        (self.workspace, self.record, self.results) = (ws, record, all);
        Ok(())
    }

    fn results(&self) -> Result<Results, Error> {
        let Shape { features: d, hidden: h, .. } = self.problem.shape;
        let mut all = self.results.clone();
        if self.orientation == Orientation::OutputsInputs {
            for (dw, inputs, outputs) in [(&mut all.dw1, d, h), (&mut all.dw2, h, d)] {
                for dw in dw.chunks_mut(d * h) {
                    let turned: Vec<f32> = (0..inputs)
                        .flat_map(|i| (0..outputs).map(move |o| (o, i)))
                        .map(|(o, i)| dw[o * inputs + i])
                        .collect();
                    dw.copy_from_slice(&turned);
                }
            }
        }
        Ok(all)
    }
}
