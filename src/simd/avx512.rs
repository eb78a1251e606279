//! AVX-512F: 16 lanes, 32 registers.
//!
//! | operation | port, throughput (Intel Golden Cove · AMD Zen 5) | latency |
//! |---|---|---|
//! | fma, mul, add | 2 a cycle | 4 |
//! | load, broadcast load | 2 a cycle | 7-8 |
//! | min, max, compare, blend | 1 · 2 a cycle | 3-4 |
//! | scalef | 1 a cycle | 4 |
//! | div | one in 16 · 8 cycles | 24 · 15 |
//!
//! Two FMAs a cycle of latency 4 want at least 8 independent accumulators; 14 rows x 2 panels have 28, and with two vectors of
//! weights and one broadcast fill 31 of the 32 registers. Loads per FMA: 16 / 28. Weight-gradient tiles take their rows out of
//! one panel of 16: 8 x 3 panels = 24 + 3 + 1 registers, 11 / 24 loads per FMA.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-512F, AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512 {
    _private: (),
}

impl Avx512 {
    /// # Safety
    /// The CPU has AVX-512F, AVX2 and FMA.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self { _private: () }
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx2,fma")]
fn enter<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
    kernel.run(token)
}

/// The first `min(n, 16)` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

// SAFETY of every block below that only computes: a token exists only where the CPU has the features (`Avx512::new`).
impl Simd for Avx512 {
    type V = __m512;
    type Row = [__m512; 1];
    type M = __mmask16;
    const LANES: usize = 16;
    const MR: usize = 14;
    const NP: usize = 2;
    const GRAD_MR: usize = 8;
    const GRAD_NP: usize = 3;

    #[inline(always)]
    fn row(self, v: Self::V) -> Self::Row {
        [v; 1]
    }
    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features that `enter` enables.
        unsafe { enter(self, kernel) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> __m512 {
        // SAFETY: the caller promises 16 readable floats; unaligned loads need no more.
        unsafe { _mm512_loadu_ps(src) }
    }
    #[inline(always)]
    fn prefetch(self, src: *const f32) {
        // SAFETY: SSE is part of x86-64; prefetches of any address are allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(src.cast()) }
    }
    #[inline(always)]
    unsafe fn stream_ptr(self, dst: *mut f32, v: __m512) {
        // SAFETY: the caller promises 16 writable floats at an aligned address.
        unsafe { _mm512_stream_ps(dst, v) }
    }
    #[inline(always)]
    fn fence(self) {
        // SAFETY: SSE is part of x86-64.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> __m512 {
        // SAFETY: lanes past the end of the slice are masked out and not accessed.
        unsafe {
            if src.len() >= 16 {
                _mm512_loadu_ps(src.as_ptr())
            } else {
                _mm512_maskz_loadu_ps(first(src.len()), src.as_ptr())
            }
        }
    }
    #[inline(always)]
    fn store(self, dst: &mut [f32], v: __m512) {
        // SAFETY: lanes past the end of the slice are masked out and not accessed.
        unsafe {
            if dst.len() >= 16 {
                _mm512_storeu_ps(dst.as_mut_ptr(), v)
            } else {
                _mm512_mask_storeu_ps(dst.as_mut_ptr(), first(dst.len()), v)
            }
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fms(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_fmsub_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn gt(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: __mmask16, a: __m512, b: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_mask_blend_ps(m, b, a) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: register-only, see above.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn with_sign(self, a: __m512, sign: __m512) -> __m512 {
        // SAFETY: register-only, see above. Integer forms: the float forms of and/or need AVX-512DQ.
        unsafe {
            let bit = _mm512_and_si512(_mm512_castps_si512(sign), _mm512_set1_epi32(i32::MIN));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), bit))
        }
    }
    #[inline(always)]
    fn ldexp(self, v: __m512, n: __m512) -> __m512 {
        // SAFETY: register-only, see above. scalef rounds once, as the trait demands; two exact-then-rounded multiplications
        // (the other sets) give the same bits in the promised range.
        unsafe { _mm512_scalef_ps(v, n) }
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32; 256]) {
        assert!(from.len() >= stride.saturating_mul(15).saturating_add(16), "16 rows of 16");
        // SAFETY: 16 floats from i * stride on, i < 16, are inside `from`, as just asserted, and those from i * 16 on inside `to`; the
        // rest is register-only, see above.
        unsafe {
            // Not `array::from_fn`, whose closure would be a call outside of the instruction set.
            let mut r = [_mm512_setzero_ps(); 16];
            for i in 0..16 {
                r[i] = _mm512_loadu_ps(from.as_ptr().add(i * stride));
            }
            // In each 128-bit lane, 4 x 4 blocks: u[4 i + c] holds column 4 l + c of rows 4 i .. 4 i + 4 in lane l.
            let mut u = [_mm512_setzero_ps(); 16];
            for i in 0..4 {
                let pair =
                    |a, b| (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(a, b)));
                let ((a, b), (c, d)) = (pair(r[4 * i], r[4 * i + 1]), pair(r[4 * i + 2], r[4 * i + 3]));
                u[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                u[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                u[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                u[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            // Then the lanes: even ones (0x88) and odd ones (0xdd) of two vectors, twice.
            for c in 0..4 {
                let even =
                    (_mm512_shuffle_f32x4::<0x88>(u[c], u[4 + c]), _mm512_shuffle_f32x4::<0x88>(u[8 + c], u[12 + c]));
                let odd =
                    (_mm512_shuffle_f32x4::<0xdd>(u[c], u[4 + c]), _mm512_shuffle_f32x4::<0xdd>(u[8 + c], u[12 + c]));
                let mut row = |i: usize, v| _mm512_storeu_ps(to.as_mut_ptr().add(i * 16), v);
                row(c, _mm512_shuffle_f32x4::<0x88>(even.0, even.1));
                row(4 + c, _mm512_shuffle_f32x4::<0x88>(odd.0, odd.1));
                row(8 + c, _mm512_shuffle_f32x4::<0xdd>(even.0, even.1));
                row(12 + c, _mm512_shuffle_f32x4::<0xdd>(odd.0, odd.1));
            }
        }
    }
}
