//! What is fused: the stages that networks are made of, and how a batch goes through them.
//!
//! A network is a list of [`Stage`]s. Rows of a batch are independent on the way forward and for input gradients, so a block of
//! rows goes through all stages, one after the other, while it is in L2; blocks of rows are what threads share, without a
//! barrier between stages (`forward`, and the row phase of `backward`). Weight gradients sum over the batch, so they are cut by
//! output panels instead (`weight_gradients`).
//!
//! A training forward leaves a *tape*: for each row block one piece of memory, and in it, stage after stage, what backward
//! reads, all in panels:
//!
//! ```text
//!   row block 0: [x s h] [x s h] ...    row block 1: [x s h] [x s h] ...
//!                stage 0 stage 1
//! ```
//!
//! x: input; s: slope phi'(z) of the activation, unless h tells it; h: hidden activation of a block.

pub(crate) mod backward;
pub(crate) mod forward;
mod weight_gradients;

use crate::Activation;
use crate::context::Context;
use crate::gemm::blocking::{fewest_rows, useful_threads};
use crate::gemm::cells::Out;
use crate::gemm::panels::{PANEL, PanelMut, panels};
use crate::mat::{MatMut, MatRef};
use crate::weights::Affine;

/// One layer as the engine sees it.
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub, missing_docs, reason = "seals the public trait `Layer`: nameable by nobody outside")]
pub enum Stage<'a> {
    /// y = phi(x Wᵀ + b) (+ x).
    Linear { affine: &'a Affine, phi: Activation, skip: bool },
    /// y = phi(x W1ᵀ + b1) W2ᵀ + b2 (+ x).
    Block { first: &'a Affine, second: &'a Affine, phi: Activation, skip: bool },
}

impl<'a> Stage<'a> {
    pub(crate) fn inputs(&self) -> usize {
        match self {
            Stage::Linear { affine, .. } | Stage::Block { first: affine, .. } => affine.inputs(),
        }
    }

    pub(crate) fn outputs(&self) -> usize {
        match self {
            Stage::Linear { affine, .. } | Stage::Block { second: affine, .. } => affine.outputs(),
        }
    }

    /// The weight layers of the stage, in order.
    pub(crate) fn affines(&self) -> impl Iterator<Item = &'a Affine> + use<'a> {
        let (first, second) = match *self {
            Stage::Linear { affine, .. } => (affine, None),
            Stage::Block { first, second, .. } => (first, Some(second)),
        };
        std::iter::once(first).chain(second)
    }

    /// Multiply-adds of a forward pass, for one row.
    fn work(&self) -> usize {
        self.affines().map(|a| a.inputs().saturating_mul(a.outputs())).fold(0, usize::saturating_add)
    }

    /// Columns that a row block of the stage keeps in cache: those of x, and of h or y.
    fn width(&self) -> usize {
        let (Stage::Linear { affine, .. } | Stage::Block { first: affine, .. }) = self;
        affine.inputs().saturating_add(affine.outputs())
    }

    /// Floats for each row of the batch in the slots of the stage's tape.
    fn slots(&self) -> Slots {
        let x = wide(self.inputs());
        match self {
            // With an activation of its own, the slope is kept, whatever the activation: the output may have a skip in it.
            Stage::Linear { phi: Activation::Identity, .. } => Slots { x, slope: 0, h: 0 },
            Stage::Linear { affine, .. } => Slots { x, slope: wide(affine.outputs()), h: 0 },
            Stage::Block { first, phi, .. } => {
                let h = wide(first.outputs());
                Slots { x, slope: if phi.differentiates_from_output() { 0 } else { h }, h }
            }
        }
    }

    /// Floats for each row of the batch in dz, the gradient before the activation; 0 where that is dy itself.
    fn dz_width(&self) -> usize {
        match self {
            Stage::Linear { phi: Activation::Identity, .. } => 0,
            Stage::Linear { affine, .. } | Stage::Block { first: affine, .. } => wide(affine.outputs()),
        }
    }
}

/// Widths of the slots of a stage, in floats a row.
#[derive(Debug, Clone, Copy)]
struct Slots {
    x: usize,
    slope: usize,
    h: usize,
}

impl Slots {
    fn total(&self) -> usize {
        self.x + self.slope + self.h
    }

    /// Cuts the tape of a stage and `rows` rows into its slots.
    fn cut<'t>(&self, tape: &'t mut [f32], rows: usize) -> Cut<'t> {
        let (x, tape) = tape.split_at_mut(self.x * rows);
        let (slope, tape) = tape.split_at_mut(self.slope * rows);
        Cut { x, slope, h: &mut tape[..self.h * rows] }
    }
}

/// The slots of a stage.
struct Cut<'t> {
    x: &'t mut [f32],
    slope: &'t mut [f32],
    h: &'t mut [f32],
}

/// Columns with the padding of their last panel.
fn wide(cols: usize) -> usize {
    panels(cols) * PANEL
}

/// A network as the engine sees it: its stages by number, so that no list is allocated for a call. Used as a trait object: the
/// engine is compiled once, here, not again for each network type in each crate that uses one.
#[allow(unreachable_pub, reason = "seals the public trait `Layer`: nameable by nobody outside")]
pub trait Stages: Sync {
    /// Number of stages, at least one.
    fn len(&self) -> usize;
    /// Stage `index`.
    fn stage(&self, index: usize) -> Stage<'_>;
}

impl dyn Stages + '_ {
    fn iter(&self) -> impl Iterator<Item = Stage<'_>> {
        (0..self.len()).map(|i| self.stage(i))
    }

    /// Multiply-adds of a forward pass, for one row.
    fn work(&self) -> usize {
        self.iter().map(|s| s.work()).fold(0, usize::saturating_add)
    }

    /// Floats of tape for each row of the batch, or None if that overflows.
    fn tape_width(&self) -> Option<usize> {
        self.iter().map(|s| s.slots().total()).try_fold(0, usize::checked_add)
    }
}

/// How a batch is shared out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Rows of a block.
    pub(crate) rows: usize,
    /// Threads that take blocks of rows.
    pub(crate) row_threads: usize,
    /// Threads that share the columns of each GEMM, where there are too few rows to share.
    pub(crate) column_threads: usize,
}

impl Plan {
    /// For `n` rows through a network, in training or not.
    pub(crate) fn new(ctx: &Context, net: &dyn Stages, n: usize, training: bool) -> Self {
        let (work, stage_work) = (net.work(), net.iter().map(|s| s.work()).max().unwrap_or(0));
        let width = net.iter().map(|s| s.width()).max().unwrap_or(0);
        let threads = ctx.par().threads_for(useful_threads(n.saturating_mul(work)));
        let few = fewest_rows(stage_work, training);
        let rows = ctx.blocking().row_block(n, threads, few, width);
        let blocks = n.div_ceil(rows);
        if blocks >= threads {
            return Self { rows, row_threads: threads, column_threads: 1 };
        }
        // A block of rows has two GEMMs and a barrier after each: half of its work must be worth a wake-up.
        let column_threads = ctx.par().threads_for(useful_threads(n.saturating_mul(stage_work) / 2));
        if blocks <= 1 && column_threads > 1 {
            Self { rows, row_threads: 1, column_threads }
        } else {
            Self { rows, row_threads: blocks.max(1), column_threads: 1 }
        }
    }
}

/// Where the rows of a result go.
pub(crate) enum Sink<'a> {
    /// To the caller's row-major matrix, by the kernels themselves.
    Rows(MatMut<'a>),
    /// To panels of so many columns, row block after row block; the caller's matrix has other strides and is filled afterwards.
    Staged(&'a mut [f32], usize),
}

impl<'a> Sink<'a> {
    /// Cuts off the next `rows` rows.
    fn take(&mut self, rows: usize) -> Dest<'a> {
        match self {
            Sink::Rows(m) => Dest::Rows(m.take_rows(rows)),
            Sink::Staged(data, cols) => {
                let (head, tail) = std::mem::take(data).split_at_mut(rows * panels(*cols) * PANEL);
                *data = tail;
                Dest::Panels(PanelMut::new(head, rows, *cols))
            }
        }
    }
}

/// The part of a result that belongs to one row block.
pub(crate) enum Dest<'a> {
    Rows(crate::mat::RowsMut<'a>),
    Panels(PanelMut<'a>),
}

impl<'a> From<Dest<'a>> for Out<'a> {
    fn from(dest: Dest<'a>) -> Self {
        match dest {
            Dest::Rows(rows) => rows.into(),
            Dest::Panels(panels) => panels.into(),
        }
    }
}

impl Dest<'_> {
    fn reborrow(&mut self) -> Dest<'_> {
        match self {
            Dest::Rows(r) => Dest::Rows(crate::mat::RowsMut { data: r.data, ..*r }),
            Dest::Panels(p) => Dest::Panels(p.reborrow()),
        }
    }
}

/// One block of rows: its part of the input, of the tape and of the result.
pub(crate) struct RowBlock<'a> {
    pub(crate) input: MatRef<'a>,
    /// Skip given from outside.
    pub(crate) skip: Option<MatRef<'a>>,
    pub(crate) tape: &'a mut [f32],
    pub(crate) dest: Dest<'a>,
}

/// Cuts a batch into blocks of rows, for forward.
pub(crate) struct RowBlocks<'a> {
    pub(crate) input: MatRef<'a>,
    pub(crate) skip: Option<MatRef<'a>>,
    pub(crate) tape: &'a mut [f32],
    /// Floats of tape a row.
    pub(crate) tape_width: usize,
    pub(crate) sink: Sink<'a>,
    pub(crate) rows: usize,
    pub(crate) next_row: usize,
}

impl<'a> Iterator for RowBlocks<'a> {
    type Item = RowBlock<'a>;

    fn next(&mut self) -> Option<RowBlock<'a>> {
        let rows = self.rows.min(self.input.rows() - self.next_row);
        if rows == 0 {
            return None;
        }
        let (tape, rest) = std::mem::take(&mut self.tape).split_at_mut(rows * self.tape_width);
        self.tape = rest;
        let block = RowBlock {
            input: self.input.row_range(self.next_row, rows),
            skip: self.skip.map(|s| s.row_range(self.next_row, rows)),
            tape,
            dest: self.sink.take(rows),
        };
        self.next_row += rows;
        Some(block)
    }
}

/// Cuts panels into pieces for the threads that share a GEMM's columns: (first panel, panels) each.
fn column_pieces(columns: usize, threads: usize) -> impl Iterator<Item = (usize, usize)> + Send {
    let total = panels(columns);
    let size = total.div_ceil(threads.max(1)).max(1);
    (0..total).step_by(size).map(move |p| (p, size.min(total - p)))
}
