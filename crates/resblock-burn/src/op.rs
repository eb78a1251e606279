//! The border: burn's tensors unwrapped, and the fused operation in burn's graph.
//!
//! burn's `#[backend_extension]` generates a routing for a fixed list of tensors, and panics where it has no route. A block has 2 to 12 parameters, a chain any
//! number, and a wrong device is to be an error; so the tensors are taken out of their dispatch here, as that routing does it.

use crate::call::Call;
use crate::error::Error;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, BackendTensor, DispatchAutodiffContext, DispatchKindConversion, DispatchTensor, DispatchTensorKind, Flex,
    TensorMetadata,
};
use burn::tensor::{DType, GradientCheckpointingStrategy, Tensor};
use std::sync::Arc;

/// The graph of a call: None where no tensor is on an autodiff device.
pub(crate) type Graph = Option<GradientCheckpointingStrategy>;

/// A tensor of a call.
pub(crate) struct Operand {
    pub(crate) values: FlexTensor,
    /// Its node, if it is tracked.
    pub(crate) node: Option<NodeGuard>,
}

impl Operand {
    /// Takes a tensor out of burn's dispatch, and joins its graph to that of the tensors before it.
    pub(crate) fn new<const D: usize>(
        tensor: Tensor<D>,
        name: impl Fn() -> String,
        graph: &mut Graph,
    ) -> Result<Self, Error> {
        let DispatchTensor { kind, autodiff } = tensor.into_dispatch();
        if let DispatchAutodiffContext::Enabled(strategy) = autodiff
            && *graph.get_or_insert(strategy) != strategy
        {
            return Err(Error::Checkpointing { operand: name() });
        }
        let dtype = kind.dtype();
        if dtype != DType::F32 {
            return Err(Error::Type { operand: name(), found: dtype });
        }
        let elsewhere =
            |kind: &DispatchTensorKind| Error::Device { operand: name(), found: format!("{:?}", kind.device()) };
        match kind {
            DispatchTensorKind::Flex(BackendTensor::Float(values)) => Ok(Self { values, node: None }),
            DispatchTensorKind::Autodiff(inner) => match *inner {
                DispatchTensorKind::Flex(BackendTensor::Autodiff(tensor)) => {
                    let tracked = tensor.is_tracked();
                    let (values, node) = tensor.into_parts();
                    Ok(Self { values, node: tracked.then_some(node) })
                }
                other => Err(elsewhere(&other)),
            },
            other => Err(elsewhere(&other)),
        }
    }
}

/// A result that no gradient goes through.
pub(crate) fn constant<const D: usize>(y: FlexTensor, graph: Graph) -> Tensor<D> {
    type Plain = FloatTensor<Autodiff<Flex>>;
    match graph {
        None => Tensor::from_primitive::<Flex>(y),
        Some(GradientCheckpointingStrategy::Disabled) => wrap::<D, NoCheckpointing>(Plain::new(y)),
        Some(GradientCheckpointingStrategy::Balanced) => wrap::<D, BalancedCheckpointing>(Plain::new(y)),
    }
}

/// Result of a call whose gradients go to `nodes`: those of x and of parameters that are tracked, in the order of [`Call::backward`].
pub(crate) fn tracked<const D: usize>(
    y: FlexTensor,
    call: Call,
    nodes: Vec<NodeGuard>,
    strategy: GradientCheckpointingStrategy,
) -> Result<Tensor<D>, Error> {
    match strategy {
        GradientCheckpointingStrategy::Disabled => {
            Ok(wrap::<D, NoCheckpointing>(record::<NoCheckpointing>(y, call, nodes)?))
        }
        GradientCheckpointingStrategy::Balanced => {
            Ok(wrap::<D, BalancedCheckpointing>(record::<BalancedCheckpointing>(y, call, nodes)?))
        }
    }
}

fn wrap<const D: usize, C: CheckpointStrategy>(y: FloatTensor<Autodiff<Flex>>) -> Tensor<D>
where
    DispatchTensor: DispatchKindConversion<Autodiff<Flex, C>>,
{
    Tensor::from_primitive::<Autodiff<Flex, C>>(y)
}

/// Puts the operation in the graph. The number of its parents is a constant to burn: the next power of two.
fn record<C: CheckpointStrategy>(
    y: FlexTensor,
    call: Call,
    nodes: Vec<NodeGuard>,
) -> Result<FloatTensor<Autodiff<Flex>>, Error> {
    macro_rules! by_parents {
        ($($n:literal)*) => {
            match nodes.len().next_power_of_two() {
                $($n => Ok(record_parents::<C, $n>(y, call, nodes)),)*
                _ => Err(Error::TooMany { most: [$($n),*].into_iter().max().unwrap_or(0), found: nodes.len() }),
            }
        };
    }
    by_parents!(1 2 4 8 16 32 64 128 256 512 1024)
}

fn record_parents<C: CheckpointStrategy, const N: usize>(
    y: FlexTensor,
    call: Call,
    nodes: Vec<NodeGuard>,
) -> FloatTensor<Autodiff<Flex>> {
    // Places that are left over have a node that nobody tracks, and no parent in the graph.
    let nobody = (nodes.len() < N).then(|| FloatTensor::<Autodiff<Flex>>::new(y.clone()));
    let mut nodes = nodes.into_iter();
    let nodes = std::array::from_fn(|_| match (nodes.next(), &nobody) {
        (Some(node), _) => node,
        (None, Some(nobody)) => nobody.node(),
        (None, None) => unreachable!("a node for each of {N} places"),
    });
    match Backward::<Flex, N>::prepare::<C>(FusedBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(Arc::new(call), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

/// The backward pass of the fused operation.
#[derive(Debug)]
struct FusedBackward;

impl<const N: usize> Backward<Flex, N> for FusedBackward {
    type State = Arc<Call>;

    fn backward(self, ops: Ops<Arc<Call>, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let made = ops.state.backward(dy).unwrap_or_else(|error| panic!("resblock: {error}"));
        for (node, grad) in ops.parents.into_iter().flatten().zip(made) {
            grads.register::<Flex>(node.id, grad);
        }
    }
}
