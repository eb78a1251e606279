//! Which instruction sets there are: the one list behind dispatch, tests and benches, and the only reader of the environment.

use super::scalar::{Odd, Scalar};
use super::{Kernel, Simd};
use crate::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};

/// An instruction set that kernels are compiled for. All give the same bits.
///
/// `Isa` names a set; whether this CPU has it is [`Isa::is_available`], and [`crate::Context`] accepts no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// x86-64 with AVX-512F: 16 lanes, 32 registers.
    Avx512,
    /// x86-64 with AVX2 and FMA: 8 lanes, 16 registers.
    Avx2,
    /// 64-bit Arm: 4 lanes, 32 registers.
    Neon,
    /// Portable code over `f32::mul_add`: right everywhere, fast nowhere.
    Scalar,
    /// Three lanes and tiny tiles, so that every edge path is taken on small matrices. For tests.
    #[doc(hidden)]
    Odd,
}

/// Fastest first.
const ALL: [Isa; 5] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Scalar, Isa::Odd];

impl Isa {
    /// The name used in `RESBLOCK_ISA`, in benchmark ids and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Scalar => "scalar",
            Isa::Odd => "odd",
        }
    }

    /// True if this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => is_x86_feature_detected!("avx512f") && Isa::Avx2.is_available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Isa::Scalar | Isa::Odd => true,
            #[allow(unreachable_patterns, reason = "which sets are left over depends on the target")]
            _ => false,
        }
    }

    /// Every set that this CPU can run, fastest first.
    pub fn available() -> IsaList {
        IsaList
    }

    /// The set to use: `RESBLOCK_ISA` if it is set and not blank, else the fastest available. Read once, then remembered.
    ///
    /// # Errors
    /// [`Error::Isa`] if `RESBLOCK_ISA` names a set that does not exist or that this CPU does not have. A bad name is never
    /// passed over in silence.
    pub fn detect() -> Result<Isa, Error> {
        static CHOICE: OnceLock<Result<Isa, Error>> = OnceLock::new();
        CHOICE
            .get_or_init(|| {
                let name = std::env::var_os("RESBLOCK_ISA").unwrap_or_default();
                match name.to_string_lossy().trim() {
                    "" => Ok(Isa::available().into_iter().next().unwrap_or(Isa::Scalar)),
                    name => name.parse(),
                }
            })
            .clone()
    }

    /// The set for work whose result no set could change, in calls without a context: that of [`Isa::detect`], or the portable one.
    pub(crate) fn for_copies() -> Isa {
        Self::detect().unwrap_or(Isa::Scalar)
    }

    /// Enters this instruction set and runs `kernel` there.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            // SAFETY: `Context::with_isa` and `Isa::detect`, the only sources of an `Isa` that kernels run on, checked
            // `is_available`, which tests exactly the features that these tokens stand for.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { Avx512::new() }.call(kernel),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { Avx2::new() }.call(kernel),
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { Neon::new() }.call(kernel),
            Isa::Odd => Odd.call(kernel),
            #[allow(unreachable_patterns, reason = "which sets are left over depends on the target")]
            _ => Scalar.call(kernel),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    /// Parses a name as in [`Isa::name`], in letters of either case, with or without blanks around it; a set that this CPU lacks is
    /// an error, as an unknown one is.
    fn from_str(name: &str) -> Result<Self, Error> {
        let unknown =
            || Error::Isa { source_name: "RESBLOCK_ISA", requested: name.into(), available: IsaList.to_string() };
        IsaList.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name.trim())).ok_or_else(unknown)
    }
}

/// The instruction sets of this CPU, fastest first: iterate over it, or print it. (Printed, it leaves out the set for tests.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsaList;

impl IntoIterator for IsaList {
    type Item = Isa;
    type IntoIter = std::iter::Filter<std::array::IntoIter<Isa, 5>, fn(&Isa) -> bool>;

    fn into_iter(self) -> Self::IntoIter {
        ALL.into_iter().filter(|isa| isa.is_available())
    }
}

impl fmt::Display for IsaList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, isa) in self.into_iter().filter(|&isa| isa != Isa::Odd).enumerate() {
            write!(f, "{}{isa}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
