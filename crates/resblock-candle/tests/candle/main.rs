//! The adapter against candle's own operations and against the core crate.

mod common;
mod contract;
mod gradients;
