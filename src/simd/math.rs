//! Elementary functions over [`Simd`], from fma, mul, add, div and exact scaling only: the same bits on every instruction set.
//!
//! Bounds are against f64 over all f32 inputs (`tests/kernels/activation.rs`, the ignored exhaustive test); 1 ULP is the distance of
//! neighbouring f32 at the true value. Polynomials: weighted minimax fits (Lawson iteration on 4000 Chebyshev nodes, 40-digit
//! reference values), coefficients rounded to f32.
#![allow(clippy::excessive_precision, reason = "coefficients are kept as the fit printed them")]

use super::Simd;

/// log2(e) = HI + LO, each an f32.
const LOG2E_HI: f32 = std::f32::consts::LOG2_E;
const LOG2E_LO: f32 = 1.925_963_0e-8;
/// ln(2) = HI + LO; HI has 15 bits, so n * HI is exact for |n| < 2^9.
const LN2_HI: f32 = 0.693_145_75;
const LN2_LO: f32 = 1.428_606_8e-6;
/// 1.5 * 2^23: adding it leaves round-to-nearest-even(x) in the low mantissa bits, for |x| < 2^22.
const ROUND: f32 = 12_582_912.0;

/// c[0] + x (c[1] + x (c[2] + ...)), one fma a step.
#[inline(always)]
pub(crate) fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, c: [f32; N]) -> S::V {
    let mut p = s.splat(c[N - 1]);
    for i in (0..N - 1).rev() {
        p = s.fma(p, x, s.splat(c[i]));
    }
    p
}

/// The integer nearest to a * b (ties to even), as a float; |a b| < 2^22.
#[inline(always)]
pub(crate) fn round_product<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
    s.sub(s.fma(a, b, s.splat(ROUND)), s.splat(ROUND))
}

/// 2^f for |f| <= 0.5: 1 + f P(f), P of degree 5, relative error of the fit 2^-28.9.
#[inline(always)]
pub(crate) fn exp2_fraction<S: Simd>(s: S, f: S::V) -> S::V {
    let p = polynomial(
        s,
        f,
        [6.931_471_825e-1, 2.402_264_774e-1, 5.550_332_367e-2, 9.618_436_917e-3, 1.339_887_502e-3, 1.535_335_905e-4],
    );
    s.fma(f, p, s.splat(1.0))
}

/// e^x for x in [-104, 104] or NaN, denormal results included; +inf above 88.72.
///
/// x log2(e) = n + f with n an integer and |f| <= 1/2; the product is exact inside the fma, so f loses nothing to
/// cancellation.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let n = round_product(s, x, s.splat(LOG2E_HI));
    let f = s.fma(x, s.splat(LOG2E_LO), s.fms(x, s.splat(LOG2E_HI), n));
    s.ldexp(exp2_fraction(s, f), n)
}

/// e^(-x^2 / 2) as (p, n) with value p * 2^n and p in [0.7, 1.42], for |x| <= 15 or NaN.
///
/// The rounding error of x^2 would be magnified x^2/2 times by the exponential; it is recovered exactly by one fma.
#[inline(always)]
pub(crate) fn gauss<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    const HI: f32 = -0.5 * LOG2E_HI;
    const LO: f32 = -0.5 * LOG2E_LO;
    let square = s.mul(x, x);
    let rest = s.fms(x, x, square);
    let n = round_product(s, square, s.splat(HI));
    let f = s.fms(square, s.splat(HI), n);
    let f = s.fma(square, s.splat(LO), f);
    let f = s.fma(rest, s.splat(HI), f);
    (exp2_fraction(s, f), n)
}

/// The Mills-like ratio (1 - Phi(t)) e^(t^2 / 2) of the normal distribution, for t in [0, 15] or NaN.
///
/// With w = (t - 3) / (t + 3) it is P(w) / (t + 3), P of degree 8, smooth and between 0.4 and 1.5 over the whole range;
/// relative error of the fit 2^-24.1, with rounded coefficients 2^-23.7.
#[inline(always)]
pub(crate) fn mills<S: Simd>(s: S, t: S::V) -> S::V {
    let d = s.div(s.splat(1.0), s.add(t, s.splat(3.0)));
    let w = s.mul(s.sub(t, s.splat(3.0)), d);
    let p = polynomial(
        s,
        w,
        [
            7.290_836_573e-1,
            -5.093_323_588e-1,
            2.300_194_353e-1,
            -4.725_446_547e-2,
            -1.048_014_686e-2,
            6.916_171_871e-3,
            1.073_243_562e-3,
            -8.925_338_043e-4,
            -2.593_137_906e-4,
        ],
    );
    s.mul(p, d)
}

/// tanh(x), any x: at most 2.6 ULP, exactly odd, tanh(-0) = -0.
///
/// With E = e^(2|x|) - 1: tanh|x| = E / (E + 2). E keeps its relative accuracy down to x = 0, so there is one path for all x.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // tanh rounds to 1 above 9.02; NaN passes as the second operand.
    let a = s.min(s.splat(10.0), s.abs(x));
    let e = expm1(s, s.add(a, a));
    s.with_sign(s.div(e, s.add(e, s.splat(2.0))), x)
}

/// e^x - 1 for x in [-104, 20] or NaN; the sign of a zero is lost.
///
/// x = n ln 2 + r; 2^n (e^r - 1) + (2^n - 1) keeps its relative accuracy down to x = 0, where n = 0 and it is r + r^2 P(r).
#[inline(always)]
pub(crate) fn expm1<S: Simd>(s: S, x: S::V) -> S::V {
    let n = round_product(s, x, s.splat(LOG2E_HI));
    let r = s.fnma(n, s.splat(LN2_LO), s.fnma(n, s.splat(LN2_HI), x));
    // e^r = 1 + r + r^2 P(r) for |r| <= ln(2) / 2: P of degree 4, error of the fit 2^-26.2 of e^r - 1.
    let p =
        polynomial(s, r, [4.999_999_702e-1, 1.666_654_348e-1, 4.166_720_062e-2, 8.366_520_517e-3, 1.388_251_549e-3]);
    let q = s.fma(s.mul(r, r), p, r);
    let power = s.ldexp(s.splat(1.0), n);
    s.fma(power, q, s.sub(power, s.splat(1.0)))
}

/// ln(1 + u) for u in [0, 1] or NaN: 2 artanh(t), t = u / (2 + u) <= 1/3, by its series, 2 t (1 + t²/3 + t⁴/5 + ...), whose rest after
/// nine terms is 2^-30 of it.
#[inline(always)]
pub(crate) fn log1p<S: Simd>(s: S, u: S::V) -> S::V {
    let t = s.div(u, s.add(u, s.splat(2.0)));
    let square = s.mul(t, t);
    let series = [2.0 / 3.0, 2.0 / 5.0, 2.0 / 7.0, 2.0 / 9.0, 2.0 / 11.0, 2.0 / 13.0, 2.0 / 15.0, 2.0 / 17.0];
    let p = s.mul(square, polynomial(s, square, series));
    let twice = s.add(t, t);
    s.fma(t, p, twice)
}
