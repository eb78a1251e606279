//! The adapter against burn's own operations and against the core crate.

mod common;
mod contract;
mod gradients;
mod training;
