#![doc = include_str!("../README.md")]
#![warn(rustdoc::broken_intra_doc_links)]

#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
struct Embedding;

mod activation;
pub mod bounds;
#[cfg(feature = "safetensors")]
mod checkpoint;
mod context;
mod error;
#[allow(
    unsafe_code,
    reason = "the k loop reads operands through pointers; macro_kernel checks them once for each call"
)]
mod gemm;
mod layers;
mod loss;
mod mat;
mod matrix;
#[cfg(feature = "ndarray")]
mod ndarray;
mod optim;
mod params;
mod parts;
mod peak;
mod program;
mod random;
pub mod reference;
mod run;
#[allow(unsafe_code, reason = "intrinsics, and the crossing into code compiled for an instruction set")]
mod simd;
#[allow(unsafe_code, reason = "threads that outlive no call: the door proves it, and pieces that no two of them share")]
mod team;
mod weights;

pub use activation::Activation;
#[cfg(feature = "safetensors")]
pub use checkpoint::{Checkpoint, Leftovers, SavedOptimizer, Snapshot, TensorInfo};
pub use context::{Context, Machine};
pub use error::Error;
#[cfg(feature = "safetensors")]
pub use error::checkpoint::CheckpointError;
pub use gemm::blocking::Blocking;
pub use layers::block::Block;
pub use layers::formula::Formula;
pub use layers::functional::Functional;
pub use layers::init::{Init, Scheme};
pub use layers::keep::Keep;
pub use layers::linear::Linear;
pub use layers::norm::NormLayer;
pub use layers::sequence::{Node, Sequence};
pub use layers::stack::{Stack, StackConfig};
pub use layers::{GradMode, GradientFlow, Layer, Pass};
pub use loss::{
    BinaryCrossEntropy, CrossEntropy, Divisor, Huber, SquaredError, mean_squared_error, softmax_cross_entropy,
};
pub use mat::{MatMut, MatRef, rows_of, rows_of_mut};
pub use matrix::Matrix;
pub use optim::{AdamW, Group, Optimizer, RateDecay, Schedule, Select, Sgd};
pub use params::borrowed::{AffineGradMut, AffineRef, GradsMut, ParamsRef};
pub use params::convention::{Convention, Stored};
pub use params::gradients::Gradients;
pub use params::name::{Part, Place, Role, TensorName};
pub use params::summary::GradientSummary;
pub use params::tensor::{TensorMut, TensorRef};
pub use peak::{KernelBench, Peak, fma_peak, read_bandwidth};
pub use program::form::{BlockForm, BranchScale, Dropout, Skip};
pub use program::norm::{Norm, NormKind};
pub use random::Draw;
pub use run::explain::{Explanation, Purpose};
pub use run::record::Record;
pub use run::workspace::Workspace;
pub use simd::{Isa, IsaList};
pub use team::host::{HostPool, Job};
pub use team::par::Par;
pub use team::parallel_for::within_parallel_for;
pub use team::within_pool;
pub use weights::{Affine, Vector, Weights};
