//! Tests that start processes: this binary again, with one of its ignored tests in another environment, or an example.
//! `cargo test --test processes isa::` runs one module of them.

#[path = "../common/mod.rs"]
mod common;

mod checkpoint_files;
mod examples;
mod isa;
mod pools;
mod resume;
mod sharded_files;
