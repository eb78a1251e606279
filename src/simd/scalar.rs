//! Portable lanes in an array: the fallback (4 lanes), the odd-width test set (3 lanes) and the single lane that the sequential
//! oracle and `Activation::value` run on. No intrinsics: this file is the meaning of each operation, spelled out.

use super::{Kernel, Simd};

/// Keeps tiles apart, as the other sets do: merged into one function, they take the compiler minutes.
#[inline(never)]
fn enter<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
    kernel.run(s)
}

macro_rules! array_simd {
    ($(#[$doc:meta])* $name:ident, lanes $lanes:literal, tile $mr:literal x $np:literal, grad tile $gmr:literal x $gnp:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name;

        impl Simd for $name {
            type V = [f32; $lanes];
            type Row = [[f32; $lanes]; 16_usize.div_ceil($lanes)];
            type M = [bool; $lanes];
            const LANES: usize = $lanes;
            const MR: usize = $mr;
            const NP: usize = $np;
            const GRAD_MR: usize = $gmr;
            const GRAD_NP: usize = $gnp;

            #[inline(always)]
            fn row(self, v: Self::V) -> Self::Row {
                [v; 16_usize.div_ceil($lanes)]
            }
            #[inline(always)]
            fn call<K: Kernel>(self, kernel: K) -> K::Output {
                enter(self, kernel)
            }
            #[inline(always)]
            unsafe fn load_ptr(self, src: *const f32) -> Self::V {
                // SAFETY: the caller promises LANES readable floats; arrays of f32 have the alignment of f32.
                unsafe { src.cast::<Self::V>().read() }
            }
            #[inline(always)]
            fn load(self, src: &[f32]) -> Self::V {
                std::array::from_fn(|i| src.get(i).copied().unwrap_or(0.0))
            }
            #[inline(always)]
            fn store(self, dst: &mut [f32], v: Self::V) {
                for (d, x) in dst.iter_mut().zip(v) {
                    *d = x;
                }
            }
            #[inline(always)]
            fn splat(self, x: f32) -> Self::V {
                [x; $lanes]
            }
            #[inline(always)]
            fn add(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] + b[i])
            }
            #[inline(always)]
            fn sub(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] - b[i])
            }
            #[inline(always)]
            fn mul(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i])
            }
            #[inline(always)]
            fn div(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] / b[i])
            }
            #[inline(always)]
            fn sqrt(self, a: Self::V) -> Self::V {
                a.map(f32::sqrt)
            }
            #[inline(always)]
            fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
            }
            #[inline(always)]
            fn fms(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i].mul_add(b[i], -c[i]))
            }
            #[inline(always)]
            fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
            }
            #[inline(always)]
            fn min(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn max(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn gt(self, a: Self::V, b: Self::V) -> Self::M {
                std::array::from_fn(|i| a[i] > b[i])
            }
            #[inline(always)]
            fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if m[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn abs(self, a: Self::V) -> Self::V {
                a.map(f32::abs)
            }
            #[inline(always)]
            fn with_sign(self, a: Self::V, sign: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i].copysign(sign[i]))
            }
            #[inline(always)]
            fn ldexp(self, v: Self::V, n: Self::V) -> Self::V {
                // Two normal factors whose product is 2^n: the first multiplication is exact, the second rounds, once.
                let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
                std::array::from_fn(|i| {
                    let n = n[i] as i32;
                    v[i] * power(n >> 1) * power(n - (n >> 1))
                })
            }
        }
    };
}

array_simd!(
    /// The fallback for CPUs without one of the other sets.
    Scalar, lanes 4, tile 4 x 1, grad tile 4 x 1
);
array_simd!(
    /// Three lanes: 16 columns are five vectors and a third of one. Only tests use it.
    Odd, lanes 3, tile 2 x 1, grad tile 3 x 2
);
array_simd!(
    /// One lane: a scalar function in the vector vocabulary.
    One, lanes 1, tile 1 x 1, grad tile 1 x 1
);
