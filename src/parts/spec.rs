//! What specifications are written in: numbers of two kinds, and the sums that parts share.

use crate::Activation;

/// A number type that the specification can be read in.
pub trait Real: Copy + PartialEq + std::fmt::Debug {
    /// What the moments of a batch are kept in on the way: f64 for f32.
    type Wide: Real;
    /// The same number, wider.
    fn wide(self) -> Self::Wide;
    /// Rounded back.
    fn narrow(wide: Self::Wide) -> Self;
    /// Zero.
    const ZERO: Self;
    /// self * a + b, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
    /// self + a.
    fn add(self, a: Self) -> Self;
    /// self * a.
    fn mul(self, a: Self) -> Self;
    /// self - a.
    fn sub(self, a: Self) -> Self;
    /// self / a.
    fn div(self, a: Self) -> Self;
    /// -self.
    fn neg(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// This number, exactly.
    fn number(x: f32) -> Self;
    /// phi(self).
    fn activate(self, phi: Activation) -> Self;
    /// phi'(self).
    fn derive(self, phi: Activation) -> Self;
}

impl Real for f32 {
    type Wide = f64;
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn narrow(wide: f64) -> f32 {
        wide as f32
    }
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
    fn sub(self, a: f32) -> f32 {
        self - a
    }
    fn div(self, a: f32) -> f32 {
        self / a
    }
    fn neg(self) -> f32 {
        -self
    }
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    fn number(x: f32) -> f32 {
        x
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
    type Wide = f64;
    fn wide(self) -> f64 {
        self
    }
    fn narrow(wide: f64) -> f64 {
        wide
    }
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
    fn sub(self, a: f64) -> f64 {
        self - a
    }
    fn div(self, a: f64) -> f64 {
        self / a
    }
    fn neg(self) -> f64 {
        -self
    }
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    fn number(x: f32) -> f64 {
        f64::from(x)
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
            Activation::ReluSquared => {
                if z <= 0.0 {
                    0.0
                } else {
                    z * z
                }
            }
            Activation::SiluBeta(beta) => z * logistic(f64::from(beta) * z),
            // tanh(ln(1 + e^z)) without cancellation: with e = e^-|z|, of numerator and denominator over e^2z for z > 0.
            Activation::Mish => {
                let (numerator, denominator) = mish_weight(z);
                z * numerator / denominator
            }
            Activation::Hardswish if z > 3.0 => z,
            Activation::Hardswish if z < -3.0 => -0.0,
            Activation::Hardswish => z * (z + 3.0) / 6.0,
            Activation::Elu(alpha) => {
                if z > 0.0 {
                    z
                } else {
                    f64::from(alpha) * libm::expm1(z)
                }
            }
            Activation::Softplus => z.max(0.0) + libm::log1p(libm::exp(-z.abs())),
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
            Activation::ReluSquared => {
                if z <= 0.0 {
                    0.0
                } else {
                    2.0 * z
                }
            }
            Activation::SiluBeta(beta) => {
                let y = f64::from(beta) * z;
                logistic(y) + y * bell(y)
            }
            Activation::Mish => {
                let (numerator, denominator) = mish_weight(z);
                let e = libm::exp(-z.abs());
                let power = if z > 0.0 { e * e } else { e };
                numerator / denominator + z * 4.0 * power * (1.0 + e) / (denominator * denominator)
            }
            Activation::Hardswish if z < -3.0 => 0.0,
            Activation::Hardswish if z > 3.0 => 1.0,
            Activation::Hardswish => (2.0 * z + 3.0) / 6.0,
            Activation::Elu(alpha) => {
                if z > 0.0 {
                    1.0
                } else {
                    f64::from(alpha) * libm::exp(z)
                }
            }
            Activation::Softplus => logistic(z),
        }
    }
}

/// Numerator and denominator of tanh(ln(1 + e^z)).
fn mish_weight(z: f64) -> (f64, f64) {
    let e = libm::exp(-z.abs());
    if z > 0.0 { (1.0 + 2.0 * e, 1.0 + 2.0 * e + 2.0 * e * e) } else { (e * (e + 2.0), e * (e + 2.0) + 2.0) }
}

/// True for functions that multiply z by a weight which is 0 far to the left: from -1000 on they are at their limit, and infinity
/// times 0 would be NaN.
fn tailed(phi: Activation) -> bool {
    matches!(
        phi,
        Activation::Gelu | Activation::GeluTanh | Activation::Silu | Activation::SiluBeta(_) | Activation::Mish
    )
}

fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-z))
}

/// e^-|z| / (1 + e^-|z|)^2, the derivative of the logistic function.
fn bell(z: f64) -> f64 {
    let e = libm::exp(-z.abs());
    e / ((1.0 + e) * (1.0 + e))
}

/// A sum along a row of `d` columns: 16 chains, one for each column modulo 16, each of `step`s from 0; then a fixed tree over the 16. Chains
/// without a column hold 0 and take part.
pub(super) fn row_sum<T: Real>(d: usize, step: impl Fn(usize, T) -> T) -> T {
    let mut lanes = [T::ZERO; 16];
    for j in 0..d {
        lanes[j % 16] = step(j, lanes[j % 16]);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = lanes[lane].add(lanes[lane + half]);
        }
    }
    lanes[0]
}

/// Mean and variance of some values: by pieces of 32, each with its mean and the sum of squares around that, in a chain each; pieces are combined
/// in order (Chan, Golub, LeVeque 1979).
pub(super) fn moments<T: Real>(values: impl Iterator<Item = T>) -> (T, T) {
    let all: Vec<T> = values.collect();
    let number = |n: usize| T::Wide::number(n as f32);
    let (mut mean, mut squares, mut count) = (T::Wide::ZERO, T::Wide::ZERO, 0);
    for piece in all.chunks(32) {
        let centre = piece.iter().fold(T::ZERO, |sum, x| sum.add(*x)).div(T::number(piece.len() as f32));
        let around = piece.iter().map(|x| x.sub(centre)).fold(T::ZERO, |sum, x| x.fma(x, sum));
        let share = number(piece.len()).div(number(count + piece.len()));
        let delta = centre.wide().sub(mean);
        mean = mean.add(delta.mul(share));
        squares = squares.add(around.wide()).add(delta.mul(delta).mul(number(count).mul(share)));
        count += piece.len();
    }
    (T::narrow(mean), T::narrow(squares.div(number(count))))
}

/// g * phi'(z); the identity multiplies by nothing.
pub(super) fn times_derivative<T: Real>(g: T, z: T, phi: Activation) -> T {
    if phi == Activation::Identity { g } else { g.mul(z.derive(phi)) }
}

/// dx = dz W (+ skip): one chain over j, then the skip gradient.
pub(super) fn input_gradient<T: Real>(
    (n, k, m): (usize, usize, usize),
    dz: &[T],
    w: &[T],
    skip: Option<&[T]>,
) -> Vec<T> {
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
pub(super) fn weight_gradient<T: Real>(
    (n, k, m): (usize, usize, usize),
    x: &[T],
    dz: &[T],
    dw: &mut [T],
    db: &mut [T],
) {
    for r in 0..n {
        for j in 0..m {
            for i in 0..k {
                dw[j * k + i] = dz[r * m + j].fma(x[r * k + i], dw[j * k + i]);
            }
            db[j] = db[j].add(dz[r * m + j]);
        }
    }
}
