//! The problem run as one would without this crate: GEMM calls of the `matrixmultiply` crate, and plain loops over whole
//! matrices between them, on one thread.
//!
//! A fair opponent: bias and activation are one loop, the skip and the second bias are what the second GEMM adds to, buffers are
//! made once. The loops of identity and ReLU are vector code; the other functions call `exp`, `tanh` or `erf` for each element.

use super::problem::{Problem, Shape};
use super::{Results, Runner};
use resblock::{Activation, Error, Skip};

/// What the passes of a problem write.
pub(crate) struct Unfused<'p> {
    problem: &'p Problem,
    /// What a training forward keeps, for each block.
    saved: Vec<Saved>,
    /// Outputs of blocks of even and odd number on their way through an inference; gradients on their way back.
    pair: [Vec<f32>; 2],
    /// Hidden activations of an inference, their gradient in training.
    hidden: Vec<f32>,
    results: Own,
}

/// Results, of a bare block.
struct Own {
    y: Vec<f32>,
    dx: Vec<f32>,
    dw1: Vec<f32>,
    db1: Vec<f32>,
    dw2: Vec<f32>,
    db2: Vec<f32>,
}

/// z: pre-activations, if the derivative needs them; h: hidden activations; y: output.
struct Saved {
    z: Option<Vec<f32>>,
    h: Vec<f32>,
    y: Vec<f32>,
}

impl<'p> Unfused<'p> {
    pub(crate) fn new(problem: &'p Problem) -> Self {
        let Shape { batch: n, features: d, hidden: h, depth } = problem.shape;
        let zeros = |len: usize| vec![0.0; len];
        let z = || (!differentiates_from_output(problem.form.activation)).then(|| zeros(n * h));
        Self {
            problem,
            saved: (0..depth).map(|_| Saved { z: z(), h: zeros(n * h), y: zeros(n * d) }).collect(),
            pair: [zeros(n * d), zeros(n * d)],
            hidden: zeros(n * h),
            results: Own {
                y: zeros(n * d),
                dx: zeros(n * d),
                dw1: zeros(depth * d * h),
                db1: zeros(depth * h),
                dw2: zeros(depth * d * h),
                db2: zeros(depth * d),
            },
        }
    }
}

impl Runner for Unfused<'_> {
    fn forward(&mut self) -> Result<(), Error> {
        let depth = self.problem.shape.depth;
        let [even, odd] = &mut self.pair;
        for index in 0..depth {
            let (here, there) = if index % 2 == 0 { (&*odd, &mut *even) } else { (&*even, &mut *odd) };
            let x = if index == 0 { &self.problem.x } else { here };
            let y = if index + 1 == depth { &mut self.results.y } else { there };
            block_forward(self.problem, index, x, None, &mut self.hidden, y);
        }
        Ok(())
    }

    fn train(&mut self) -> Result<(), Error> {
        let Shape { features: d, hidden: h, depth, .. } = self.problem.shape;
        for index in 0..depth {
            let (before, rest) = self.saved.split_at_mut(index);
            let Saved { z, h, y } = &mut rest[0];
            let x = before.last().map_or(&self.problem.x, |saved| &saved.y);
            let y = if index + 1 == depth { &mut self.results.y } else { y };
            block_forward(self.problem, index, x, z.as_deref_mut(), h, y);
        }
        let Self { problem, saved, pair: [even, odd], hidden, results } = self;
        for index in (0..depth).rev() {
            let (here, there) = if index % 2 == 0 { (&*odd, &mut *even) } else { (&*even, &mut *odd) };
            let grads = Grads {
                dx: if index == 0 { &mut results.dx } else { there },
                dw1: &mut results.dw1[index * d * h..][..d * h],
                db1: &mut results.db1[index * h..][..h],
                dw2: &mut results.dw2[index * d * h..][..d * h],
                db2: &mut results.db2[index * d..][..d],
            };
            let dy = if index + 1 == depth { &problem.dy } else { here };
            let x = if index == 0 { &problem.x } else { &saved[index - 1].y };
            block_backward(problem, index, x, &saved[index], dy, hidden, grads);
        }
        Ok(())
    }

    fn results(&self) -> Result<Results, Error> {
        let Own { y, dx, dw1, db1, dw2, db2 } = &self.results;
        Ok(Results { y: y.clone(), dx: dx.clone(), grads: [dw1, db1, dw2, db2].map(Vec::clone).into() })
    }
}

/// h = phi(x W1 + b1), y = h W2 + b2 (+ x). With `z`, the pre-activations are kept there.
fn block_forward(p: &Problem, index: usize, x: &[f32], z: Option<&mut [f32]>, h: &mut [f32], y: &mut [f32]) {
    let Shape { batch: n, features: d, hidden, .. } = p.shape;
    let [w1, b1, w2, b2] = p.block(index);
    let (x_mat, w1) = (Mat::new(x, n, d), Mat::new(w1, d, hidden));
    match z {
        Some(z) => {
            gemm(x_mat, w1, 0.0, z);
            add_bias(z, b1);
            h.copy_from_slice(z);
            activate(p.form.activation, h, None);
        }
        None => {
            gemm(x_mat, w1, 0.0, h);
            activate(p.form.activation, h, Some(b1));
        }
    }
    match p.form.skip {
        Skip::Identity => y.copy_from_slice(x),
        _ => y.fill(0.0),
    }
    add_bias(y, b2);
    gemm(Mat::new(h, n, hidden), Mat::new(w2, hidden, d), 1.0, y);
}

/// Where the gradients of a block go.
struct Grads<'a> {
    dx: &'a mut [f32],
    dw1: &'a mut [f32],
    db1: &'a mut [f32],
    dw2: &'a mut [f32],
    db2: &'a mut [f32],
}

/// All gradients of a block from dy; `dz` is room for the hidden gradient.
fn block_backward(p: &Problem, index: usize, x: &[f32], saved: &Saved, dy: &[f32], dz: &mut [f32], to: Grads<'_>) {
    let Shape { batch: n, features: d, hidden, .. } = p.shape;
    let [w1, _, w2, _] = p.block(index);
    let (x, h, dy_mat) = (Mat::new(x, n, d), Mat::new(&saved.h, n, hidden), Mat::new(dy, n, d));
    gemm(dy_mat, Mat::new(w2, hidden, d).t(), 0.0, dz);
    times_derivative(p.form.activation, dz, saved.z.as_ref().unwrap_or(&saved.h));
    column_sums(dz, to.db1);
    column_sums(dy, to.db2);
    gemm(h.t(), dy_mat, 0.0, to.dw2);
    let dz = Mat::new(dz, n, hidden);
    gemm(x.t(), dz, 0.0, to.dw1);
    let beta = match p.form.skip {
        Skip::Identity => {
            to.dx.copy_from_slice(dy);
            1.0
        }
        _ => 0.0,
    };
    gemm(dz, Mat::new(w1, d, hidden).t(), beta, to.dx);
}

fn add_bias(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
    }
}

/// h = phi(h), or phi(h + bias).
fn activate(phi: Activation, h: &mut [f32], bias: Option<&[f32]>) {
    fn with(f: impl Fn(f32) -> f32, h: &mut [f32], bias: Option<&[f32]>) {
        match bias {
            None => h.iter_mut().for_each(|v| *v = f(*v)),
            Some(bias) => {
                for row in h.chunks_exact_mut(bias.len()) {
                    row.iter_mut().zip(bias).for_each(|(v, b)| *v = f(*v + b));
                }
            }
        }
    }
    // One loop for each function: those that can be vector code become it.
    match phi {
        Activation::Identity => with(|z| z, h, bias),
        Activation::Relu => with(|z| z.max(0.0), h, bias),
        Activation::LeakyRelu(slope) => with(|z| if z > 0.0 { z } else { slope * z }, h, bias),
        Activation::Gelu => with(|z| z * normal_cdf(z), h, bias),
        Activation::GeluTanh => with(|z| 0.5 * z * (1.0 + gelu_tanh_argument(z).tanh()), h, bias),
        Activation::Silu => with(|z| z * sigmoid(z), h, bias),
        Activation::Tanh => with(f32::tanh, h, bias),
        Activation::Sigmoid => with(sigmoid, h, bias),
        other => with(|z| other.value(z), h, bias),
    }
}

/// dz = dh phi'(at), in place: `at` holds z, or h if that is enough.
fn times_derivative(phi: Activation, dz: &mut [f32], at: &[f32]) {
    fn with(f: impl Fn(f32) -> f32, dz: &mut [f32], at: &[f32]) {
        dz.iter_mut().zip(at).for_each(|(d, &z)| *d *= f(z));
    }
    match phi {
        Activation::Identity => {}
        Activation::Relu => with(|z| if z > 0.0 { 1.0 } else { 0.0 }, dz, at),
        Activation::LeakyRelu(slope) => with(|z| if z > 0.0 { 1.0 } else { slope }, dz, at),
        Activation::Gelu => with(|z| normal_cdf(z) + z * 0.398_942_3 * (-0.5 * z * z).exp(), dz, at),
        Activation::GeluTanh => {
            let slope = |z: f32| 0.797_884_6 * (1.0 + 3.0 * 0.044_715 * z * z);
            let grad = |z: f32, t: f32| 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * slope(z);
            with(|z| grad(z, gelu_tanh_argument(z).tanh()), dz, at);
        }
        Activation::Silu => with(|z| sigmoid(z) * (1.0 + z * sigmoid(-z)), dz, at),
        Activation::Tanh => with(|z| 1.0 - z.tanh() * z.tanh(), dz, at),
        Activation::Sigmoid => with(|z| sigmoid(z) * sigmoid(-z), dz, at),
        other => with(|z| other.derivative(z), dz, at),
    }
}

/// Whether phi'(z) can be told from phi(z), so that z need not be kept.
fn differentiates_from_output(phi: Activation) -> bool {
    matches!(phi, Activation::Identity | Activation::Relu)
}

fn normal_cdf(z: f32) -> f32 {
    0.5 * libm::erfcf(-z * std::f32::consts::FRAC_1_SQRT_2)
}

fn gelu_tanh_argument(z: f32) -> f32 {
    0.797_884_6 * (z + 0.044_715 * z * z * z)
}

fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
}

fn column_sums(rows: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
}

/// A dense matrix in a slice, or its transpose.
#[derive(Clone, Copy)]
struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }
}

/// c = a b + beta c, c row-major and dense.
fn gemm(a: Mat<'_>, b: Mat<'_>, beta: f32, c: &mut [f32]) {
    assert!(a.cols == b.rows && c.len() == a.rows * b.cols);
    let stride = |n: usize| n as isize; // strides of slices of f32 fit
    // SAFETY: `Mat` spans exactly its slice, whichever way round, since its fields are private to this module and `new` and `t`
    // make no other; c has a.rows x b.cols elements (asserted) and, being borrowed mutably, overlaps neither.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            a.cols,
            b.cols,
            1.0,
            a.data.as_ptr(),
            stride(a.row_stride),
            stride(a.col_stride),
            b.data.as_ptr(),
            stride(b.row_stride),
            stride(b.col_stride),
            beta,
            c.as_mut_ptr(),
            stride(b.cols),
            1,
        );
    }
}
