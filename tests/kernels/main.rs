//! What kernels compute: the bits of the sequential oracle, the numbers within their bounds, and nothing else touched. One binary of many
//! modules, since each binary compiles and links the library's generic code again: `cargo test --test kernels forward::` runs one of them.

#[path = "../common/mod.rs"]
mod common;

mod activation;
mod backward;
mod bounds;
mod concurrency;
mod family;
mod forward;
mod fpu;
mod gradcheck;
mod guard_pages;
mod ieee;
mod layers;
mod numerics;
mod pack;
mod program;
mod reference;
mod sharing;
mod statistics;
