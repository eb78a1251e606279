//! Steps: what a program is made of, and the values that they read and write.

use super::norm::Norm;
use crate::Activation;
use crate::gemm::epilogue::{Aux, Post};
use std::iter;

/// A value of a program: a matrix with a row for each row of the batch. By its number, which is short, since steps are lists of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Val(u32);

impl Val {
    pub(super) fn new(number: usize) -> Self {
        Self(number as u32)
    }

    #[inline]
    pub(super) fn index(self) -> usize {
        self.0 as usize
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
    pub(crate) norm: Norm,
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
    pub(crate) norm: Norm,
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
    pub(crate) norm: Norm,
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
    pub(crate) norm: Norm,
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
    pub(super) fn each_gemm(&self, mut f: impl FnMut(&Self)) {
        match *self {
            Step::Chunks { first, second, last } => {
                last.into_iter().chain(second).chain([first]).for_each(|g| f(&Step::Gemm(g)));
            }
            _ => f(self),
        }
    }

    /// The step without what is not wanted of it, as far as it can do without; None if nothing is wanted.
    pub(super) fn needed(&self, wanted: impl Fn(V) -> bool) -> Option<Self> {
        self.map(|v, of| (of == Use::Read || wanted(v)).then_some(v)).or_else(|| {
            let mut some = false;
            self.operands(|v, of| some |= of == Use::Write && wanted(v));
            some.then_some(*self)
        })
    }

    /// What is left of the step where it may not make `y`. Loads and statistics are not taken again; what goes by chunks is parted from the GEMM that reads
    /// them, since it is wanted whole, and one step would write more places than it may.
    pub(super) fn but_for(&self, y: V) -> impl Iterator<Item = Self> + use<V>
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
