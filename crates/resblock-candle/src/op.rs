//! The operations of candle's graph.
//!
//! An operation of candle 0.11 has at most three arguments, and a gradient for each or none. A block has more: x, W1, b1, W2, b2, and others. So parameters
//! are arguments of *carriers*, whose result is a single 0 that depends on them; the fused operation takes x and the results of at most two carriers. Its backward pass makes all gradients at once and puts them by under a key; the key is the gradient of what the carriers
//! made, from where it comes to these, later, as candle sees to it that an operation comes after all that use its result. They then hand out what was put
//! by. So nothing is copied, in either direction, and every gradient is one that candle asked for:
//!
//! ```text
//! W1 b1 W2 ─▶ carrier ─▶ 0 ┐                  dy ─▶ fused ─▶ dx, key ─▶ carrier ─▶ dW1 db1 dW2
//!         b2 ─▶ carrier ─▶ 0 ┼▶ fused ─▶ y                  └─▶ carrier ─▶ db2
//!               x  ──────────┘
//! ```

use crate::backward::offer;
use crate::call::Call;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// An argument of an operation beside x.
#[derive(Debug, Clone, Copy)]
enum Argument {
    /// A parameter, by its number.
    Parameter(usize),
    /// The result of a carrier.
    Carried,
}

/// The call on x, as an operation whose gradients reach x and all parameters that want one.
pub(crate) fn apply(call: &Arc<Call>, x: &Tensor, tensors: &[Tensor]) -> Result<Tensor> {
    let wanted = call.wanted.iter().enumerate().filter(|(_, wanted)| **wanted);
    let mut arguments: Vec<_> = wanted.map(|(at, _)| (Argument::Parameter(at), tensors[at].clone())).collect();
    while arguments.len() > 2 {
        // Three become one; of three that are left, two.
        let count = if arguments.len() == 3 { 2 } else { 3 };
        let rest = arguments.split_off(count);
        let carried = carry(call, &arguments)?;
        arguments = rest;
        arguments.push((Argument::Carried, carried));
    }
    // No parameter is an argument of the fused operation itself: candle holds its lock there, and the call reads it under another.
    for argument in &mut arguments {
        if let (Argument::Parameter(_), _) = argument {
            *argument = (Argument::Carried, carry(call, std::slice::from_ref(argument))?);
        }
    }
    let fused = FusedOp { call: Arc::clone(call) };
    match &arguments[..] {
        [] => x.apply_op1(fused),
        [(_, a)] => x.apply_op2(a, fused),
        [(_, a), (_, b), ..] => x.apply_op3(a, b, fused),
    }
}

fn carry(call: &Arc<Call>, arguments: &[(Argument, Tensor)]) -> Result<Tensor> {
    let carrier =
        Carrier { call: Arc::clone(call), arguments: arguments.iter().map(|(argument, _)| *argument).collect() };
    match arguments {
        [(_, a)] => a.apply_op1(carrier),
        [(_, a), (_, b)] => a.apply_op2(b, carrier),
        [(_, a), (_, b), (_, c)] => a.apply_op3(b, c, carrier),
        _ => candle_core::bail!("resblock: a carrier of {} arguments", arguments.len()),
    }
}

/// The fused operation of x and of what carriers made.
struct FusedOp {
    call: Arc<Call>,
}

impl FusedOp {
    /// dx, and the key to the gradients of parameters.
    fn gradients(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, grads) = self.call.backward(x, dy)?;
        let waiting = grads.iter().any(Option::is_some);
        let key = waiting.then(|| Tensor::new(self.call.put_by(grads), dy.device())).transpose()?;
        Ok((offer(y, x, dx), key))
    }
}

const NAME: &str = "resblock";

impl CustomOp1 for FusedOp {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.call.forward(x, layout)
    }
    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(x, y, dy)?.0)
    }
}

impl CustomOp2 for FusedOp {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.call.forward(x, layout)
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, y, dy)
    }
}

impl CustomOp3 for FusedOp {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.call.forward(x, layout)
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Three> {
        let (dx, key) = self.gradients(x, y, dy)?;
        Ok((dx, key.clone(), key))
    }
}

/// Gradients of three arguments.
type Three = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// Carries gradients from the fused operation to parameters.
struct Carrier {
    call: Arc<Call>,
    arguments: Vec<Argument>,
}

impl Carrier {
    fn result() -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn gradients(&self, own: &Tensor, key: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let number = key.to_vec0::<f32>()?;
        let mut all = [None, None, None];
        for (argument, grad) in self.arguments.iter().zip(&mut all) {
            *grad = match *argument {
                Argument::Parameter(at) => offer(own, self.call.parameter(at), self.call.take(number, at)?),
                Argument::Carried => Some(key.clone()),
            };
        }
        Ok(all)
    }
}

impl CustomOp1 for Carrier {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::result()
    }
    fn bwd(&self, _: &Tensor, own: &Tensor, key: &Tensor) -> Result<Option<Tensor>> {
        let [a, ..] = self.gradients(own, key)?;
        Ok(a)
    }
}

impl CustomOp2 for Carrier {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::result()
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, own: &Tensor, key: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b, _] = self.gradients(own, key)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Carrier {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::result()
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, own: &Tensor, key: &Tensor) -> Result<Three> {
        let [a, b, c] = self.gradients(own, key)?;
        Ok((a, b, c))
    }
}
