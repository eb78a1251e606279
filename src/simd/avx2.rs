//! AVX2 with FMA: 8 lanes, 16 registers.
//!
//! | operation | throughput (Intel Golden Cove · AMD Zen 5) | latency |
//! |---|---|---|
//! | fma, mul | 2 a cycle | 4 |
//! | load, broadcast load | 3 · 4 a cycle | 7-8 |
//! | div | one in 5 cycles | 11 |
//!
//! A panel of 16 columns is two vectors. 6 rows x 1 panel = 12 accumulators + 2 + 1 = 15 of the 16 registers; 8 loads for 12 FMAs.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2 {
    _private: (),
}

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2 and FMA.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self { _private: () }
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn enter<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
    kernel.run(token)
}

/// Eight ones, then eight zeros: the mask for the first n lanes starts at 8 - n.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// All bits set in the first `n` lanes, n < 8.
#[inline(always)]
fn first(n: usize) -> __m256i {
    let window = &MASKS[8 - n..16 - n];
    // SAFETY: the window has 8 elements; a token exists only where the CPU has AVX2 (`Avx2::new`), and only methods of the
    // token call this.
    unsafe { _mm256_loadu_si256(window.as_ptr().cast()) }
}

// SAFETY of every block below that only computes: a token exists only where the CPU has the features (`Avx2::new`).
impl Simd for Avx2 {
    type V = __m256;
    type Row = [__m256; 2];
    type M = __m256;
    const LANES: usize = 8;
    const MR: usize = 6;
    const NP: usize = 1;
    const GRAD_MR: usize = 6;
    const GRAD_NP: usize = 1;

    #[inline(always)]
    fn row(self, v: Self::V) -> Self::Row {
        [v; 2]
    }
    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features that `enter` enables.
        unsafe { enter(self, kernel) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> __m256 {
        // SAFETY: the caller promises 8 readable floats; unaligned loads need no more.
        unsafe { _mm256_loadu_ps(src) }
    }
    #[inline(always)]
    fn prefetch(self, src: *const f32) {
        // SAFETY: SSE is part of x86-64; prefetches of any address are allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(src.cast()) }
    }
    #[inline(always)]
    unsafe fn stream_ptr(self, dst: *mut f32, v: __m256) {
        // SAFETY: the caller promises 8 writable floats at an aligned address.
        unsafe { _mm256_stream_ps(dst, v) }
    }
    #[inline(always)]
    fn fence(self) {
        // SAFETY: SSE is part of x86-64.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> __m256 {
        // SAFETY: lanes past the end of the slice are masked out and not accessed.
        unsafe {
            if src.len() >= 8 {
                _mm256_loadu_ps(src.as_ptr())
            } else {
                _mm256_maskload_ps(src.as_ptr(), first(src.len()))
            }
        }
    }
    #[inline(always)]
    fn store(self, dst: &mut [f32], v: __m256) {
        // SAFETY: lanes past the end of the slice are masked out and not accessed.
        unsafe {
            if dst.len() >= 8 {
                _mm256_storeu_ps(dst.as_mut_ptr(), v)
            } else {
                _mm256_maskstore_ps(dst.as_mut_ptr(), first(dst.len()), v)
            }
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fms(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_fmsub_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn gt(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_cmp_ps::<_CMP_GT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_blendv_ps(b, a, m) }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn with_sign(self, a: __m256, sign: __m256) -> __m256 {
        // SAFETY: register-only, see above.
        unsafe { _mm256_or_ps(a, _mm256_and_ps(sign, _mm256_set1_ps(-0.0))) }
    }
    #[inline(always)]
    fn ldexp(self, v: __m256, n: __m256) -> __m256 {
        // SAFETY: register-only, see above. 2^n as two normal factors: the first multiplication is exact, the second rounds.
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, bias)));
            _mm256_mul_ps(_mm256_mul_ps(v, power(half)), power(_mm256_sub_epi32(n, half)))
        }
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32; 256]) {
        assert!(from.len() >= stride.saturating_mul(15).saturating_add(16), "16 rows of 16");
        // SAFETY: reads of four floats at i * stride + j, i < 16 and j <= 12, are inside `from`, as just asserted, and writes of eight at
        // i * 16 + j, j <= 8, inside `to`. The rest is register-only, see above.
        unsafe {
            let half = |i: usize, j: usize| _mm_loadu_ps(from.as_ptr().add(i * stride + j));
            for i in [0, 8] {
                for j in [0, 4, 8, 12] {
                    // 4 x 4 blocks in the two lanes: rows i .. i + 4 in the lower, i + 4 .. i + 8 in the upper.
                    let row = |r: usize| {
                        _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(half(i + r, j)), half(i + 4 + r, j))
                    };
                    let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                    let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                    let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                    let mut store = |r: usize, v| _mm256_storeu_ps(to.as_mut_ptr().add((j + r) * 16 + i), v);
                    store(0, _mm256_shuffle_ps::<0x44>(ab, cd));
                    store(1, _mm256_shuffle_ps::<0xee>(ab, cd));
                    store(2, _mm256_shuffle_ps::<0x44>(ab_high, cd_high));
                    store(3, _mm256_shuffle_ps::<0xee>(ab_high, cd_high));
                }
            }
        }
    }
}
