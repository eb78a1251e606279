//! What the benches and `examples/measure` share: a problem, and two ways to run it. Included as a module by each of them.

pub(crate) mod borrowed;
pub(crate) mod form;
pub(crate) mod fused;
pub(crate) mod problem;
#[allow(unsafe_code, reason = "the interface of matrixmultiply is raw pointers; one function checks and calls it")]
pub(crate) mod unfused;

use resblock::Error;

/// A way to run a problem.
pub(crate) trait Runner {
    /// Inference: the output, nothing kept.
    fn forward(&mut self) -> Result<(), Error>;
    /// Forward and backward: every gradient, that of the input included. The weights count as changed since the last step.
    fn train(&mut self) -> Result<(), Error>;
    /// What the last call left.
    fn results(&self) -> Result<Results, Error>;
}

/// Results of a run. Weight gradients are (inputs, outputs), as the problem's weights are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Results {
    pub(crate) y: Vec<f32>,
    pub(crate) dx: Vec<f32>,
    /// The gradient of each of the problem's parameters, in their order.
    pub(crate) grads: Vec<Vec<f32>>,
}
