//! A backward pass whose gradients of variables are stored as they are made.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId};
use std::cell::RefCell;
use std::collections::HashSet;

thread_local! {
    /// The backward passes of [`backward`] on this thread, one in another.
    static COLLECTING: RefCell<Vec<Collection>> = const { RefCell::new(Vec::new()) };
}

/// A backward pass: the nodes of its graph, and what it has collected of them: variables and their gradients. An operation may differentiate another graph
/// in its own backward pass, whose nodes are not among these.
struct Collection {
    nodes: HashSet<TensorId>,
    collected: Vec<(Tensor, Tensor)>,
}

/// The same gradients as `loss.backward()`, sooner: candle makes a matrix of zeros for every variable and adds the gradient to it, two passes over memory
/// beside the one that wrote it, which for a batch of few rows take longer than all else. Here the gradients that this crate makes of variables are stored
/// as they are. Where a variable has others, too, they are added, after all of candle's.
///
/// On a thread of a rayon pool it is `loss.backward()`: such a thread may, while it waits, work at another graph.
///
/// # Errors
/// Those of `loss.backward()`.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    if rayon::current_thread_index().is_some() {
        return loss.backward();
    }
    /// Takes the collection off again, however the pass ends.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            COLLECTING.with_borrow_mut(Vec::pop);
        }
    }
    let nodes = loss.sorted_nodes().into_iter().map(Tensor::id).collect();
    COLLECTING.with_borrow_mut(|all| all.push(Collection { nodes, collected: Vec::new() }));
    let end = End;
    let mut grads = loss.backward()?;
    let last = |all: &mut Vec<Collection>| all.last_mut().map(|last| std::mem::take(&mut last.collected));
    let collected = COLLECTING.with_borrow_mut(last).unwrap_or_default();
    drop(end);
    for (variable, grad) in collected {
        let grad = match grads.remove(&variable) {
            Some(others) => others.add(&grad)?,
            None => grad,
        };
        grads.insert(&variable, grad);
    }
    Ok(grads)
}

/// Hands over the gradient of an argument of `node`: None if it is collected, which candle allows of variables alone.
pub(crate) fn offer(node: &Tensor, argument: &Tensor, grad: Option<Tensor>) -> Option<Tensor> {
    if !argument.is_variable() {
        return grad;
    }
    COLLECTING.with_borrow_mut(|all| match (all.last_mut().filter(|last| last.nodes.contains(&node.id())), grad) {
        (Some(last), Some(grad)) => {
            last.collected.push((argument.clone(), grad));
            None
        }
        (_, grad) => grad,
    })
}
