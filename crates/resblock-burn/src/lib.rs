#![doc = include_str!("../README.md")]

mod call;
mod engine;
mod error;
mod initial;
mod layer;
mod op;
mod packed;
mod params;
mod view;

pub use error::Error;
pub use layer::Fused;
pub use resblock;
pub use resblock::Formula;
