//! NEON: 4 lanes, 32 registers.
//!
//! | operation | throughput (Neoverse V1 · Apple M1) | latency |
//! |---|---|---|
//! | fmla | 4 a cycle | 4 · 4 |
//! | load, load and replicate | 3 a cycle | 6-8 |
//! | fdiv | one in 3-7 cycles | 7-10 |
//!
//! A panel of 16 columns is four vectors. Four FMAs a cycle of latency 4 want 16 accumulators; 6 rows x 1 panel have 24, with
//! four vectors of weights and the broadcasts 29 to 32 registers.
//!
//! `vmaxq`/`vminq` treat NaN and signed zeros in their own way, so minimum and maximum are a compare and a select here.

use super::{Kernel, Simd};
use std::arch::aarch64::*;

/// Proof that the CPU has NEON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon {
    _private: (),
}

impl Neon {
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self { _private: () }
    }
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn enter<K: Kernel>(token: Neon, kernel: K) -> K::Output {
    kernel.run(token)
}

// SAFETY of every block below that only computes: a token exists only where the CPU has the features (`Neon::new`).
impl Simd for Neon {
    type V = float32x4_t;
    type Row = [float32x4_t; 4];
    type M = uint32x4_t;
    const LANES: usize = 4;
    const MR: usize = 6;
    const NP: usize = 1;
    const GRAD_MR: usize = 6;
    const GRAD_NP: usize = 1;

    #[inline(always)]
    fn row(self, v: Self::V) -> Self::Row {
        [v; 4]
    }
    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features that `enter` enables.
        unsafe { enter(self, kernel) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> float32x4_t {
        // SAFETY: the caller promises 4 readable floats.
        unsafe { vld1q_f32(src) }
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> float32x4_t {
        let mut lanes = [0.0; 4];
        let src = if src.len() >= 4 {
            src
        } else {
            lanes[..src.len()].copy_from_slice(src);
            &lanes
        };
        // SAFETY: `src` has 4 elements at least.
        unsafe { vld1q_f32(src.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, dst: &mut [f32], v: float32x4_t) {
        if dst.len() >= 4 {
            // SAFETY: `dst` has 4 elements at least.
            unsafe { vst1q_f32(dst.as_mut_ptr(), v) }
        } else {
            let mut lanes = [0.0; 4];
            // SAFETY: `lanes` has 4 elements.
            unsafe { vst1q_f32(lanes.as_mut_ptr(), v) }
            dst.copy_from_slice(&lanes[..dst.len()]);
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vsqrtq_f32(a) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn fms(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vfmaq_f32(vnegq_f32(c), a, b) }
    }
    #[inline(always)]
    fn fnma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vfmsq_f32(c, a, b) }
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn gt(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vcgtq_f32(a, b) }
    }
    #[inline(always)]
    fn select(self, m: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vbslq_f32(m, a, b) }
    }
    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vabsq_f32(a) }
    }
    #[inline(always)]
    fn with_sign(self, a: float32x4_t, sign: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above.
        unsafe { vbslq_f32(vdupq_n_u32(0x8000_0000), sign, a) }
    }
    #[inline(always)]
    fn ldexp(self, v: float32x4_t, n: float32x4_t) -> float32x4_t {
        // SAFETY: register-only, see above. 2^n as two normal factors: the first multiplication is exact, the second rounds.
        unsafe {
            let n = vcvtq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
            vmulq_f32(vmulq_f32(v, power(half)), power(vsubq_s32(n, half)))
        }
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32; 256]) {
        assert!(from.len() >= stride.saturating_mul(15).saturating_add(16), "16 rows of 16");
        // SAFETY: reads of four floats at i * stride + j with i < 16, j <= 12, are inside `from`, as just asserted, and writes at
        // i * 16 + j inside `to`. The rest is register-only, see above.
        unsafe {
            for i in [0, 4, 8, 12] {
                for j in [0, 4, 8, 12] {
                    let row = |r: usize| vld1q_f32(from.as_ptr().add((i + r) * stride + j));
                    let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                    // Pairs of columns 0 and 2 (even), 1 and 3 (odd), of rows a b and c d.
                    let even = (vreinterpretq_f64_f32(vtrn1q_f32(a, b)), vreinterpretq_f64_f32(vtrn1q_f32(c, d)));
                    let odd = (vreinterpretq_f64_f32(vtrn2q_f32(a, b)), vreinterpretq_f64_f32(vtrn2q_f32(c, d)));
                    let mut store =
                        |r: usize, v| vst1q_f32(to.as_mut_ptr().add((j + r) * 16 + i), vreinterpretq_f32_f64(v));
                    store(0, vtrn1q_f64(even.0, even.1));
                    store(1, vtrn1q_f64(odd.0, odd.1));
                    store(2, vtrn2q_f64(even.0, even.1));
                    store(3, vtrn2q_f64(odd.0, odd.1));
                }
            }
        }
    }
}
