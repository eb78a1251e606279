//! The tuning numbers above the loops over tiles: how a batch is cut into blocks of rows, the hidden width into chunks, a long
//! chain into k blocks, and when another thread pays. docs/tuning.md says how each was measured.

use super::caches::caches;
use super::panels::PANEL;
use crate::simd::Isa;

/// Sizes of the blocks that a call is cut into. They change speed, never bits; tests set them absurdly small so that every loop
/// iterates. 0, the default of each, stands for a size chosen by the caches of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Blocking {
    /// Most rows of the batch in one block: a task of one thread, resident in L2. 0: 128 to 256, by L2 and the widths of the
    /// layers.
    pub rows: usize,
    /// Most hidden columns computed before the second GEMM of a block consumes them (rounded up to a multiple of 16). 0: 256 to
    /// 1024, by L2.
    pub hidden: usize,
    /// Length of the pieces that a chain is run in (rounded up to a multiple of 16); the last may be longer by an eighth. 0: 128 to
    /// 1024, by L1 and the instruction set.
    pub depth: usize,
}

impl Blocking {
    /// Hidden columns of a chunk: a positive multiple of 16.
    pub(crate) fn hidden_chunk(&self) -> usize {
        // With 128 rows, a chunk then is half of L2.
        let most = if self.hidden == 0 { (caches().l2 >> 10).clamp(256, 1024) } else { self.hidden };
        most.min(1 << 30).next_multiple_of(PANEL)
    }

    /// Length of a k block on instruction set `isa`: a positive multiple of 16.
    pub(crate) fn k_block(&self, isa: Isa) -> usize {
        let most = match (self.depth, isa) {
            // 2 panels x 1024 x 64 B = 128 KiB stream from L2 for each tile, 9 B a cycle: no slower than from L1 where measured.
            (0, Isa::Avx512) => 1024,
            // One panel for 12 vectors of accumulators: 11 B a cycle, which a smaller core does not stream. Half of L1 holds it.
            (0, _) => (half_l1() / PANEL).clamp(128, 1024),
            (depth, _) => depth,
        };
        most.min(1 << 30).next_multiple_of(PANEL)
    }

    /// Most rows of a block, through layers whose widest has `width` inputs and hidden columns together.
    pub(crate) fn most_rows(&self, width: usize) -> usize {
        // More rows: weights are streamed, transposed and their gradients passed over less often. Fewer: x and h, and in training
        // dz and dy, stay in L2. 128 rows are ten tiles of 12 and 13.
        if self.rows == 0 { (block_floats() / width.max(1)).clamp(128, 256) } else { self.rows }
    }
}

/// Floats that half of L1 holds: what is written there to be read again soon, beside what streams through.
pub(super) fn half_l1() -> usize {
    caches().l1 / 2 / size_of::<f32>()
}

/// Floats of x and h in one block of rows: five eighths of L2. Measured on an L2 of 1 MiB, training: 256 rows gain 1 to 2 % over
/// 128 up to widths of 256 + 256 and lose 1 % at 512 + 512; forward hardly differs between 70 and 256 rows. On 512 KiB, forward
/// at 256 + 256: 160 rows gain 2 % over 256.
fn block_floats() -> usize {
    caches().l2 / 8 * 5 / size_of::<f32>()
}

/// Multiply-adds for each thread that make a parallel region worth its barrier, where backward cuts a deep stack into regions:
/// some 70 microseconds against 1 to 2.
pub(crate) const REGION_WORK: usize = 8_000_000;

/// Whether the gradient of `weights` weights from `rows` rows goes past the caches: if there is 4 MiB of it, and so few rows that
/// writing it is the work. A line that is stored the ordinary way is first read, and 4 MiB drive from L2, and in the end from L3, the
/// weights that every step reads twice.
///
/// With AVX-512 (Zen 5, which streams 41 GB/s and writes 74 to L3) a training step of one row at 768 and 3072 features took 1.18 ms
/// instead of 1.44, and lost 5 % on 4 and on 8 rows. Without (Zen 3), steps of 4 and 5 rows took 9 to 25 % less time, too.
pub(crate) fn streams_gradient(isa: Isa, rows: usize, weights: usize) -> bool {
    let most_rows = if isa == Isa::Avx512 { 2 } else { 5 };
    rows <= most_rows && weights >= 1 << 20
}
