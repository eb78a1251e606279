//! Activations: each function beside its derivative, written once over [`Simd`] and used by the forward and backward kernels of
//! every instruction set, by the sequential oracle and by [`Activation::value`].
//!
//! NaN in gives NaN out, for values; a derivative at NaN is NaN, but for the piecewise linear ones, whose comparison `z > 0` is
//! false. Values at +-inf are the limits.

use crate::simd::{One, Simd, math};

/// The activation function phi between the two weight layers of a block, or after a linear layer.
///
/// Bounds are the largest error over all f32 inputs (from [`Activation::ReluSquared`] on: over every 64th of them, and a little more) against
/// f64, in units in the last place of the true value, measured by `cargo test --release --test kernels activation:: -- --ignored`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Activation {
    /// phi(z) = z. Exact.
    Identity,
    /// phi(z) = max(z, 0); phi'(z) = 1 if z > 0, else 0. Exact. phi(-0) = -0, phi(NaN) = NaN.
    Relu,
    /// phi(z) = z if z > 0, else slope * z; phi'(z) = 1 if z > 0, else slope. Correctly rounded.
    LeakyRelu(
        /// Slope for z <= 0, usually 0.01. Any float.
        f32,
    ),
    /// phi(z) = z Phi(z), Phi the normal distribution function: the GELU of BERT and ViT (`approximate='none'` in PyTorch).
    ///
    /// Computed as max(z, 0) - |z| (1 - Phi(|z|)), the tail as e^(-z^2/2) times a ratio, so that nothing cancels as it does in
    /// 0.5 z (1 + erf): value at most 6.2 ULP. Derivative at most 7.5 ULP where |phi'| >= 1/8,
    /// within 8.9e-8 elsewhere (it crosses zero).
    Gelu,
    /// phi(z) = 0.5 z (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))): the GELU of GPT-2 (`approximate='tanh'` in PyTorch). It differs
    /// from [`Activation::Gelu`] by up to 4.7e-4.
    ///
    /// Computed as z / (1 + e^(-2u)), by e^(-2|u|) for either sign of z. Value at most 5.8 ULP where |phi| >= 2^-6,
    /// within 5.9e-9 elsewhere (up to 121 ULP at z = -10, the error of the cube magnified by the exponential); derivative at
    /// most 5.9 ULP where |phi'| >= 1/8, within 7.5e-8 elsewhere.
    GeluTanh,
    /// phi(z) = z / (1 + e^-z), also called swish. Value at most 3.3 ULP where |phi| >= 2^-120, within
    /// 1.4e-43 elsewhere; derivative at most 2.8 ULP where |phi'| >= 1/8, within 4.5e-8 elsewhere.
    Silu,
    /// phi(z) = tanh(z). Value at most 2.6 ULP, derivative at most 4.3 ULP.
    Tanh,
    /// phi(z) = 1 / (1 + e^-z). Value at most 2.5 ULP, derivative at most 4.3 ULP.
    Sigmoid,
    /// phi(z) = max(z, 0)² (So et al. 2021, Primer); phi'(z) = 2 max(z, 0). Value correctly rounded, derivative exact below overflow.
    ReluSquared,
    /// phi(z) = z / (1 + e^(-β z)), swish with a constant β; QuickGELU (CLIP) with 1.702. With β = 1.702: value at most 3.4
    /// ULP where |phi| >= 2^-120, within 1.4e-43 elsewhere; derivative at most 2.9 ULP where |phi'| >= 1/8, within 5.7e-8 elsewhere.
    SiluBeta(
        /// β, finite.
        f32,
    ),
    /// phi(z) = z tanh(ln(1 + e^z)) (Misra 2019). Value at most 4.3 ULP where |phi| >= 2^-120, within 1.8e-43 elsewhere;
    /// derivative at most 3.7 ULP where |phi'| >= 1/4, within 1.0e-7 elsewhere.
    Mish,
    /// phi(z) = z min(max(z + 3, 0), 6) / 6 (Howard et al. 2019); phi'(z) = 0 for z < -3, 1 for z > 3, z / 3 + 1/2 between, as PyTorch has it.
    /// Value at most 2.0 ULP, derivative at most 1.1 ULP.
    Hardswish,
    /// phi(z) = z if z > 0, else α (e^z - 1) (Clevert et al. 2015); phi'(z) = 1 if z > 0, else α e^z. With α = 1: value
    /// at most 1.1 ULP, derivative at most 1.2 ULP.
    Elu(
        /// α, usually 1. Any float.
        f32,
    ),
    /// phi(z) = ln(1 + e^z); its derivative is the sigmoid. Value at most 2.7 ULP, derivative at most 2.5 ULP.
    Softplus,
}

impl Activation {
    /// Each function once, those with a parameter with its usual value.
    pub const ALL: [Self; 14] = [
        Self::Identity,
        Self::Relu,
        Self::LeakyRelu(0.01),
        Self::Gelu,
        Self::GeluTanh,
        Self::Silu,
        Self::Tanh,
        Self::Sigmoid,
        Self::ReluSquared,
        Self::SiluBeta(1.702),
        Self::Mish,
        Self::Hardswish,
        Self::Elu(1.0),
        Self::Softplus,
    ];

    /// phi(z): the same bits as the kernels give.
    pub fn value(self, z: f32) -> f32 {
        with_act!(self, act => act.value(One, [z])[0])
    }

    /// phi'(z): the same bits as the kernels give.
    pub fn derivative(self, z: f32) -> f32 {
        with_act!(self, act => act.grad(One, [z])[0])
    }

    /// True if phi'(z) can be told from h = phi(z) alone (it is then `derivative(h)`), so that training need not keep it.
    pub(crate) fn differentiates_from_output(self) -> bool {
        matches!(self, Activation::Identity | Activation::Relu)
    }

    /// Its parameter, if it has one.
    pub fn parameter(self) -> Option<f32> {
        match self {
            Activation::LeakyRelu(x) | Activation::SiluBeta(x) | Activation::Elu(x) => Some(x),
            _ => None,
        }
    }

    /// A short name for reports: `relu`, `gelu_tanh`, ...
    pub fn name(self) -> &'static str {
        match self {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::LeakyRelu(_) => "leaky_relu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
            Activation::Sigmoid => "sigmoid",
            Activation::ReluSquared => "relu_squared",
            Activation::SiluBeta(_) => "silu_beta",
            Activation::Mish => "mish",
            Activation::Hardswish => "hardswish",
            Activation::Elu(_) => "elu",
            Activation::Softplus => "softplus",
        }
    }
}

/// One activation as a type, so that loops are compiled for it.
pub(crate) trait Act: Copy {
    /// phi(z).
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V;
    /// phi'(z).
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V;
}

/// Evaluates an expression with `$act` bound to the [`Act`] that an [`Activation`] names.
macro_rules! with_act {
    ($activation:expr, $act:ident => $body:expr) => {{
        use $crate::activation::{self as acts, Activation as A};
        match $activation {
            A::Identity => {
                let $act = acts::Identity;
                $body
            }
            A::Relu => {
                let $act = acts::Relu;
                $body
            }
            A::LeakyRelu(slope) => {
                let $act = acts::LeakyRelu(slope);
                $body
            }
            A::Gelu => {
                let $act = acts::Gelu;
                $body
            }
            A::GeluTanh => {
                let $act = acts::GeluTanh;
                $body
            }
            A::Silu => {
                let $act = acts::Silu;
                $body
            }
            A::Tanh => {
                let $act = acts::Tanh;
                $body
            }
            A::Sigmoid => {
                let $act = acts::Sigmoid;
                $body
            }
            A::ReluSquared => {
                let $act = acts::ReluSquared;
                $body
            }
            A::SiluBeta(beta) => {
                let $act = acts::SiluBeta::new(beta);
                $body
            }
            A::Mish => {
                let $act = acts::Mish;
                $body
            }
            A::Hardswish => {
                let $act = acts::Hardswish;
                $body
            }
            A::Elu(alpha) => {
                let $act = acts::Elu(alpha);
                $body
            }
            A::Softplus => {
                let $act = acts::Softplus;
                $body
            }
        }
    }};
}
pub(crate) use with_act;

/// x clamped to [-limit, limit]; NaN stays.
#[inline(always)]
fn clamp<S: Simd>(s: S, limit: f32, x: S::V) -> S::V {
    s.min(s.splat(limit), s.max(s.splat(-limit), x))
}

#[derive(Clone, Copy)]
pub(crate) struct Identity;
impl Act for Identity {
    #[inline(always)]
    fn value<S: Simd>(self, _: S, z: S::V) -> S::V {
        z
    }
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, _: S::V) -> S::V {
        s.splat(1.0)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Relu;
impl Act for Relu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        s.max(s.splat(0.0), z) // in this order NaN passes
    }
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        s.select(s.gt(z, s.splat(0.0)), s.splat(1.0), s.splat(0.0))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct LeakyRelu(pub(crate) f32);
impl Act for LeakyRelu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        s.select(s.gt(z, s.splat(0.0)), z, s.mul(z, s.splat(self.0)))
    }
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        s.select(s.gt(z, s.splat(0.0)), s.splat(1.0), s.splat(self.0))
    }
}

/// At |z| = 15 the tail e^(-z^2/2) is below half of the smallest denormal.
const GELU_LIMIT: f32 = 15.0;

#[derive(Clone, Copy)]
pub(crate) struct Gelu;
impl Act for Gelu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        let t = s.min(s.splat(GELU_LIMIT), s.abs(z));
        let (p, n) = math::gauss(s, t);
        // The factors are multiplied before the scaling, so that a denormal result is rounded only once.
        let tail = s.ldexp(s.mul(s.mul(t, math::mills(s, t)), p), n);
        s.sub(s.max(s.splat(0.0), z), tail)
    }

    /// phi'(z) = Phi(z) + z e^(-z^2/2) / sqrt(2 pi); with D = (1 - Phi(t)) - t e^(-t^2/2) / sqrt(2 pi), t = |z|: D for z <= 0,
    /// 1 - D for z > 0.
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        const INV_SQRT_2PI: f32 = 0.398_942_3;
        let t = s.min(s.splat(GELU_LIMIT), s.abs(z));
        let (p, n) = math::gauss(s, t);
        let d = s.ldexp(s.mul(p, s.fnma(t, s.splat(INV_SQRT_2PI), math::mills(s, t))), n);
        s.select(s.gt(z, s.splat(0.0)), s.sub(s.splat(1.0), d), d)
    }
}

/// 1 / (1 + e^-y) from e = e^-|y|, where y has the sign of z: neither half overflows or cancels.
#[inline(always)]
fn weight<S: Simd>(s: S, z: S::V, e: S::V) -> S::V {
    s.div(s.select(s.gt(z, s.splat(0.0)), s.splat(1.0), e), s.add(s.splat(1.0), e))
}

/// w + y w (1 - w) with w = [`weight`] of z and e; 1 - w as e / (1 + e), since the difference cancels.
#[inline(always)]
fn weight_grad<S: Simd>(s: S, z: S::V, e: S::V, y: S::V) -> S::V {
    let d = s.div(s.splat(1.0), s.add(s.splat(1.0), e));
    let small = s.mul(e, d);
    let w = s.select(s.gt(z, s.splat(0.0)), d, small);
    s.fma(y, s.mul(small, d), w)
}

/// At |z| = 10.7, 2 |u| is so large that e^(-2|u|) is below half of the smallest denormal.
const GELU_TANH_LIMIT: f32 = 10.7;

/// e^(-2|u|), u = sqrt(2/pi) (z + 0.044715 z^3): 2^t with t = |z| (K0 + K1 z^2).
#[inline(always)]
fn gelu_tanh_decay<S: Simd>(s: S, z: S::V) -> S::V {
    const K0: f32 = -2.302_208_2;
    const K1: f32 = -0.102_943_24;
    let a = s.min(s.splat(GELU_TANH_LIMIT), s.abs(z));
    let q = s.fma(s.mul(a, a), s.splat(K1), s.splat(K0));
    let n = math::round_product(s, a, q);
    let f = s.fms(a, q, n);
    s.ldexp(math::exp2_fraction(s, f), n)
}

#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;
impl Act for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        // The weight is 0 below the limit; without the bound, -inf * 0 would be NaN.
        s.mul(s.max(s.splat(-GELU_TANH_LIMIT), z), weight(s, z, gelu_tanh_decay(s, z)))
    }

    /// phi'(z) = w + z w (1 - w) 2 u'(z), with w the weight of the value and 2 u' = 2 sqrt(2/pi) (1 + 3 * 0.044715 z^2).
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        const D0: f32 = 1.595_769_2;
        const D1: f32 = 0.214_064_45;
        let e = gelu_tanh_decay(s, z);
        let y = clamp(s, GELU_TANH_LIMIT, z);
        let slope = s.fma(s.mul(y, y), s.splat(D1), s.splat(D0));
        weight_grad(s, z, e, s.mul(y, slope))
    }
}

/// Beyond +-104, e^-|z| is less than half of the smallest denormal.
const SIGMOID_LIMIT: f32 = 104.0;

/// e^-|z|
#[inline(always)]
fn decay<S: Simd>(s: S, z: S::V) -> S::V {
    math::exp(s, s.sub(s.splat(0.0), s.min(s.splat(SIGMOID_LIMIT), s.abs(z))))
}

#[derive(Clone, Copy)]
pub(crate) struct Silu;
impl Act for Silu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        // The weight is 0 below -104; without the bound, -inf * 0 would be NaN.
        s.mul(s.max(s.splat(-SIGMOID_LIMIT), z), weight(s, z, decay(s, z)))
    }

    /// phi'(z) = w + z w (1 - w), w = 1 / (1 + e^-z).
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        weight_grad(s, z, decay(s, z), clamp(s, SIGMOID_LIMIT, z))
    }
}

/// e / (1 + e)^2 with e = e^-|x|, |x| <= 104: the derivative of the logistic function, without cancellation in either tail.
#[inline(always)]
fn bell<S: Simd>(s: S, x: S::V) -> S::V {
    let e = decay(s, x);
    let d = s.add(s.splat(1.0), e);
    s.div(e, s.mul(d, d))
}

#[derive(Clone, Copy)]
pub(crate) struct Tanh;
impl Act for Tanh {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        math::tanh(s, z)
    }

    /// phi'(z) = 1 - tanh^2(z) = 4 e / (1 + e)^2, e = e^(-2|z|).
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        s.mul(s.splat(4.0), bell(s, s.add(z, z)))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Sigmoid;
impl Act for Sigmoid {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        weight(s, z, decay(s, z))
    }

    /// phi'(z) = phi(z) (1 - phi(z)) = e / (1 + e)^2, e = e^-|z|.
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        bell(s, z)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct ReluSquared;
impl Act for ReluSquared {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        let h = s.max(s.splat(0.0), z);
        s.mul(h, h)
    }
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        let h = s.max(s.splat(0.0), z);
        s.add(h, h)
    }
}

/// SiLU of β z over β, with what its kernels make of β once.
#[derive(Clone, Copy)]
pub(crate) struct SiluBeta {
    beta: f32,
    /// -|β| log2(e), and what is left of it after rounding: the exponent is the product's to the last bit.
    hi: f32,
    lo: f32,
    /// |z| from which on e^-|β z| is below half of the smallest denormal.
    limit: f32,
}

impl SiluBeta {
    pub(crate) fn new(beta: f32) -> Self {
        let exact = -f64::from(beta.abs()) * std::f64::consts::LOG2_E;
        let hi = exact as f32;
        let limit = (SIGMOID_LIMIT / beta.abs()).min(f32::MAX);
        Self { beta, hi, lo: (exact - f64::from(hi)) as f32, limit }
    }

    /// e^-|β z|
    #[inline(always)]
    fn decay<S: Simd>(self, s: S, z: S::V) -> S::V {
        let a = s.min(s.splat(self.limit), s.abs(z));
        let n = math::round_product(s, a, s.splat(self.hi));
        let f = s.fma(a, s.splat(self.lo), s.fms(a, s.splat(self.hi), n));
        s.ldexp(math::exp2_fraction(s, f), n)
    }
}

impl Act for SiluBeta {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        let y = s.mul(z, s.splat(self.beta));
        // Where the weight falls to 0, z must not be infinite.
        let z = s.select(s.gt(y, s.splat(0.0)), z, clamp(s, self.limit, z));
        s.mul(z, weight(s, y, self.decay(s, z)))
    }

    /// phi'(z) = w + y w (1 - w), w = 1 / (1 + e^-y), y = β z.
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        let y = s.mul(clamp(s, self.limit, z), s.splat(self.beta));
        weight_grad(s, y, self.decay(s, z), y)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Mish;

/// tanh(ln(1 + e^z)) = ((1 + e^z)² - 1) / ((1 + e^z)² + 1) from e = e^-|z|, as numerator and denominator, divided by e^2z for z > 0:
/// nothing cancels or overflows.
#[inline(always)]
fn mish_weight<S: Simd>(s: S, z: S::V, e: S::V) -> (S::V, S::V) {
    let two = s.splat(2.0);
    let right = s.fma(two, e, s.splat(1.0));
    let left = s.mul(e, s.add(e, two));
    let is_right = s.gt(z, s.splat(0.0));
    let rest = s.select(is_right, s.mul(two, s.mul(e, e)), two);
    let numerator = s.select(is_right, right, left);
    (numerator, s.add(numerator, rest))
}

impl Act for Mish {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        let (numerator, denominator) = mish_weight(s, z, decay(s, z));
        s.mul(s.max(s.splat(-SIGMOID_LIMIT), z), s.div(numerator, denominator))
    }

    /// phi'(z) = w + z w', w' = 4 e^z (1 + e^z) / ((1 + e^z)² + 1)².
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        let e = decay(s, z);
        let (numerator, denominator) = mish_weight(s, z, e);
        let d = s.div(s.splat(1.0), denominator);
        let power = s.select(s.gt(z, s.splat(0.0)), s.mul(e, e), e);
        let slope = s.mul(s.mul(s.splat(4.0), s.mul(power, d)), s.mul(s.add(s.splat(1.0), e), d));
        s.fma(clamp(s, SIGMOID_LIMIT, z), slope, s.div(numerator, denominator))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Hardswish;
impl Act for Hardswish {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        let a = s.max(s.splat(-3.0), z); // NaN passes
        let middle = s.mul(a, s.div(s.add(a, s.splat(3.0)), s.splat(6.0)));
        s.select(s.gt(z, s.splat(3.0)), z, middle)
    }
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        let middle = s.div(s.fma(s.splat(2.0), z, s.splat(3.0)), s.splat(6.0));
        let right = s.select(s.gt(z, s.splat(3.0)), s.splat(1.0), middle);
        s.select(s.gt(s.splat(-3.0), z), s.splat(0.0), right)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Elu(pub(crate) f32);
impl Act for Elu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        let e = math::expm1(s, s.max(s.splat(-SIGMOID_LIMIT), s.min(s.splat(0.0), z)));
        // With the sign of z, which is that of a zero, too.
        let left = s.mul(s.splat(self.0), s.with_sign(s.abs(e), z));
        s.select(s.gt(z, s.splat(0.0)), z, left)
    }
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        s.select(s.gt(z, s.splat(0.0)), s.splat(1.0), s.mul(s.splat(self.0), decay(s, z)))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Softplus;
impl Act for Softplus {
    /// ln(1 + e^z) = max(z, 0) + ln(1 + e^-|z|).
    #[inline(always)]
    fn value<S: Simd>(self, s: S, z: S::V) -> S::V {
        s.add(s.max(s.splat(0.0), z), math::log1p(s, decay(s, z)))
    }
    #[inline(always)]
    fn grad<S: Simd>(self, s: S, z: S::V) -> S::V {
        weight(s, z, decay(s, z))
    }
}
