//! Sizes of the caches of a core, as the CPU tells them: what block sizes are cut to.

use std::sync::OnceLock;

/// Bytes of the data caches that a core has for itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caches {
    pub(crate) l1: usize,
    pub(crate) l2: usize,
}

/// What is assumed where the CPU does not tell: the least that a CPU with wide vectors has.
const LEAST: Caches = Caches { l1: 32 << 10, l2: 512 << 10 };

/// The caches of this CPU. Asked for once: in a virtual machine the instruction takes microseconds.
///
/// L3 is not asked for. It is shared, in a virtual machine with strangers, and what is reported there is often that of the host.
pub(crate) fn caches() -> Caches {
    static CACHES: OnceLock<Caches> = OnceLock::new();
    *CACHES.get_or_init(|| told().unwrap_or(LEAST))
}

#[cfg(target_arch = "x86_64")]
fn told() -> Option<Caches> {
    use raw_cpuid::{CacheType, CpuId};
    let size = |level: u8| {
        let caches = CpuId::new().get_cache_parameters()?;
        let data = caches.filter(|c| c.level() == level && c.cache_type() != CacheType::Instruction);
        data.map(|c| c.associativity() * c.physical_line_partitions() * c.coherency_line_size() * c.sets()).max()
    };
    // A hypervisor may report anything.
    let plausible = |bytes: &usize| (8 << 10..=64 << 20).contains(bytes);
    Some(Caches { l1: size(1).filter(plausible)?, l2: size(2).filter(plausible)? })
}

#[cfg(not(target_arch = "x86_64"))]
fn told() -> Option<Caches> {
    None
}
