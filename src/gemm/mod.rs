//! The engine: panels, the micro-kernel and the loops around it, entered through safe functions that check their operands.
//!
//! Glossary. *a*: the broadcast operand, *b*: the vector operand, *out* or *c*: the result. *panel*: 16 columns of a matrix,
//! row after row. *mr*, *np*: rows and panels of a register *tile*. *micro-kernel*: the k loop of a tile. *macro-kernel*: the
//! loops over tiles. *epilogue*: what happens to finished accumulators before they are stored. *block of rows*: the part of a
//! batch that one task works on.

pub(crate) mod batch_norm;
pub(crate) mod blocking;
pub(crate) mod buffers;
pub(crate) mod caches;
pub(crate) mod cells;
pub(crate) mod column_sums;
pub(crate) mod epilogue;
pub(crate) mod factor;
mod lanes;
pub(crate) mod macro_kernel;
mod micro;
pub(crate) mod moments;
pub(crate) mod norm;
mod outer;
pub(crate) mod pack;
pub(crate) mod panel_mat;
pub(crate) mod panels;
mod prefetch;
pub(crate) mod start;
