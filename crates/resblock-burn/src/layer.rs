//! The module: parameters and how they are called.

use crate::call::Call;
use crate::engine::Engine;
use crate::error::Error;
use crate::initial::initial;
use crate::op::{self, Graph, Operand};
use crate::packed::Cache;
use crate::params::{Place, Spec};
use crate::view;
use burn::backend::flex::FlexTensor;
use burn::module::{Flag, Module, Param, RunningState};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use resblock::{Context, Draw, Formula, Keep, Par, TensorName};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// One or more fused layers as one burn module and one operation of its graph: blocks of any form, linear layers, norms, and chains of these.
///
/// x has any leading dimensions and strides; its last dimension is the features. Calls on the same bits give the bits of resblock's own layers, for any
/// number of threads. Gradients reach x and every parameter that burn tracks; those of others are not computed, and where nothing is tracked, nothing
/// is recorded. Parameters of which none is tracked are packed once a second call brings
/// the same ones.
///
/// Parameters are burn's own, in its orientation, and in its modules where it has them; a block trains with any of burn's optimisers.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use resblock_burn::{Fused, resblock::BlockForm};
///
/// let device = Device::flex().autodiff();
/// let block = Fused::new(BlockForm::gpt2(64, 256), &device)?; // x + W2 gelu(W1 LN(x) + b1) + b2
/// let x = Tensor::<3>::random([2, 16, 64], Distribution::Default, &device);
/// let grads = block.forward(x).square().mean().backward();
/// let dw1 = block.maps[0].weight.grad(&grads).expect("W1 is tracked");
/// assert_eq!(dw1.dims(), [64, 256]);
/// # Ok::<(), resblock_burn::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct Fused {
    /// Affine maps, layer by layer: of a block W1, W3, W2, Ws, as far as it has them.
    pub maps: Vec<Linear>,
    /// Vectors that are learned, layer by layer: gains and shifts of norms and scales of branches, in the order of [`Formula::tensors`].
    pub vectors: Vec<Param<Tensor<1>>>,
    /// Running averages of BatchNorms, layer by layer: mean and variance of each.
    pub running: Vec<RunningState<Tensor<1>>>,
    /// Whether calls on an autodiff device are training, as of burn's own `Dropout` and `BatchNorm`: `freeze` and `valid` clear it.
    pub training: Param<Flag>,
    #[module(skip)]
    how: How,
}

/// How a layer computes.
#[derive(Debug, Clone)]
struct How {
    engine: Arc<Engine>,
    ctx: Context,
    momentum: f32,
    seed: u64,
    step: Arc<AtomicU32>,
    packed: Cache,
}

/// The seed of the next layer that is made.
static SEEDS: AtomicU64 = AtomicU64::new(0);

impl How {
    fn new(engine: Arc<Engine>) -> Result<Self, Error> {
        // Helpers that waited for the next call would keep burn's own operations waiting.
        let ctx = Context::new()?.with_par(Par::Rayon(0)).with_linger(Duration::ZERO);
        let seed = SEEDS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { engine, ctx, momentum: 0.1, seed, step: Arc::default(), packed: Cache::default() })
    }
}

impl Fused {
    /// A layer with new parameters: maps begin as burn's `Linear` does, times the form's `init_scales`, gains at 1, shifts at 0.
    ///
    /// # Errors
    /// [`Error::Core`] if the formula contradicts itself.
    pub fn new(formula: impl Into<Formula>, device: &Device) -> Result<Self, Error> {
        Self::init(&[formula.into()], device)
    }

    /// Formulas one after the other as one operation, with new parameters.
    ///
    /// # Errors
    /// [`Error::Core`] if there is none, one contradicts itself, or the outputs of one are not the inputs of the next.
    pub fn init(formulas: &[Formula], device: &Device) -> Result<Self, Error> {
        let engine = Engine::of(formulas, Keep::All)?;
        let (mut maps, mut vectors, mut running) = (Vec::new(), Vec::new(), Vec::new());
        for formula in formulas {
            let specs = Spec::of_chain(&[*formula]);
            for (at, spec) in specs.iter().enumerate() {
                let (begin, dims) = (initial(formula, spec.name), spec.dims());
                match (spec.place, &dims[..]) {
                    (Place::Weights, &[inputs, outputs]) => {
                        let bias = specs.get(at + 1).is_some_and(|next| next.place == Place::Bias);
                        let config = LinearConfig::new(inputs, outputs).with_bias(bias).with_initializer(begin);
                        maps.push(config.init(device));
                    }
                    (Place::Vector, &[len]) => vectors.push(begin.init([len], device)),
                    (Place::Running, &[len]) => {
                        let average: Param<Tensor<1>> = begin.init([len], device);
                        running.push(RunningState::new(average.val().set_require_grad(false)));
                    }
                    _ => {}
                }
            }
        }
        Self::assemble(engine, maps, vectors, running)
    }

    /// From parameters of one or more layers, those of the first first: see the fields. Weights may have any strides, as those of a `Linear` stored by columns.
    ///
    /// # Errors
    /// [`Error::Core`] as of [`Fused::init`]; [`Error::Count`], [`Error::Shape`], [`Error::Type`] or [`Error::Device`] if they are not what the formulas want.
    pub fn from_parts(
        formulas: &[Formula],
        maps: Vec<Linear>,
        vectors: Vec<Param<Tensor<1>>>,
        running: Vec<RunningState<Tensor<1>>>,
    ) -> Result<Self, Error> {
        let layer = Self::assemble(Engine::of(formulas, Keep::All)?, maps, vectors, running)?;
        layer.operands(&mut None)?;
        Ok(layer)
    }

    /// Layers one after the other, as one operation. It has the context, the momentum and the records of the first of them.
    ///
    /// # Errors
    /// [`Error::Core`] if there is none, or the outputs of one are not the inputs of the next.
    pub fn chain(layers: Vec<Self>) -> Result<Self, Error> {
        let formulas: Vec<_> = layers.iter().flat_map(|layer| layer.formulas()).copied().collect();
        let first = layers.first().map(|layer| layer.how.clone());
        let engine = Engine::of(&formulas, first.as_ref().map_or(Keep::All, |how| how.engine.keep))?;
        let (mut maps, mut vectors, mut running) = (Vec::new(), Vec::new(), Vec::new());
        for layer in layers {
            maps.extend(layer.maps);
            vectors.extend(layer.vectors);
            running.extend(layer.running);
        }
        let chain = Self::assemble(engine, maps, vectors, running)?;
        let how = match first {
            Some(How { ctx, momentum, .. }) => How { ctx, momentum, ..chain.how },
            None => chain.how,
        };
        Ok(Self { how, ..chain })
    }

    fn assemble(
        engine: Arc<Engine>,
        maps: Vec<Linear>,
        vectors: Vec<Param<Tensor<1>>>,
        running: Vec<RunningState<Tensor<1>>>,
    ) -> Result<Self, Error> {
        Ok(Self { maps, vectors, running, training: Param::from_bool(true), how: How::new(engine)? })
    }

    /// The same with another context: threads, instruction set, block sizes. [`Par::Rayon`] with 0, unless set: as many threads as the cost model finds worth
    /// it, of the rayon pool that it is called in. Its draw is set by each call; with frozen statistics, training calls normalise by running averages, and
    /// leave these as they are.
    pub fn with_context(self, ctx: Context) -> Self {
        Self { how: How { ctx, ..self.how }, ..self }
    }

    /// The same with other records: memory against time, the same bits.
    ///
    /// # Errors
    /// [`Error::Core`] if a budget does not hold the inputs of each layer.
    pub fn with_keep(self, keep: Keep) -> Result<Self, Error> {
        let engine = Engine::of(self.formulas(), keep)?;
        Ok(Self { how: How { engine, packed: Cache::default(), ..self.how }, ..self })
    }

    /// The same with another momentum of running averages: 0.1, unless set.
    pub fn with_momentum(self, momentum: f32) -> Self {
        Self { how: How { momentum, ..self.how }, ..self }
    }

    /// The same with what its masks are drawn from, and a count of steps of its own, from 0. Layers are given the seeds 0, 1, 2, … as they are made, unless
    /// set. Copies of a module share its count.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { how: How { seed, step: Arc::default(), ..self.how }, ..self }
    }

    /// Training calls so far: the step of the next draw.
    pub fn step(&self) -> u32 {
        self.how.step.load(Ordering::Relaxed)
    }

    /// Sets the step of the next draw: of a run that goes on.
    pub fn set_step(&self, step: u32) {
        self.how.step.store(step, Ordering::Relaxed);
    }

    /// What it computes, layer by layer.
    pub fn formulas(&self) -> &[Formula] {
        &self.how.engine.formulas
    }

    /// The names of its parameters and running averages, in the order of [`Formula::tensors`]: those of a chain begin with `layers.0.`, `layers.1.`, and so on.
    pub fn names(&self) -> impl ExactSizeIterator<Item = TensorName> {
        self.how.engine.specs.iter().map(|spec| spec.name)
    }

    /// y. On an autodiff device, while `training` is set, it is training: masks are drawn from the layer's seed and the number of such calls before it, and
    /// a BatchNorm takes the statistics of the batch and brings its running averages up to date. Else it is evaluation, through which gradients flow all the
    /// same.
    ///
    /// # Panics
    /// Where [`Fused::try_forward`] has an error, with its text, as burn's own modules do.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.try_forward(x).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Fused::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Type`] or [`Error::Device`] naming x or a parameter, if others have changed that; [`Error::TooMany`];
    /// [`Error::Checkpointing`]; [`Error::Core`] if a BatchNorm's statistics of this batch are NaN or infinite, since running averages would be for ever: they
    /// stay as they are.
    pub fn try_forward<const D: usize>(&self, x: Tensor<D>) -> Result<Tensor<D>, Error> {
        self.call(x, None)
    }

    /// As [`Fused::try_forward`] in training, with a draw of the caller's: for batches in pieces, which say what their first row is, and for runs that are to
    /// be repeated.
    ///
    /// # Errors
    /// As [`Fused::try_forward`].
    pub fn forward_drawn<const D: usize>(&self, x: Tensor<D>, draw: Draw) -> Result<Tensor<D>, Error> {
        self.call(x, Some(draw))
    }

    fn call<const D: usize>(&self, x: Tensor<D>, draw: Option<Draw>) -> Result<Tensor<D>, Error> {
        let How { engine, ctx, seed, step, packed, .. } = &self.how;
        let mut graph = None;
        let x = Operand::new(x, || "x".into(), &mut graph)?;
        let (inputs, found) = (engine.functional.inputs(), x.values.layout().shape());
        if found.last() != Some(&inputs) {
            let (expected, found) = (format!("[.., {inputs}]"), found.to_vec());
            return Err(Error::Shape { operand: "x".into(), expected, found });
        }
        let draw = draw.or_else(|| {
            let training = graph.is_some() && self.training.is_enabled();
            training.then(|| Draw { seed: *seed, step: step.fetch_add(1, Ordering::Relaxed), first_row: 0 })
        });
        let ctx = match draw {
            Some(draw) => ctx.with_draw(Some(draw)),
            None => ctx.with_draw(None).with_frozen_statistics(true),
        };
        let operands = self.operands(&mut graph)?;
        let values = view::with_rows(x.values);
        let (params, nodes): (Vec<FlexTensor>, Vec<_>) =
            operands.into_iter().map(|operand| (operand.values, operand.node)).unzip();
        let wanted: Vec<_> = nodes.iter().map(Option::is_some).collect();
        let is_tracked = x.node.is_some() || wanted.contains(&true);
        // Training records even where nothing is tracked: masks and statistics are a recorded pass's.
        if !is_tracked && draw.is_none() {
            let y = match packed.packed(engine, &params)? {
                Some(net) => Call::infer_packed(engine, &ctx, &net, &values)?,
                None => Call::infer(engine, &ctx, &params, &values)?,
            };
            return Ok(op::constant(y, graph));
        }
        let (y, call) = Call::forward(engine, ctx, params, &values, (x.node.is_some(), wanted))?;
        if draw.is_some() {
            self.update_statistics(call.record())?;
        }
        match graph {
            Some(strategy) if is_tracked => {
                op::tracked(y, call, x.node.into_iter().chain(nodes.into_iter().flatten()).collect(), strategy)
            }
            _ => Ok(op::constant(y, graph)),
        }
    }

    /// Every parameter and running average, in the order of the specs, as calls can read it.
    fn operands(&self, graph: &mut Graph) -> Result<Vec<Operand>, Error> {
        let specs = &self.how.engine.specs;
        let biases = self.maps.iter().filter(|map| map.bias.is_some()).count();
        for (what, place, found) in [
            ("maps", Place::Weights, self.maps.len()),
            ("biases", Place::Bias, biases),
            ("vectors", Place::Vector, self.vectors.len()),
            ("running averages", Place::Running, self.running.len()),
        ] {
            let expected = specs.iter().filter(|spec| spec.place == place).count();
            if expected != found {
                return Err(Error::Count { what, expected, found });
            }
        }
        let (mut maps, mut vectors, mut running) = (self.maps.iter(), self.vectors.iter(), self.running.iter());
        let mut bias = None;
        let operand = |spec: &Spec| {
            let name = || spec.name.to_string();
            let missing = Error::Count { what: "biases of this map", expected: 1, found: 0 };
            let operand = match spec.place {
                Place::Weights => {
                    let map = maps.next().ok_or(missing)?;
                    bias = map.bias.as_ref();
                    Operand::new(map.weight.val(), name, graph)?
                }
                Place::Bias => Operand::new(bias.take().ok_or(missing)?.val(), name, graph)?,
                Place::Vector => Operand::new(vectors.next().ok_or(missing)?.val(), name, graph)?,
                Place::Running => {
                    let average = running.next().ok_or(missing)?.value_sync();
                    Operand { node: None, ..Operand::new(average, name, graph)? }
                }
            };
            let found = operand.values.layout().shape();
            if !spec.has(found) {
                let (expected, found) = (format!("{:?}", spec.dims()), found.to_vec());
                return Err(Error::Shape { operand: name(), expected, found });
            }
            Ok(Operand { values: spec.readable(operand.values), ..operand })
        };
        specs.iter().map(operand).collect()
    }

    /// Brings running averages up to date with the batch of a recorded pass.
    fn update_statistics(&self, record: &[f32]) -> Result<(), Error> {
        if self.running.is_empty() {
            return Ok(());
        }
        let How { engine, momentum, .. } = &self.how;
        let old: Vec<_> = self.running.iter().map(|average| average.value_sync()).collect();
        let mut values = Vec::new();
        for tensor in &old {
            let operand = Operand::new(tensor.clone(), || "running average".into(), &mut None)?;
            values.push(view::line(&view::contiguous(operand.values)).to_vec());
        }
        let mut new = values.iter_mut();
        let vectors = engine.specs.iter().filter(|spec| matches!(spec.place, Place::Vector | Place::Running));
        let mut views: Vec<_> = vectors
            .map(|spec| if spec.place == Place::Running { new.next().map(Vec::as_mut_slice) } else { None })
            .collect();
        engine.functional.update_statistics(record, *momentum, &mut views)?;
        for ((average, old), new) in self.running.iter().zip(old).zip(values) {
            let len = new.len();
            average.update(op::constant::<1>(view::tensor(new, [len]), None).to_device(&old.device()));
        }
        Ok(())
    }
}
