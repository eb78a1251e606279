//! The files of the door, as they are. `RUSTFLAGS='--cfg loom' cargo test` runs it through every order of events.
#![allow(dead_code, reason = "of the door, the model takes what it needs")]

#[cfg(all(test, loom))]
#[path = "../../../src/team/door.rs"]
mod door;
#[cfg(all(test, loom))]
#[path = "../../../src/team/model.rs"]
mod model;
#[cfg(all(test, loom))]
#[path = "../../../src/team/sync.rs"]
mod sync;
