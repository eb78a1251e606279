//! A program in the making: parts emit their steps here, and leave their adjoints.

use super::form::Form;
use super::step::{Grad, Port, Step, Use, Val};
use super::{Part, Program, Value, fingerprint};
use crate::error::Error;
use crate::gemm::buffers::room;
use crate::random::Mask;

/// A vector of parameters: its number in the network, and the value that it is in formulas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vector {
    pub(crate) number: usize,
    pub(crate) val: Val,
}

/// The adjoint of a part: from the gradient of its output to that of its input.
type Adjoint = Box<dyn FnOnce(&mut Builder, Val) -> Val>;

/// A program in the making.
#[derive(Default)]
pub(crate) struct Builder {
    parts: Vec<Part>,
    values: Vec<Value>,
    affines: Vec<(usize, usize)>,
    vectors: Vec<usize>,
    /// Floats of statistics.
    statistics: usize,
    adjoints: Vec<Adjoint>,
    /// The part whose steps are being emitted, and whether those of its adjoint.
    part: usize,
    backward: bool,
}

/// Masks that a part may have.
const MASKS_OF_A_PART: u32 = 4;

/// Values that a part makes, at most; more of them cost a reallocation.
const VALUES_OF_A_PART: usize = 8;
/// Affine maps of a part, usually.
const AFFINES_OF_A_PART: usize = 2;

impl Builder {
    /// With room for so many parts.
    pub(crate) fn new(parts: usize) -> Result<Self, Error> {
        let mut builder = Self::default();
        room(&mut builder.parts, parts)?;
        room(&mut builder.adjoints, parts)?;
        room(&mut builder.values, (parts + 1).saturating_mul(VALUES_OF_A_PART))?;
        room(&mut builder.affines, parts.saturating_mul(AFFINES_OF_A_PART))?;
        Ok(builder)
    }

    /// Begins the next part; `recompute`: whether its inputs alone go on record.
    pub(crate) fn begin(&mut self, form: Form, recompute: bool) {
        self.part = self.parts.len();
        let (forward, again, backward, grads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (y, width) = (Val::new(0), form.inputs());
        self.parts.push(Part { form, recompute, y, forward, again, backward, grads, work: 0, saves: 0, width });
    }

    /// Ends the part at hand, whose result is `y`.
    pub(crate) fn end(&mut self, y: Val) {
        self.parts[self.part].y = y;
    }

    /// A value of `cols` columns.
    pub(crate) fn value(&mut self, name: &'static str, cols: usize) -> Val {
        let part = self.part;
        self.values.push(Value { cols, name, part, read: false, kept: None, vector: None, statistic: None });
        Val::new(self.values.len() - 1)
    }

    /// The next affine map of the network.
    pub(crate) fn affine(&mut self, inputs: usize, outputs: usize) -> usize {
        let part = &mut self.parts[self.part];
        part.work = part.work.saturating_add(inputs.saturating_mul(outputs));
        // What a row block has in cache beside the input: what the first map puts out.
        if part.width == inputs && part.work == inputs.saturating_mul(outputs) {
            part.width = inputs.saturating_add(outputs);
        }
        self.affines.push((inputs, outputs));
        self.affines.len() - 1
    }

    /// The next vector of parameters of the network: a value whose rows are all the same.
    pub(crate) fn vector(&mut self, name: &'static str, len: usize) -> Vector {
        let (number, val) = (self.vectors.len(), self.value(name, len));
        self.vectors.push(len);
        self.values[val.index()].vector = Some(number);
        Vector { number, val }
    }

    /// A statistic of the batch: a number for each of `len` columns.
    pub(crate) fn statistic(&mut self, name: &'static str, len: usize) -> Val {
        let val = self.value(name, len);
        self.of_batch(val)
    }

    /// The next vector of the network, a running average of a statistic of the batch: which of the two it is depends on the call.
    pub(crate) fn running(&mut self, name: &'static str, len: usize) -> Val {
        let Vector { val, .. } = self.vector(name, len);
        self.of_batch(val)
    }

    /// Gives a value room among the statistics.
    fn of_batch(&mut self, val: Val) -> Val {
        let value = &mut self.values[val.index()];
        value.statistic = Some(self.statistics);
        self.statistics = self.statistics.saturating_add(value.width());
        val
    }

    /// What the caller gives at `port`.
    pub(crate) fn load(&mut self, port: Port, cols: usize) -> Val {
        let name = match port {
            Port::X => "x",
            Port::Skip => "skip",
            Port::Dy => "dy",
        };
        let out = self.value(name, cols);
        self.step(Step::Load { port, out });
        out
    }

    pub(crate) fn step(&mut self, step: Step<Val>) {
        let part = &mut self.parts[self.part];
        if !self.backward {
            return part.forward.push(step);
        }
        part.backward.push(step);
        step.operands(|v, of| self.values[v.index()].read |= of == Use::Read);
    }

    /// A gradient of parameters.
    pub(crate) fn grad(&mut self, grad: Grad) {
        grad.reads().for_each(|v| self.values[v.index()].read = true);
        self.parts[self.part].grads.push(grad);
    }

    /// A mask of the part at hand: which of its masks, and how much it drops. None if it drops nothing.
    pub(crate) fn mask(&mut self, which: u32, p: f32, of_rows: bool) -> Option<Mask> {
        Mask::new(p, self.part as u32 * MASKS_OF_A_PART + which, of_rows)
    }

    /// Columns of a value.
    pub(crate) fn cols(&self, val: Val) -> usize {
        self.values[val.index()].cols
    }

    /// Leaves the adjoint of the part at hand.
    pub(crate) fn adjoint(&mut self, adjoint: impl FnOnce(&mut Builder, Val) -> Val + 'static) {
        self.adjoints.push(Box::new(adjoint));
    }

    /// Emits the adjoints, and makes the program whose output is `y`.
    pub(crate) fn finish(mut self, y: Option<Val>) -> Program {
        let y = y.unwrap_or(Val::new(0));
        let (forward_values, recorded_statistics) = (self.values.len(), self.statistics);
        self.backward = true;
        self.part = self.parts.len().saturating_sub(1);
        let outputs = self.values.get(y.index()).map_or(0, |v| v.cols);
        let mut dy = self.load(Port::Dy, outputs);
        for (part, adjoint) in std::mem::take(&mut self.adjoints).into_iter().enumerate().rev() {
            self.part = part;
            self.step(Step::Probe { part, a: dy });
            dy = adjoint(&mut self, dy);
        }
        let recomputed = self.parts.iter_mut().filter(|part| part.recompute);
        recomputed.for_each(|part| part.leave_out(&mut self.values));
        let Self { parts, mut values, affines, vectors, statistics, .. } = self;
        let mut record = Some(0usize);
        let once = |value: &Value| value.vector.is_some() || value.statistic.is_some();
        for value in values[..forward_values].iter_mut().filter(|value| value.read && !once(value)) {
            value.kept = record;
            record = record.and_then(|at| at.checked_add(value.width()));
        }
        let mut learned = vec![true; vectors.len()];
        for running in values.iter().filter(|value| value.statistic.is_some()).filter_map(|value| value.vector) {
            learned[running] = false;
        }
        let most = |f: fn(&Part) -> usize| parts.iter().map(f).max().unwrap_or(0);
        Program {
            work: parts.iter().map(|p| p.work).fold(0, usize::saturating_add),
            widest: most(|p| p.width),
            record_width: record,
            statistics: (recorded_statistics, statistics),
            fingerprint: fingerprint(&parts),
            y,
            dx: dy,
            parts,
            values,
            affines,
            vectors,
            learned,
        }
    }
}

impl Part {
    /// Leaves out of the record what backward can compute again, and finds the steps that do. All goes again but the last step, which makes the
    /// result, and what it leaves beside that; statistics of the batch are on record in any case. What the steps need goes on record instead.
    fn leave_out(&mut self, values: &mut [Value]) {
        let again = self.forward.iter().flat_map(|step| step.but_for(self.y));
        let again: Vec<Step<Val>> = again.collect();
        let (mut made, mut wanted) = (Vec::new(), Vec::new());
        for step in &again {
            step.operands(|v, of| made.extend((of == Use::Write).then_some(v)));
        }
        let of = |v: &&Val| values[v.index()].read;
        wanted.extend(made.iter().filter(of).copied());
        let saved: usize = wanted.iter().map(|v| values[v.index()].width()).fold(0, usize::saturating_add);
        let mut steps = Vec::new();
        for step in again.iter().rev() {
            step.each_gemm(|step| {
                if let Some(step) = step.needed(|v| wanted.contains(&v)) {
                    step.operands(|v, _| wanted.push(v));
                }
            });
            steps.extend(step.needed(|v| wanted.contains(&v)));
        }
        steps.reverse();
        let mut cost = 0usize;
        for step in &steps {
            step.operands(|v, of| {
                let value = &mut values[v.index()];
                if of == Use::Read && !made.contains(&v) && !value.read && value.vector.is_none() {
                    cost = cost.saturating_add(value.width());
                    value.read = true;
                }
            });
        }
        made.iter().for_each(|v| values[v.index()].read = false);
        self.saves = saved.saturating_sub(cost);
        self.again = steps;
    }
}
