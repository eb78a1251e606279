//! The SIMD floor: one small trait, one file for each instruction set, one list of them all.
//!
//! Kernels are written once, generic over [`Simd`], and enter an instruction set through [`Isa::run`], the only crossing from
//! ordinary code into code compiled for that set. Three rules keep that code fast:
//!
//! 1. Everything between a [`Kernel::run`] and an intrinsic is `#[inline(always)]`. A function that is not inlined is compiled
//!    without the instruction set, and each intrinsic in it becomes a call.
//! 2. No rayon inside a kernel: a closure handed to another thread is not inlined here. Threads are above, SIMD below.
//! 3. A large body that should not be merged into its caller goes through [`Simd::call`], which crosses into the same
//!    instruction set again in a function of its own, with a register allocation of its own.
//!
//! Meaning is fixed by this trait, not by what a CPU's instruction happens to do, so that every set gives the same bits:
//! `fma` rounds once, `min`/`max` return the second operand unless the comparison holds, division and square root are IEEE.

mod isa;
pub(crate) mod math;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use isa::{Isa, IsaList};
pub(crate) use scalar::One;

/// A computation written once for every instruction set.
pub(crate) trait Kernel {
    /// What the computation returns.
    type Output;
    /// Runs on instruction set `s`. Implementations are `#[inline(always)]` (rule 1 above).
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// One instruction set: a zero-sized token that vectors of `LANES` f32 are made with.
///
/// A token proves that the CPU has the set: only [`Isa::run`] makes tokens for sets that need detection, after detecting them.
///
/// `MR`, `NP`: the register tile. A GEMM tile has up to `MR` rows and `NP` panels of 16 columns; a weight-gradient tile up to
/// `GRAD_MR` and `GRAD_NP` (its rows come out of one panel, so `GRAD_MR` divides 16 well). The budget is in each file.
pub(crate) trait Simd: Copy {
    /// `LANES` values of f32.
    type V: Copy;
    /// The 16 columns of one row of a panel: an array of `PANEL.div_ceil(LANES)` vectors.
    type Row: Copy + AsRef<[Self::V]> + AsMut<[Self::V]>;
    /// One truth value for each lane.
    type M: Copy;
    const LANES: usize;
    const MR: usize;
    const NP: usize;
    const GRAD_MR: usize;
    const GRAD_NP: usize;

    /// A panel row with the same vector throughout.
    fn row(self, v: Self::V) -> Self::Row;
    /// Runs `kernel` in a function of its own, compiled for this instruction set.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    /// # Safety
    /// `LANES` floats can be read at `src`.
    unsafe fn load_ptr(self, src: *const f32) -> Self::V;
    /// Asks for the cache line at `src`. Any address: a prefetch never faults.
    #[inline(always)]
    fn prefetch(self, _src: *const f32) {}
    /// Writes past the caches, where the set can; [`Simd::fence`] before anything else is done with the memory.
    ///
    /// # Safety
    /// `LANES` floats can be written at `dst`, which is aligned to all of them; nothing else accesses them before the fence.
    #[inline(always)]
    unsafe fn stream_ptr(self, dst: *mut f32, v: Self::V) {
        // SAFETY: the caller promises LANES writable floats that are its own.
        self.store(unsafe { std::slice::from_raw_parts_mut(dst, Self::LANES) }, v);
    }
    /// Ends a series of streamed writes.
    #[inline(always)]
    fn fence(self) {}
    /// Reads the first `min(src.len(), LANES)` lanes; the others are 0.
    fn load(self, src: &[f32]) -> Self::V;
    /// Writes the first `min(dst.len(), LANES)` lanes.
    fn store(self, dst: &mut [f32], v: Self::V);

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a * b - c, rounded once.
    fn fms(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// c - a * b, rounded once.
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// a > b, false where either is NaN.
    fn gt(self, a: Self::V, b: Self::V) -> Self::M;
    /// `if m { a } else { b }`.
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V;
    /// a with its sign bit cleared.
    fn abs(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` (which must not be negative) with the sign of `sign`.
    fn with_sign(self, a: Self::V, sign: Self::V) -> Self::V;
    /// v * 2^n rounded once, for integral n in -252 ..= 254 and |v| in [2^-20, 2^20] (or v NaN).
    fn ldexp(self, v: Self::V, n: Self::V) -> Self::V;

    /// `to` = transpose of 16 rows of 16, which lie `stride` apart in `from`.
    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32; 256]) {
        for i in 0..16 {
            for j in 0..16 {
                to[i * 16 + j] = from[j * stride + i];
            }
        }
    }
}
