//! Sizes of the caches of a core, as the CPU tells them: what block sizes are cut to.

use std::sync::OnceLock;

/// Bytes of the data caches that a core has for itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caches {
    pub(crate) l1: usize,
    pub(crate) l2: usize,
    /// MB/s from the cache that all share, of one core and of all.
    pub(crate) shared_mb_per_s: (u32, u32),
}

/// What is assumed where the CPU does not tell: the least that a CPU with wide vectors has.
const LEAST: Caches = Caches { l1: 32 << 10, l2: 512 << 10, shared_mb_per_s: FAR };

/// The caches of this CPU. Asked for once: in a virtual machine the instruction takes microseconds.
///
/// L3 is not asked for. It is shared, in a virtual machine with strangers, and what is reported there is often that of the host.
pub(crate) fn caches() -> Caches {
    static CACHES: OnceLock<Caches> = OnceLock::new();
    *CACHES.get_or_init(|| told().unwrap_or(LEAST))
}

/// An L3 that all cores have together, as on Intel's servers: measured on Emerald Rapids, 26 GB/s for one core, 210 for sixteen. Taken for
/// the rule where nothing is known.
const FAR: (u32, u32) = (25_000, 300_000);
/// An L3 among a few cores, as AMD has it: 130 GB/s for one core of Zen 5.
#[cfg(target_arch = "x86_64")]
const NEAR: (u32, u32) = (80_000, 640_000);

#[cfg(target_arch = "x86_64")]
fn told() -> Option<Caches> {
    use raw_cpuid::{CacheType, CpuId};
    let size = |level: u8| {
        let caches = CpuId::new().get_cache_parameters()?;
        let data = caches.filter(|c| c.level() == level && c.cache_type() != CacheType::Instruction);
        data.map(|c| c.associativity() * c.physical_line_partitions() * c.coherency_line_size() * c.sets()).max()
    };
    let amd = CpuId::new().get_vendor_info().is_some_and(|vendor| vendor.as_str() == "AuthenticAMD");
    let shared_mb_per_s = if amd { NEAR } else { FAR };
    // A hypervisor may report anything.
    let plausible = |bytes: &usize| (8 << 10..=64 << 20).contains(bytes);
    Some(Caches { l1: size(1).filter(plausible)?, l2: size(2).filter(plausible)?, shared_mb_per_s })
}

#[cfg(not(target_arch = "x86_64"))]
fn told() -> Option<Caches> {
    None
}
