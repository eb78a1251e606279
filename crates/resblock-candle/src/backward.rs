//! A backward pass whose gradients of variables are stored as they are made.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use std::cell::RefCell;

thread_local! {
    /// What the backward passes of [`backward`] on this thread, one in another, have collected: variables and their gradients.
    static COLLECTING: RefCell<Vec<Vec<(Tensor, Tensor)>>> = const { RefCell::new(Vec::new()) };
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
    /// What is collected from here on; taken off again however the pass ends.
    struct Collection;
    impl Drop for Collection {
        fn drop(&mut self) {
            COLLECTING.with_borrow_mut(Vec::pop);
        }
    }
    COLLECTING.with_borrow_mut(|all| all.push(Vec::new()));
    let collection = Collection;
    let mut grads = loss.backward()?;
    let collected = COLLECTING.with_borrow_mut(|all| all.last_mut().map(std::mem::take)).unwrap_or_default();
    drop(collection);
    for (variable, grad) in collected {
        let grad = match grads.remove(&variable) {
            Some(others) => others.add(&grad)?,
            None => grad,
        };
        grads.insert(&variable, grad);
    }
    Ok(grads)
}

/// Hands over the gradient of an argument: None if it is collected, which candle allows of variables alone.
pub(crate) fn offer(argument: &Tensor, grad: Option<Tensor>) -> Option<Tensor> {
    if !argument.is_variable() {
        return grad;
    }
    COLLECTING.with_borrow_mut(|all| match (all.last_mut(), grad) {
        (Some(collected), Some(grad)) => {
            collected.push((argument.clone(), grad));
            None
        }
        (_, grad) => grad,
    })
}
