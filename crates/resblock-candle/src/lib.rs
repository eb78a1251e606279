#![doc = include_str!("../README.md")]

mod adamw;
mod backward;
mod call;
mod engine;
mod initial;
mod layer;
mod op;
mod params;
mod view;

pub use adamw::AdamW;
pub use backward::backward;
pub use layer::{Evaluated, Fused};
pub use resblock;
pub use resblock::Formula;
