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

pub(crate) mod form;
pub(crate) mod lower;
pub(crate) mod memory;
pub(crate) mod norm;

use crate::Activation;
use crate::error::{Error, expect_len};
use crate::gemm::buffers::room;
use crate::gemm::epilogue::{Aux, Post};
use crate::gemm::panels::{PANEL, panels};
use crate::random::Mask;
use form::Form;
use std::{fmt, iter};

/// A value of a program: a matrix with a row for each row of the batch. By its number, which is short, since steps are lists of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Val(u32);

impl Val {
    fn new(number: usize) -> Self {
        Self(number as u32)
    }

    #[inline]
    fn index(self) -> usize {
        self.0 as usize
    }
}

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

/// What the caller gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    X,
    /// An addend of the caller's choosing. A call may do without; whatever adds it then adds nothing.
    Skip,
    Dy,
}

/// Which way round a GEMM reads the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// out = a Wᵀ + b.
    Forward,
    /// out = a W.
    Adjoint,
}

/// Longest list of [`Post`]s.
pub(crate) const MOST_POSTS: usize = 4;

/// What a GEMM does with its finished chains, in this order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Posts<V>([Option<Post<V>>; MOST_POSTS]);

impl Posts<Val> {
    /// phi, unless it is the identity, and then what is added.
    pub(crate) fn new(phi: Activation, addend: Option<Val>) -> Self {
        let act = (phi != Activation::Identity).then_some(Post::Act(phi));
        act.into_iter().chain(addend.map(Post::Add)).collect()
    }
}

impl<V: Copy> Posts<V> {
    /// The list.
    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = Post<V>> + use<'_, V> {
        self.0.iter().map_while(|post| *post)
    }

    /// The same list of other operands; what has none is left out.
    pub(crate) fn map<T: Copy>(&self, f: &mut impl FnMut(V) -> Option<T>) -> Posts<T> {
        self.iter().filter_map(|post| post.each(&mut *f)).collect()
    }
}

impl<V: Copy> Default for Posts<V> {
    fn default() -> Self {
        Self([None; MOST_POSTS])
    }
}

impl<V: Copy> FromIterator<Post<V>> for Posts<V> {
    /// # Panics
    /// If there are more than a list holds. Lists are written by parts, not by users.
    fn from_iter<I: IntoIterator<Item = Post<V>>>(posts: I) -> Self {
        let mut list = Self::default();
        for (i, post) in posts.into_iter().enumerate() {
            list.0[i] = Some(post);
        }
        list
    }
}

/// out = posts(a Wᵀ + b), or posts(a W).
#[derive(Debug, Clone, Copy)]
pub(crate) struct GemmStep<V> {
    pub(crate) a: V,
    pub(crate) affine: usize,
    pub(crate) side: Side,
    /// Whether its chains go on from what `out` holds.
    pub(crate) onto: bool,
    pub(crate) posts: Posts<V>,
    pub(crate) aux: Option<Beside<V>>,
    pub(crate) out: V,
}

/// A second result, and where it goes. What has no home is not computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside<V> {
    pub(crate) what: Aux<V>,
    pub(crate) to: V,
}

/// A step on some rows of the batch: of values (`V` = [`Val`]), or of the places that a plan has given them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<V> {
    /// out = what the caller gives, in panels.
    Load {
        port: Port,
        out: V,
    },
    Gemm(GemmStep<V>),
    /// GEMMs, the last of which reads along k what those before it write: by chunks of these columns, each consumed while it is in cache.
    /// The chains of the last wait in its output meanwhile; it is left out where its result is not wanted. The second may read what the
    /// first writes, column by column.
    Chunks {
        first: GemmStep<V>,
        second: Option<GemmStep<V>>,
        last: Option<GemmStep<V>>,
    },
    /// out = posts(a).
    Each {
        a: V,
        posts: Posts<V>,
        aux: Option<Beside<V>>,
        out: V,
    },
    /// out = the norm of each row.
    Norm(NormStep<V>),
    NormAdjoint(NormAdjointStep<V>),
    /// Sums down the columns of the whole batch: what follows waits until all rows have been there.
    Batch(BatchStep<V>),
    /// out = the norm of each column, by statistics that are there.
    BatchNorm(BatchNormStep<V>),
    BatchNormAdjoint(BatchNormAdjointStep<V>),
    /// The squared norm of each row, if the caller asks for it: of the gradient of the output of part number `part`.
    Probe {
        part: usize,
        a: V,
    },
}

/// See [`crate::gemm::norm::Norm`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormStep<V> {
    pub(crate) norm: norm::Norm,
    pub(crate) a: V,
    pub(crate) gain: Option<V>,
    pub(crate) shift: Option<V>,
    /// x̂, where it is not `out`.
    pub(crate) normal: Option<V>,
    pub(crate) rate: Option<V>,
    pub(crate) out: V,
}

/// See [`crate::gemm::norm::NormAdjoint`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormAdjointStep<V> {
    pub(crate) norm: norm::Norm,
    pub(crate) dn: V,
    pub(crate) gain: Option<V>,
    pub(crate) normal: V,
    pub(crate) rate: V,
    pub(crate) skip: Option<(f32, V)>,
    pub(crate) out: V,
}

/// Statistics of the batch, one number for each column. They are not taken where statistics are frozen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BatchStep<V> {
    /// See [`crate::gemm::moments::moments`].
    Moments { a: V, mean: V, variance: V },
    /// mean = Σ dn / n, slope = Σ fma(dn, x̂, ·) / n, over the n rows in order.
    Slopes { dn: V, normal: V, mean: V, slope: V },
}

/// See [`crate::gemm::batch_norm::BatchNorm`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchNormStep<V> {
    pub(crate) norm: norm::Norm,
    pub(crate) a: V,
    pub(crate) mean: V,
    pub(crate) variance: V,
    pub(crate) gain: Option<V>,
    pub(crate) shift: Option<V>,
    /// x̂, where it is not `out`.
    pub(crate) normal: Option<V>,
    pub(crate) out: V,
}

/// See [`crate::gemm::batch_norm::BatchNormAdjoint`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchNormAdjointStep<V> {
    pub(crate) norm: norm::Norm,
    pub(crate) dn: V,
    pub(crate) gain: Option<V>,
    pub(crate) normal: V,
    pub(crate) variance: V,
    /// Mean of dn, and of dn x̂. What is not there is 0: statistics are frozen.
    pub(crate) mean: Option<V>,
    pub(crate) slope: Option<V>,
    pub(crate) skip: Option<(f32, V)>,
    pub(crate) out: V,
}

/// What a step does with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

impl<V: Copy> Beside<V> {
    fn map<T: Copy>(self, f: &mut impl FnMut(V, Use) -> Option<T>) -> Option<Beside<T>> {
        let to = f(self.to, Use::Write)?;
        let what = match self.what {
            Aux::Slope => Aux::Slope,
            Aux::Chains => Aux::Chains,
            Aux::Product(v) => Aux::Product(f(v, Use::Read)?),
        };
        Some(Beside { what, to })
    }
}

impl<V: Copy> GemmStep<V> {
    fn map<T: Copy>(&self, f: &mut impl FnMut(V, Use) -> Option<T>) -> Option<GemmStep<T>> {
        Some(GemmStep {
            a: f(self.a, Use::Read)?,
            affine: self.affine,
            side: self.side,
            onto: self.onto,
            posts: self.posts.map(&mut |v| f(v, Use::Read)),
            aux: self.aux.and_then(|aux| aux.map(f)),
            out: f(self.out, Use::Write)?,
        })
    }
}

impl<V: Copy> Step<V> {
    /// The same step of other operands. None where an operand is None that it cannot do without: of a list of posts it leaves out what
    /// has none, and it may do without second results and without the last of GEMMs that go by chunks.
    pub(crate) fn map<T: Copy>(&self, mut f: impl FnMut(V, Use) -> Option<T>) -> Option<Step<T>> {
        Some(match self {
            Step::Load { port, out } => Step::Load { port: *port, out: f(*out, Use::Write)? },
            Step::Gemm(g) => Step::Gemm(g.map(&mut f)?),
            Step::Chunks { first, second, last } => Step::Chunks {
                first: first.map(&mut f)?,
                second: second.as_ref().and_then(|second| second.map(&mut f)),
                last: last.as_ref().and_then(|last| last.map(&mut f)),
            },
            Step::Each { a, posts, aux, out } => Step::Each {
                a: f(*a, Use::Read)?,
                posts: posts.map(&mut |v| f(v, Use::Read)),
                aux: aux.and_then(|aux| aux.map(&mut f)),
                out: f(*out, Use::Write)?,
            },
            Step::Norm(NormStep { norm, a, gain, shift, normal, rate, out }) => Step::Norm(NormStep {
                norm: *norm,
                a: f(*a, Use::Read)?,
                gain: gain.and_then(|v| f(v, Use::Read)),
                shift: shift.and_then(|v| f(v, Use::Read)),
                normal: normal.and_then(|v| f(v, Use::Write)),
                rate: rate.and_then(|v| f(v, Use::Write)),
                out: f(*out, Use::Write)?,
            }),
            Step::NormAdjoint(NormAdjointStep { norm, dn, gain, normal, rate, skip, out }) => {
                Step::NormAdjoint(NormAdjointStep {
                    norm: *norm,
                    dn: f(*dn, Use::Read)?,
                    gain: gain.and_then(|v| f(v, Use::Read)),
                    normal: f(*normal, Use::Read)?,
                    rate: f(*rate, Use::Read)?,
                    skip: skip.and_then(|(factor, v)| Some((factor, f(v, Use::Read)?))),
                    out: f(*out, Use::Write)?,
                })
            }
            Step::Batch(BatchStep::Moments { a, mean, variance }) => Step::Batch(BatchStep::Moments {
                a: f(*a, Use::Read)?,
                mean: f(*mean, Use::Write)?,
                variance: f(*variance, Use::Write)?,
            }),
            Step::Batch(BatchStep::Slopes { dn, normal, mean, slope }) => Step::Batch(BatchStep::Slopes {
                dn: f(*dn, Use::Read)?,
                normal: f(*normal, Use::Read)?,
                mean: f(*mean, Use::Write)?,
                slope: f(*slope, Use::Write)?,
            }),
            Step::BatchNorm(BatchNormStep { norm, a, mean, variance, gain, shift, normal, out }) => {
                Step::BatchNorm(BatchNormStep {
                    norm: *norm,
                    a: f(*a, Use::Read)?,
                    mean: f(*mean, Use::Read)?,
                    variance: f(*variance, Use::Read)?,
                    gain: gain.and_then(|v| f(v, Use::Read)),
                    shift: shift.and_then(|v| f(v, Use::Read)),
                    normal: normal.and_then(|v| f(v, Use::Write)),
                    out: f(*out, Use::Write)?,
                })
            }
            Step::BatchNormAdjoint(step) => {
                let BatchNormAdjointStep { norm, dn, gain, normal, variance, mean, slope, skip, out } = *step;
                Step::BatchNormAdjoint(BatchNormAdjointStep {
                    norm,
                    dn: f(dn, Use::Read)?,
                    gain: gain.and_then(|v| f(v, Use::Read)),
                    normal: f(normal, Use::Read)?,
                    variance: f(variance, Use::Read)?,
                    mean: mean.and_then(|v| f(v, Use::Read)),
                    slope: slope.and_then(|v| f(v, Use::Read)),
                    skip: skip.and_then(|(factor, v)| Some((factor, f(v, Use::Read)?))),
                    out: f(out, Use::Write)?,
                })
            }
            Step::Probe { part, a } => Step::Probe { part: *part, a: f(*a, Use::Read)? },
        })
    }

    /// Calls `f` with the step, or with each GEMM of those that go by chunks, the last one first: it may read what those before it make.
    fn each_gemm(&self, mut f: impl FnMut(&Self)) {
        match *self {
            Step::Chunks { first, second, last } => {
                last.into_iter().chain(second).chain([first]).for_each(|g| f(&Step::Gemm(g)));
            }
            _ => f(self),
        }
    }

    /// The step without what is not wanted of it, as far as it can do without; None if nothing is wanted.
    fn needed(&self, wanted: impl Fn(V) -> bool) -> Option<Self> {
        self.map(|v, of| (of == Use::Read || wanted(v)).then_some(v)).or_else(|| {
            let mut some = false;
            self.operands(|v, of| some |= of == Use::Write && wanted(v));
            some.then_some(*self)
        })
    }

    /// What is left of the step where it may not make `y`. Loads and statistics are not taken again; what goes by chunks is parted from the GEMM that reads
    /// them, since it is wanted whole, and one step would write more places than it may.
    fn but_for(&self, y: V) -> impl Iterator<Item = Self> + use<V>
    where
        V: PartialEq,
    {
        let (one, other) = match *self {
            Step::Load { .. } | Step::Batch(_) => (None, None),
            Step::Chunks { first, second, last } => {
                (Some(Step::Chunks { first, second, last: None }), last.map(Step::Gemm))
            }
            step => (Some(step), None),
        };
        one.into_iter().chain(other).filter(move |step| {
            let mut makes = false;
            step.operands(|v, of| makes |= of == Use::Write && v == y);
            !makes
        })
    }

    /// Calls `f` with each operand.
    pub(crate) fn operands(&self, mut f: impl FnMut(V, Use)) {
        self.map(|v, of| {
            f(v, of);
            Some(v)
        });
    }
}

/// Sums over the batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Grad {
    /// dW = bᵀ a, db = column sums of b.
    Affine { affine: usize, a: Val, b: Val },
    /// The gradient of a vector of parameters: column sums of b, or of b ⊙ times.
    Columns { vector: usize, b: Val, times: Option<Val> },
    /// The gradient of one number: the sum of b ⊙ times, row after row.
    Rows { vector: usize, b: Val, times: Val },
}

impl Grad {
    /// The values that it reads.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Val> {
        let (one, other) = match *self {
            Grad::Affine { a, b, .. } => (b, Some(a)),
            Grad::Columns { b, times, .. } => (b, times),
            Grad::Rows { b, times, .. } => (b, Some(times)),
        };
        iter::once(one).chain(other)
    }
}

/// A part of a network: a layer or a block.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) form: Form,
    /// Whether its inputs alone go on record.
    pub(crate) recompute: bool,
    pub(crate) y: Val,
    pub(crate) forward: Vec<Step<Val>>,
    /// What backward begins with: the steps forward whose results it needs and the record does not have.
    pub(crate) again: Vec<Step<Val>>,
    pub(crate) backward: Vec<Step<Val>>,
    pub(crate) grads: Vec<Grad>,
    /// Multiply-adds of a forward pass, for one row.
    pub(crate) work: usize,
    /// Floats of record for each row that computing again saves, or would save.
    pub(crate) saves: usize,
    /// Columns that a row block of the part keeps in cache: those of its input, and of the hidden values or the output.
    pub(crate) width: usize,
}

impl Part {
    /// Finds the steps that can be taken again, and what they need. All goes again but the last step, which makes the result, and what it
    /// leaves beside that; statistics of the batch are on record in any case. If the part is to be recomputed, its values are marked so.
    fn recompute(&mut self, values: &mut [Value]) {
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
                    value.read |= self.recompute;
                }
            });
        }
        self.saves = saved.saturating_sub(cost);
        if self.recompute {
            made.iter().for_each(|v| values[v.index()].read = false);
            self.again = steps;
        }
    }
}

/// A compiled network.
#[allow(unreachable_pub, reason = "seals the public trait `Layer`: nameable by nobody outside")]
pub struct Program {
    pub(crate) parts: Vec<Part>,
    pub(crate) values: Vec<Value>,
    /// (inputs, outputs) of each affine map.
    pub(crate) affines: Vec<(usize, usize)>,
    /// Length of each vector of parameters.
    pub(crate) vectors: Vec<usize>,
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

    /// Whether a vector is learned: is no running average.
    pub(crate) fn is_learned(&self, vector: usize) -> bool {
        self.values.iter().all(|value| value.vector != Some(vector) || value.statistic.is_none())
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
pub(crate) const MASKS_OF_A_PART: u32 = 4;

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
        self.values[val.index()].statistic = Some(self.statistics);
        self.statistics = self.statistics.saturating_add(wide(len));
        val
    }

    /// The next vector of the network, a running average of a statistic of the batch: which of the two it is depends on the call.
    pub(crate) fn running(&mut self, name: &'static str, len: usize) -> Val {
        let (number, val) = (self.vectors.len(), self.statistic(name, len));
        self.vectors.push(len);
        self.values[val.index()].vector = Some(number);
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
        self.parts.iter_mut().for_each(|part| part.recompute(&mut self.values));
        let Self { parts, mut values, affines, vectors, statistics, .. } = self;
        let mut record = Some(0usize);
        let once = |value: &Value| value.vector.is_some() || value.statistic.is_some();
        for value in values[..forward_values].iter_mut().filter(|value| value.read && !once(value)) {
            value.kept = record;
            record = record.and_then(|at| at.checked_add(value.width()));
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
        }
    }
}
