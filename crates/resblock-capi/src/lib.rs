#![doc = include_str!("../README.md")]
#![allow(unsafe_code, reason = "every function takes pointers: `memory` says what the caller vouches for")]
#![allow(clippy::missing_safety_doc, reason = "the contract of all of them is the header's: README, \"Who owns what\"")]

mod call;
mod context;
mod form;
mod function;
mod layer;
mod memory;
mod optim;
mod status;

pub use call::*;
pub use context::*;
pub use form::*;
pub use function::*;
pub use layer::*;
pub use memory::{ConstMatrix, Gradient, Matrix, Parameter};
pub use optim::*;
pub use status::{Status, resblock_last_error, resblock_version};
