//! What the fuzzers do with a case: one module for each target, each with a `Case` that libFuzzer's bytes are read as and a `run`
//! that panics where the crate breaks a promise.
//!
//! Cases are checked against the oracles of the tests (`tests/common`). `.ci/fuzz` builds and runs everything here.

pub mod activation;
pub mod checkpoint;
pub mod digits;
pub mod input;
pub mod layers;
pub mod optim_loss;
pub mod views;

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../examples/digits/data.rs"]
#[allow(dead_code, reason = "the parser is what is under test; training uses the rest")]
mod data;
