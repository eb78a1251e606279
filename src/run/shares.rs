//! Shares: how work is cut into pieces for the threads of a call.

use crate::gemm::column_sums::WIDE;
use crate::gemm::macro_kernel::TileSizes;
use crate::gemm::panels::{PANEL, panels};
use crate::program::lower::Operand;
use crate::program::step::{Grad, Step, Val};
use crate::program::{Part, Program};
use crate::team::pieces::{Grid, Part as SumPart};

/// How a batch is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Shares {
    /// Threads that share the work.
    pub(crate) threads: usize,
    /// Rows of a block.
    pub(crate) rows: usize,
    /// Pieces that the columns of each GEMM are cut into: 1, where a row block goes through all steps on one thread; with more, all blocks go
    /// through each step before the next begins.
    pub(crate) across: usize,
    /// Panels that tiles take side by side.
    pub(crate) unit: usize,
}

impl Shares {
    /// How a step on `blocks` row blocks is cut, where columns are shared.
    pub(crate) fn grid(&self, blocks: usize, step: &Step<Operand>) -> Grid {
        match step {
            Step::Gemm(g) => columns(blocks, self.rows, g.out.cols, self.across, self.unit),
            _ => Grid::of_rows(blocks, self.rows),
        }
    }
}

/// Row blocks, with `cols` columns cut into up to `across` equal pieces: of whole tiles, where they are more than one.
pub(super) fn columns(blocks: usize, rows: usize, cols: usize, across: usize, unit: usize) -> Grid {
    let all = panels(cols).max(1);
    let size = all.div_ceil(across);
    let size = if size > unit { size.next_multiple_of(unit) } else { size };
    Grid { down: blocks, rows, panels: size, across: all.div_ceil(size) }
}

/// A sum over the batch: of which two values dW is the product, of which one, or of the products of which two, a vector is the sum of
/// columns, or one number the sum of all.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sum {
    Product { a: Val, b: Val },
    Columns { b: Val, times: Option<Val> },
    All { b: Val, times: Val },
}

/// Targets of an affine map: dW, and then db. Those of all vectors come after those of all maps.
pub(crate) const TARGETS: usize = 2;

/// Pieces of weight gradients for each thread: so many that the last one to finish is not far behind, and the thread that has one piece more
/// than another works a sixth longer.
const SUMS_PER_THREAD: usize = 6;
/// Multiply-adds that a piece of a weight gradient has at least, some 1.5 microseconds.
const LEAST_SUM: usize = 150_000;

/// Cuts the gradients of some parts for so many threads, each into equal pieces, larger ones into more; the highest numbers first.
pub(crate) fn cut_sums(
    program: &Program,
    parts: &[Part],
    rows: usize,
    threads: usize,
    tiles: TileSizes,
    cut: &mut Vec<SumPart<Sum>>,
) {
    let work = |map: usize| program.affines[map].0.saturating_mul(program.affines[map].1);
    let grads = || parts.iter().flat_map(|part| &part.grads);
    let maps =
        grads().filter_map(|grad| if let Grad::Affine { affine, .. } = grad { Some(work(*affine)) } else { None });
    let all = maps.fold(0, usize::saturating_add);
    let start = cut.len();
    let lines = |cols: usize| {
        let across = panels(cols).max(1);
        let wide = if threads == 1 { across } else { WIDE };
        Grid { down: 1, rows: PANEL, panels: wide, across: across.div_ceil(wide) }
    };
    for grad in grads() {
        let vectors = TARGETS * program.affines.len();
        let (affine, a, b) = match *grad {
            Grad::Affine { affine, a, b } => (affine, a, b),
            Grad::Columns { vector, b, times } => {
                let (grid, what) = (lines(program.vectors[vector]), Sum::Columns { b, times });
                cut.push(SumPart { target: vectors + vector, grid, before: 0, what });
                continue;
            }
            Grad::Rows { vector, b, times } => {
                let (grid, what) = (lines(1), Sum::All { b, times });
                cut.push(SumPart { target: vectors + vector, grid, before: 0, what });
                continue;
            }
        };
        let ((inputs, outputs), dw) = (program.affines[affine], TARGETS * affine);
        let least = rows.saturating_mul(work(affine)) / LEAST_SUM;
        let share = threads.saturating_mul(SUMS_PER_THREAD).saturating_mul(work(affine)).div_ceil(all.max(1));
        let count = if threads == 1 { 1 } else { share.min(least).max(1) };
        // First by panels of the vector operand, in groups that a tile takes; then by those of the other.
        let (across, down) = (panels(outputs).max(1), panels(inputs).max(1));
        let groups = across.div_ceil(tiles.grad_panels);
        let wide = across.div_ceil(groups.min(count));
        let high = down.div_ceil(count.div_ceil(groups).min(down));
        let grid = Grid { down: down.div_ceil(high), rows: high * PANEL, panels: wide, across: across.div_ceil(wide) };
        let what = Sum::Columns { b, times: None };
        cut.push(SumPart { target: dw + 1, grid: lines(outputs), before: 0, what });
        cut.push(SumPart { target: dw, grid, before: 0, what: Sum::Product { a, b } });
    }
    let cut = &mut cut[start..];
    cut.sort_unstable_by_key(|part| usize::MAX - part.target);
    let mut before = 0;
    for part in cut {
        part.before = before;
        before += part.grid.pieces();
    }
}
