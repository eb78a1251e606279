//! The program: what a network computes, as data.
//!
//! A network is compiled once, when it is made, into a list of parts; each part has the steps of its forward pass, those of its
//! adjoint, and the sums over the batch that its parameters' gradients are. Steps read and write *values*: matrices with a row for
//! each row of the batch. A program names values and nothing else; where they lie is a plan's business (`memory`), who runs the
//! steps on which rows the executor's (`crate::run`).
//!
//! ```text
//!   part 0: forward  x -> [gemm, act] -> h -> [gemm, add x] -> y         row-local steps, depth-first over parts
//!   part 1: ...                  the input of part 1 is y of part 0
//!   part 1: backward dy -> [gemm, times slope] -> dz -> [gemm, add dy] -> dx
//!           sums     dW2 = dyᵀ h, dW1 = dzᵀ x                            over the batch, once rows have been through
//!   part 0: ...
//! ```
//!
//! Parts are compiled by `crate::parts`: each emits its forward steps and hands over its adjoint, which is emitted once all parts
//! are there, from the last down. A value of the way forward that some adjoint reads is kept: nobody lists what goes on record.

pub(crate) mod build;
pub(crate) mod form;
pub(crate) mod lower;
pub(crate) mod memory;
pub(crate) mod norm;
pub(crate) mod step;

use crate::error::{Error, expect_len};
use crate::gemm::panels::{PANEL, panels};
use form::Form;
use std::{fmt, iter};
use step::{Grad, Step, Val};

/// What is known of a value before it has a home.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value {
    pub(crate) cols: usize,
    /// What formulas call it.
    pub(crate) name: &'static str,
    /// The part that computes it.
    pub(crate) part: usize,
    /// Whether an adjoint or a sum over the batch reads it.
    pub(crate) read: bool,
    /// Where it starts in a row block of the record, in floats a row; None if no adjoint reads it.
    pub(crate) kept: Option<usize>,
    /// The number of the vector of parameters that every row of it is, if it is one.
    pub(crate) vector: Option<usize>,
    /// Where it starts among the statistics of a call, if it is one of the batch: of running averages, where a call takes its own.
    pub(crate) statistic: Option<usize>,
}

impl Value {
    /// Floats of a row in panels.
    pub(crate) fn width(&self) -> usize {
        wide(self.cols)
    }
}

/// A part of a network: a layer or a block.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) form: Form,
    /// Whether its inputs alone go on record.
    pub(crate) recompute: bool,
    /// Its result.
    pub(crate) y: Val,
    pub(crate) forward: Vec<Step<Val>>,
    /// What backward begins with: the steps forward whose results it needs and the record does not have.
    pub(crate) again: Vec<Step<Val>>,
    pub(crate) backward: Vec<Step<Val>>,
    pub(crate) grads: Vec<Grad>,
    /// Multiply-adds of a forward pass, for one row.
    pub(crate) work: usize,
    /// Floats of record for each row that computing again saves.
    pub(crate) saves: usize,
    /// Columns that a row block of the part keeps in cache: those of its input, and of the hidden values or the output.
    pub(crate) width: usize,
}

/// A compiled network.
#[allow(unreachable_pub, reason = "seals the public trait `Layer`: nameable by nobody outside")]
pub struct Program {
    pub(crate) parts: Vec<Part>,
    pub(crate) values: Vec<Value>,
    /// (inputs, outputs) of each affine map.
    pub(crate) affines: Vec<(usize, usize)>,
    /// Length of each vector of parameters, and whether it is learned: is no running average.
    pub(crate) vectors: Vec<usize>,
    pub(crate) learned: Vec<bool>,
    pub(crate) y: Val,
    pub(crate) dx: Val,
    /// Multiply-adds of a forward pass for one row.
    pub(crate) work: usize,
    pub(crate) widest: usize,
    /// Floats of record for each row, None if that overflows.
    pub(crate) record_width: Option<usize>,
    /// Floats of the statistics of a batch: those that a record holds, and with those of a backward pass.
    pub(crate) statistics: (usize, usize),
    /// Equal for programs of equal forms: by it a record is known.
    pub(crate) fingerprint: u64,
}

/// Columns with the padding of their last panel.
pub(crate) fn wide(cols: usize) -> usize {
    panels(cols) * PANEL
}

impl Program {
    /// The forms that it was compiled from, and of which the inputs alone go on record.
    pub(crate) fn outline(&self) -> impl Iterator<Item = (Form, bool)> + Clone {
        self.parts.iter().map(|part| (part.form, part.recompute))
    }

    /// The forms that it was compiled from.
    pub(crate) fn forms(&self) -> impl Iterator<Item = Form> + Clone {
        self.parts.iter().map(|part| part.form)
    }

    /// Columns of x.
    pub(crate) fn inputs(&self) -> usize {
        self.values.first().map_or(0, |x| x.cols)
    }

    /// Columns of y.
    pub(crate) fn outputs(&self) -> usize {
        self.value(self.y).cols
    }

    #[inline]
    pub(crate) fn value(&self, val: Val) -> &Value {
        &self.values[val.index()]
    }

    /// Every value, with its number.
    pub(crate) fn vals(&self) -> impl Iterator<Item = (Val, &Value)> {
        self.values.iter().enumerate().map(|(i, value)| (Val::new(i), value))
    }

    /// Mean and variance of each BatchNorm: the number of the vector that is its running average, and where it is among the statistics of a batch.
    pub(crate) fn running(&self) -> impl Iterator<Item = ((usize, usize), (usize, usize))> {
        let mut all = self.values.iter().filter_map(|value| Some((value.vector?, value.statistic?)));
        iter::from_fn(move || Some((all.next()?, all.next()?)))
    }

    /// That the weights handed to a call are those that the program was compiled for: parameters can be replaced one by one.
    pub(crate) fn check(
        &self,
        shape: impl Fn(usize) -> Option<(usize, usize)>,
        len: impl Fn(usize) -> Option<usize>,
    ) -> Result<(), Error> {
        for (i, &expected) in self.vectors.iter().enumerate() {
            expect_len("vector", expected, len(i).unwrap_or(0))?;
        }
        for (i, &(inputs, outputs)) in self.affines.iter().enumerate() {
            let found = shape(i).unwrap_or((0, 0));
            if found != (inputs, outputs) {
                let expected = (outputs, inputs);
                return Err(Error::Shape { operand: "weights", expected, found: (found.1, found.0) });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({} parts, {} values)", self.parts.len(), self.values.len())
    }
}

/// FNV-1a of what the forms say of themselves.
fn fingerprint(parts: &[Part]) -> u64 {
    let forms = parts.iter().map(|part| format!("{:?}{};", part.form, if part.recompute { ", again" } else { "" }));
    forms
        .flat_map(String::into_bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
