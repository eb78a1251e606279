//! The cost model: how long a call would take on so many threads, cut in this way or that.
//!
//! It knows four things: the rate of fused multiply-adds of a core; the bytes that a piece moves, and from which level; whole tiles; and what
//! a phase and a thread of it cost. That is enough to rank ways to cut a batch, which is all it is asked to do; docs/design.md compares its
//! predictions with measurements. Times are in nanoseconds.

use super::shares::{Shares, Sum, columns, cut_sums};
use crate::context::Machine;
use crate::gemm::macro_kernel::TileSizes;
use crate::gemm::panels::{PANEL, panels};
use crate::program::Program;
use crate::team::pieces::Grid;

/// What kind of pass it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Infer,
    /// A recorded forward pass: its row blocks are those of the backward pass that follows, too.
    Forward,
    Backward,
}

/// A call whose time is to be known.
#[derive(Clone, Copy)]
pub(crate) struct Cost<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) program: &'a Program,
    pub(crate) tiles: TileSizes,
    pub(crate) n: usize,
}

/// Bytes of a number.
const F32: f64 = size_of::<f32>() as f64;
/// The part of the time that bytes take from other cores' caches or from L3 which computing does not hide.
const EXPOSED: f64 = 0.4;

impl Cost<'_> {
    /// The time of a pass.
    pub(crate) fn pass(&self, pass: Pass, shares: Shares) -> f64 {
        let rows = match pass {
            Pass::Infer => self.rows(false, shares),
            Pass::Forward => self.rows(false, shares) + self.rows(true, shares) + self.sums(shares),
            Pass::Backward => self.rows(true, shares) + self.sums(shares),
        };
        rows + self.call(shares.threads)
    }

    /// What threads cost a call, and a phase.
    fn call(&self, threads: usize) -> f64 {
        if threads == 1 { 0.0 } else { f64::from(self.machine.call_ns) * threads as f64 }
    }

    pub(crate) fn phase(&self, threads: usize) -> f64 {
        let Machine { phase_ns, thread_ns, .. } = *self.machine;
        if threads == 1 { 0.0 } else { f64::from(phase_ns) + f64::from(thread_ns) * threads as f64 }
    }

    /// The part of the weights that a thread finds in its L2 where it read the same ones in the last call, `share` of all of them. Caches
    /// are not strict about what they keep: the part falls from 1 where they fill nine tenths of it to 0 where they are a seventh more than it holds.
    fn kept(&self, share: f64) -> f64 {
        let weights: f64 = self.program.affines.iter().map(|&(k, m)| k as f64 * m as f64 * F32).sum();
        let filled = weights * share / (f64::from(self.machine.l2_kib) * 1024.0);
        ((1.15 - filled) / 0.25).clamp(0.0, 1.0)
    }

    /// The row-local steps, forward or backward.
    fn rows(&self, adjoint: bool, shares: Shares) -> f64 {
        let Shares { threads, rows, across, unit } = shares;
        let blocks = self.n.div_ceil(rows.max(1));
        let used = if across == 1 { threads.min(blocks).max(1) } else { threads };
        let kept = self.kept(if across == 1 { 1.0 } else { 1.0 / across.min(threads) as f64 });
        let mut time = 0.0;
        for &(inputs, outputs) in &self.program.affines {
            let (k, cols) = if adjoint { (outputs, inputs) } else { (inputs, outputs) };
            let grid =
                if across == 1 { Grid::of_rows(blocks, rows) } else { columns(blocks, rows, cols, across, unit) };
            let width = if across == 1 { cols } else { cols.min(grid.panels * PANEL) };
            let each = self.piece(rows.min(self.n), k, width, adjoint, (kept, used));
            // With columns shared, the other operand comes from caches of others.
            let moved = if across == 1 { 0.0 } else { rows as f64 * k as f64 * F32 / self.l3(used) };
            let turns = grid.pieces().div_ceil(used).max(1) as f64;
            time += turns * (each + EXPOSED * moved) + if across == 1 { 0.0 } else { self.phase(used) };
        }
        // One phase for all of it; or one more, in which what enters is brought into panels.
        time + self.phase(used)
    }

    /// A GEMM of one piece, whose weights are in L2 in part.
    fn piece(&self, rows: usize, k: usize, cols: usize, adjoint: bool, (kept, threads): (f64, usize)) -> f64 {
        let whole = (panels(cols) * PANEL) as f64;
        let rate = f64::from(self.machine.fma_per_us) * self.tiles.efficiency(rows, panels(cols)) / 1000.0;
        let fma = rows as f64 * k as f64 * whole / rate;
        let bytes = k as f64 * whole * F32;
        let (near, far) = (bytes * kept / self.l2(), bytes * (1.0 - kept) / self.l3(threads));
        // A transposition takes as long as three passes over the weights in L2 (0.35 cycles for an element, Intel).
        let turned = if adjoint { 3.0 * bytes / self.l2() } else { 0.0 };
        // What comes from L2 comes while tiles compute; of what comes from afar, a part is waited for.
        fma.max(near + far) + EXPOSED * far.min(fma) + turned
    }

    fn l2(&self) -> f64 {
        f64::from(self.machine.l2_mb_per_s) / 1000.0
    }

    /// Bytes a nanosecond from L3 or from another core, of one of so many threads.
    fn l3(&self, threads: usize) -> f64 {
        let Machine { l3_mb_per_s, l3_all_mb_per_s, .. } = *self.machine;
        f64::from(l3_mb_per_s).min(f64::from(l3_all_mb_per_s) / threads as f64) / 1000.0
    }

    /// The sums over the batch.
    fn sums(&self, shares: Shares) -> f64 {
        let Shares { threads, rows, .. } = shares;
        let blocks = self.n.div_ceil(rows.max(1)) as f64;
        let mut cut = Vec::new();
        cut_sums(self.program, &self.program.parts, self.n, threads, self.tiles, &mut cut);
        let (mut time, mut longest) = (0.0, 0.0f64);
        for part in &cut {
            let pieces = part.grid.pieces() as f64;
            let one = match part.what {
                Sum::Columns { b, times } => {
                    let reads = if times.is_some() { 2.0 } else { 1.0 };
                    reads * self.n as f64 * self.program.value(b).cols as f64 * F32 / self.l3(threads)
                }
                Sum::All { b, .. } => 2.0 * self.n as f64 * self.program.value(b).cols as f64 * F32 / self.l3(threads),
                Sum::Product { a, b } => {
                    let (inputs, outputs) = (self.program.value(a).cols, self.program.value(b).cols);
                    let fma = self.n as f64 * (inputs * outputs) as f64 / f64::from(self.machine.fma_per_us) * 1000.0;
                    // The gradient is read and written once for each row block, where short chains start and end; operands are read once for each piece beside another.
                    let gradient = 3.0 * blocks * (inputs * outputs) as f64 * F32 / self.l2();
                    let Grid { down, across, .. } = part.grid;
                    let operands = self.n as f64 * (inputs * across + outputs * down) as f64 * F32 / self.l3(threads);
                    fma + gradient + if threads == 1 { 0.0 } else { EXPOSED * operands }
                }
            } / pieces;
            (time, longest) = (time + one * pieces, longest.max(one));
        }
        // Threads end within a piece of each other.
        let uneven = if threads == 1 { 0.0 } else { 0.5 * longest };
        (time / threads as f64).max(longest) + uneven + self.phase(threads)
    }
}

/// More threads have to take so much of the time of fewer, and so much where they share columns, whose phases wait for the slowest of them
/// again and again; columns so much of the time of rows. What the model does not know, chance above all, is against them.
const WORTH: f64 = 0.97;
const WORTH_COLUMNS: f64 = 0.9;
const WORTH_SHARING: f64 = 0.95;

impl Cost<'_> {
    /// The best way to share a pass on up to `most` threads, in row blocks of `rows`, or, where these are free, of up to so many.
    pub(crate) fn best(&self, pass: Pass, most: usize, fixed: Option<usize>, most_rows: usize) -> (Shares, f64) {
        let alone = fixed.unwrap_or_else(|| even(self.n, self.n.div_ceil(most_rows.max(1))));
        let one = Shares { threads: 1, rows: alone, across: 1, unit: self.tiles.panels };
        let (mut best, mut least) = (one, self.pass(pass, one));
        if most <= 1 || self.n == 0 {
            return (best, least);
        }
        for threads in steps(most).filter(|&t| t > 1) {
            let mut mine: Option<(Shares, f64)> = None;
            for across in steps(threads) {
                let blocks = threads.div_ceil(across);
                let rows = fixed.unwrap_or_else(|| {
                    let needed = self.n.div_ceil(most_rows.max(1)).max(1);
                    even(self.n, needed.next_multiple_of(blocks))
                });
                let shares = Shares { threads, rows, across, unit: self.tiles.panels };
                let time = self.pass(pass, shares);
                if mine.is_none_or(|(other, least)| time < least * if other.across == 1 { WORTH_SHARING } else { 1.0 })
                {
                    mine = Some((shares, time));
                }
            }
            if let Some((shares, time)) = mine
                && time < least * if shares.across == 1 { WORTH } else { WORTH_COLUMNS }
            {
                (best, least) = (shares, time);
            }
        }
        (best, least)
    }
}

/// Rows of a block, where `n` rows are cut into so many of nearly equal size.
fn even(n: usize, blocks: usize) -> usize {
    n.div_ceil(blocks.max(1)).max(1)
}

/// 1, 2, 3, 4, 6, 8, 12, … up to `most`, and that itself.
fn steps(most: usize) -> impl Iterator<Item = usize> {
    let doubles = (0..usize::BITS).map_while(move |i| 1usize.checked_shl(i).filter(|&power| power < most));
    doubles.flat_map(move |power| [power, power + power / 2]).filter(move |&t| t < most).chain([most]).filter({
        let mut last = 0;
        move |&t| std::mem::replace(&mut last, t) < t
    })
}
