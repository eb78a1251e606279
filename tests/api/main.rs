//! What callers meet: errors, views, losses, optimisers, saved networks, and what the sources promise. One binary of many modules:
//! `cargo test --test api errors::` runs one of them.

#[path = "../common/mod.rs"]
mod common;

mod auto_traits;
mod checkpoint;
mod conventions;
mod errors;
mod fuzz;
mod losses;
mod modules;
mod optimizers;
mod training;
mod unsafe_code;
mod views;
