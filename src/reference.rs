//! The specification: what every operation computes, as naive loops over row-major slices.
//!
//! Written once, generic over [`Real`], and so read two ways. In f32 it is the **sequential oracle**: each output element is one
//! chain of fused multiply-adds in increasing k, and the kernels must equal it bit for bit. In f64, with activations from libm,
//! it is the **numerical reference**, for error bounds and gradient checks.
//!
//! Weights are (out, in), as PyTorch stores them: W1 is `h x d`, W2 is `d x h`. Panics (as any slice would) if a slice is shorter
//! than its shape says: this module is for tests and for reading, not for production.

use crate::Activation;

/// A number type that the specification can be read in.
pub trait Real: Copy + PartialEq + std::fmt::Debug {
    /// Zero.
    const ZERO: Self;
    /// self * a + b, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
    /// self + a.
    fn add(self, a: Self) -> Self;
    /// self * a.
    fn mul(self, a: Self) -> Self;
    /// phi(self).
    fn activate(self, phi: Activation) -> Self;
    /// phi'(self).
    fn derive(self, phi: Activation) -> Self;
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    fn fma(self, a: f32, b: f32) -> f32 {
        self.mul_add(a, b)
    }
    fn add(self, a: f32) -> f32 {
        self + a
    }
    fn mul(self, a: f32) -> f32 {
        self * a
    }
    fn activate(self, phi: Activation) -> f32 {
        phi.value(self)
    }
    fn derive(self, phi: Activation) -> f32 {
        phi.derivative(self)
    }
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

impl Real for f64 {
    const ZERO: f64 = 0.0;
    fn fma(self, a: f64, b: f64) -> f64 {
        self.mul_add(a, b)
    }
    fn add(self, a: f64) -> f64 {
        self + a
    }
    fn mul(self, a: f64) -> f64 {
        self * a
    }

    fn activate(self, phi: Activation) -> f64 {
        let z = if tailed(phi) { self.clamp(-1e3, f64::INFINITY) } else { self };
        match phi {
            Activation::Identity => z,
            Activation::Relu => {
                if z <= 0.0 {
                    0.0
                } else {
                    z
                }
            }
            Activation::LeakyRelu(slope) => {
                if z <= 0.0 {
                    f64::from(slope) * z
                } else {
                    z
                }
            }
            // erfc, not 1 + erf: no cancellation for negative z.
            Activation::Gelu => 0.5 * z * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2),
            // 0.5 (1 + tanh u) = 1 / (1 + e^(-2u)), again without cancellation.
            Activation::GeluTanh => z * logistic(2.0 * SQRT_2_OVER_PI * (z + 0.044715 * z * z * z)),
            Activation::Silu => z * logistic(z),
            Activation::Tanh => libm::tanh(z),
            Activation::Sigmoid => logistic(z),
        }
    }

    fn derive(self, phi: Activation) -> f64 {
        let z = if tailed(phi) { self.clamp(-1e3, 1e3) } else { self };
        match phi {
            Activation::Identity => 1.0,
            Activation::Relu => {
                if z > 0.0 {
                    1.0
                } else {
                    0.0
                }
            }
            Activation::LeakyRelu(slope) => {
                if z > 0.0 {
                    1.0
                } else {
                    f64::from(slope)
                }
            }
            Activation::Gelu => {
                let density = libm::exp(-0.5 * z * z) / (2.0 * std::f64::consts::PI).sqrt();
                0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2) + z * density
            }
            Activation::GeluTanh => {
                let w = logistic(2.0 * SQRT_2_OVER_PI * (z + 0.044715 * z * z * z));
                let slope = 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * z * z);
                w + z * bell(2.0 * SQRT_2_OVER_PI * (z + 0.044715 * z * z * z)) * slope
            }
            Activation::Silu => logistic(z) + z * bell(z),
            Activation::Tanh => 4.0 * bell(2.0 * z),
            Activation::Sigmoid => bell(z),
        }
    }
}

/// True for functions that multiply z by a weight which is 0 far to the left: from -1000 on they are at their limit, and infinity
/// times 0 would be NaN.
fn tailed(phi: Activation) -> bool {
    matches!(phi, Activation::Gelu | Activation::GeluTanh | Activation::Silu)
}

fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-z))
}

/// e^-|z| / (1 + e^-|z|)^2, the derivative of the logistic function.
fn bell(z: f64) -> f64 {
    let e = libm::exp(-z.abs());
    e / ((1.0 + e) * (1.0 + e))
}

/// Pre-activation and output of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearOut<T> {
    /// z = x Wᵀ + b, `n x m`.
    pub z: Vec<T>,
    /// y = phi(z) + skip, `n x m`.
    pub y: Vec<T>,
}

/// y = phi(x Wᵀ + b) + skip. x: `n x k`; w: `m x k`; b: `m`; skip: `n x m`.
///
/// `z[r, j] = fma(x[r, k-1], w[j, k-1], ... fma(x[r, 0], w[j, 0], b[j]))`: the chain starts from the bias.
pub fn linear<T: Real>(
    (n, k, m): (usize, usize, usize),
    x: &[T],
    w: &[T],
    b: Option<&[T]>,
    phi: Activation,
    skip: Option<&[T]>,
) -> LinearOut<T> {
    let mut out = LinearOut { z: vec![T::ZERO; n * m], y: vec![T::ZERO; n * m] };
    for r in 0..n {
        for j in 0..m {
            let mut z = b.map_or(T::ZERO, |b| b[j]);
            for i in 0..k {
                z = x[r * k + i].fma(w[j * k + i], z);
            }
            let h = z.activate(phi);
            out.z[r * m + j] = z;
            out.y[r * m + j] = skip.map_or(h, |s| h.add(s[r * m + j]));
        }
    }
    out
}

/// Gradients of a linear layer. On entry to a backward function `dw` and `db` hold what the chain continues from.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearGrads<T> {
    /// dL/dx, `n x k`.
    pub dx: Vec<T>,
    /// dL/dW, `m x k`.
    pub dw: Vec<T>,
    /// dL/db, `m`.
    pub db: Vec<T>,
}

/// Backward of [`linear`] given dy `n x m`: dz = dy * phi'(z), dx = dz W (+ dy where the skip was x itself), dW += dzᵀ x,
/// db += the column sums of dz. (An external skip receives dy itself.)
///
/// `dw[j, i] = fma(dz[n-1, j], x[n-1, i], ... fma(dz[0, j], x[0, i], dw[j, i]))`: the chain runs over the rows of the batch, in
/// order, and continues from what `grads` holds.
#[allow(clippy::too_many_arguments, reason = "one argument for each operand of the formula")]
pub fn linear_backward<T: Real>(
    (n, k, m): (usize, usize, usize),
    x: &[T],
    w: &[T],
    phi: Activation,
    z: &[T],
    dy: &[T],
    skip_is_x: bool,
    grads: &mut LinearGrads<T>,
) {
    let dz: Vec<T> = (0..n * m).map(|i| times_derivative(dy[i], z[i], phi)).collect();
    grads.dx = input_gradient((n, k, m), &dz, w, skip_is_x.then_some(dy));
    weight_gradient((n, k, m), x, &dz, &mut grads.dw, &mut grads.db);
}

/// g * phi'(z); the identity multiplies by nothing.
fn times_derivative<T: Real>(g: T, z: T, phi: Activation) -> T {
    if phi == Activation::Identity { g } else { g.mul(z.derive(phi)) }
}

/// dx = dz W (+ skip): one chain over j, then the skip gradient.
fn input_gradient<T: Real>((n, k, m): (usize, usize, usize), dz: &[T], w: &[T], skip: Option<&[T]>) -> Vec<T> {
    let mut dx = vec![T::ZERO; n * k];
    for r in 0..n {
        for i in 0..k {
            let mut g = T::ZERO;
            for j in 0..m {
                g = dz[r * m + j].fma(w[j * k + i], g);
            }
            dx[r * k + i] = skip.map_or(g, |s| g.add(s[r * k + i]));
        }
    }
    dx
}

/// dW += dzᵀ x, db += column sums of dz: chains over the batch rows.
fn weight_gradient<T: Real>((n, k, m): (usize, usize, usize), x: &[T], dz: &[T], dw: &mut [T], db: &mut [T]) {
    for r in 0..n {
        for j in 0..m {
            for i in 0..k {
                dw[j * k + i] = dz[r * m + j].fma(x[r * k + i], dw[j * k + i]);
            }
            db[j] = db[j].add(dz[r * m + j]);
        }
    }
}

/// The parameters of a two-layer block. W1: `h x d`, b1: `h`, W2: `d x h`, b2: `d`.
#[derive(Debug, Clone, Copy)]
pub struct BlockParams<'a, T> {
    /// First weights, `h x d`.
    pub w1: &'a [T],
    /// First bias, `h`.
    pub b1: &'a [T],
    /// Second weights, `d x h`.
    pub w2: &'a [T],
    /// Second bias, `d`.
    pub b2: &'a [T],
    /// phi.
    pub phi: Activation,
    /// True for y = x + G(x), false for the plain y = G(x).
    pub skip: bool,
}

/// What a block computes on the way forward.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockOut<T> {
    /// z = x W1ᵀ + b1, `n x h`.
    pub z: Vec<T>,
    /// h = phi(z), `n x h`.
    pub h: Vec<T>,
    /// y = (h W2ᵀ + b2) (+ x), `n x d`.
    pub y: Vec<T>,
}

/// y = x + W2 phi(W1 x + b1) + b2, or without x. Sizes are (n, d, h).
pub fn block<T: Real>((n, d, h): (usize, usize, usize), x: &[T], p: BlockParams<'_, T>) -> BlockOut<T> {
    let first = linear((n, d, h), x, p.w1, Some(p.b1), p.phi, None);
    let second = linear((n, h, d), &first.y, p.w2, Some(p.b2), Activation::Identity, p.skip.then_some(x));
    BlockOut { z: first.z, h: first.y, y: second.y }
}

/// Gradients of a block. On entry to [`block_backward`] the parameter gradients hold what the chains continue from.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGrads<T> {
    /// dL/dx, `n x d`.
    pub dx: Vec<T>,
    /// dL/dW1, `h x d`.
    pub dw1: Vec<T>,
    /// dL/db1, `h`.
    pub db1: Vec<T>,
    /// dL/dW2, `d x h`.
    pub dw2: Vec<T>,
    /// dL/db2, `d`.
    pub db2: Vec<T>,
}

impl<T: Real> BlockGrads<T> {
    /// All zero.
    pub fn zeros((n, d, h): (usize, usize, usize)) -> Self {
        let z = |len| vec![T::ZERO; len];
        Self { dx: z(n * d), dw1: z(h * d), db1: z(h), dw2: z(d * h), db2: z(d) }
    }
}

/// Backward of [`block`] given dy: dz = (dy W2) * phi'(z), dx = dz W1 (+ dy), dW2 += dyᵀ h, db2 += sums of dy, dW1 += dzᵀ x,
/// db1 += sums of dz.
pub fn block_backward<T: Real>(
    (n, d, h): (usize, usize, usize),
    x: &[T],
    p: BlockParams<'_, T>,
    out: &BlockOut<T>,
    dy: &[T],
    grads: &mut BlockGrads<T>,
) {
    let dh = input_gradient((n, h, d), dy, p.w2, None);
    let dz: Vec<T> = dh.iter().zip(&out.z).map(|(&g, &z)| times_derivative(g, z, p.phi)).collect();
    grads.dx = input_gradient((n, d, h), &dz, p.w1, p.skip.then_some(dy));
    weight_gradient((n, h, d), &out.h, dy, &mut grads.dw2, &mut grads.db2);
    weight_gradient((n, d, h), x, &dz, &mut grads.dw1, &mut grads.db1);
}
