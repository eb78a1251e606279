//! The layer: parameters and how they are called.

use crate::call::{Call, output, result_shape};
use crate::engine::{Engine, lock};
use crate::initial::initial;
use crate::op;
use crate::params::{Packed, Params, Place, Spec, Tensors};
use crate::view;
use candle_core::{Error, Module, ModuleT, Result, Tensor, Var};
use candle_nn::VarBuilder;
use resblock::{Context, Convention, Draw, Formula, Keep, MatRef, Par, Stored, TensorName};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One or more fused layers as one candle operation: blocks of any form, linear layers, norms, and chains of these.
///
/// x has any leading dimensions and strides; its last dimension is the features. Calls on the same bits give the bits of resblock's own layers, for any
/// number of threads. Gradients reach x and every parameter that candle tracks; those of others are not computed, and where nothing is tracked,
/// nothing is recorded.
///
/// Parameters stay candle's: `Var`s and what is computed from them are read at every call, so it sees what an optimiser or [`Var::set`] has written.
/// Where *no* parameter is tracked, the layer packs a copy at its first call, and reads that from then on ([`Fused::refresh`]).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap};
/// use resblock::BlockForm;
/// use resblock_candle::Fused;
///
/// # fn main() -> candle_core::Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let block = Fused::build(BlockForm::gpt2(64, 256), vb.pp("block"))?; // x + W2 gelu(W1 LN(x) + b1) + b2
///
/// let mut adam = AdamW::new_lr(vars.all_vars(), 1e-3)?;
/// let x = Tensor::randn(0f32, 1., (2, 16, 64), &Device::Cpu)?;
/// let loss = block.forward(&x)?.sqr()?.mean_all()?;
/// adam.backward_step(&loss)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Fused {
    engine: Arc<Engine>,
    ctx: Context,
    tensors: Arc<Tensors>,
    /// Whether running averages, if there are any, were made variables here: others change them behind our back.
    packs: bool,
    /// The copy of parameters of which none is tracked, once there has been a call.
    packed: Arc<Mutex<Option<Arc<Packed>>>>,
    momentum: f32,
    seed: u64,
    step: Arc<AtomicU32>,
}

/// The seed of the next layer that is made.
static SEEDS: AtomicU64 = AtomicU64::new(0);

impl Fused {
    /// From parameters, layer by layer: weights (outputs, inputs) and, where the formula has it, bias of each affine map (of a block W1, W3, W2, Ws, as
    /// far as it has them), then its vectors (of norms: gain, shift, running mean, running variance). Weights that lie the other way round are given as
    /// `w.t()?`. Any of them may be `Var`s or computed.
    ///
    /// # Errors
    /// If the formula contradicts itself, or a tensor is missing, of another shape or type, or elsewhere than on the CPU.
    pub fn new(formula: impl Into<Formula>, tensors: Vec<Tensor>) -> Result<Self> {
        Self::of(&[formula.into()], Keep::All, tensors)
    }

    /// With parameters from a `VarBuilder`, by the names of the modules that it replaces: those of `candle_nn` for a linear layer or a norm (`weight`,
    /// `bias`, `running_mean`, `running_var`), the crate's own for a block (`first.weight`, `pre_norm.gain`, …). New ones are drawn as `candle_nn::linear`
    /// draws them, times the form's `init_scales`; biases are 0.
    ///
    /// # Errors
    /// As [`Fused::new`]; the `VarBuilder`'s own.
    pub fn build(formula: impl Into<Formula>, vb: VarBuilder<'_>) -> Result<Self> {
        Self::from_builder(formula.into(), vb, |spec| Ok(Stored::new(spec.own_name())))
    }

    /// As [`Fused::build`], by the names and in the orientation of another library, gate and up in one tensor where that has them so: of a block of
    /// Hugging Face's BERT, say, `Fused::load(BlockForm::bert(384, 1536), &Convention::bert(), vb.pp("encoder.layer.0"))`. Tensors stay where
    /// they are: what is fused or turned is a view.
    ///
    /// # Errors
    /// As [`Fused::build`]; if the convention has no name for a parameter.
    pub fn load(formula: impl Into<Formula>, convention: &Convention, vb: VarBuilder<'_>) -> Result<Self> {
        Self::from_builder(formula.into(), vb, |spec| {
            let stored = convention.stored(spec.name.place.part, spec.name.role).cloned();
            stored.ok_or_else(|| Error::Msg(format!("resblock: the convention has no name for {}", spec.name)))
        })
    }

    fn from_builder(formula: Formula, vb: VarBuilder<'_>, stored: impl Fn(&Spec) -> Result<Stored>) -> Result<Self> {
        // By name: pieces of one tensor are views of it, and a `VarBuilder` may read it from its file at each request.
        let mut whole: HashMap<String, Tensor> = HashMap::new();
        let mut tensors = Vec::new();
        for spec in Spec::of(&formula) {
            let stored = stored(&spec)?;
            let tensor = match whole.entry(stored.name().into()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let dims = stored.dims(spec.name.role, (spec.rows, spec.cols));
                    entry.insert(vb.get_with_hints(dims, stored.name(), initial(&formula, &spec))?)
                }
            };
            let is_turned = spec.place == Place::Weights && stored.is_transposed();
            let turned = if is_turned { tensor.t()? } else { tensor.clone() };
            tensors.push(match stored.piece() {
                (_, 1) => turned,
                (piece, count) => {
                    let len = turned.dim(0)? / count;
                    turned.narrow(0, piece * len, len)?
                }
            });
        }
        Self::new(formula, tensors)
    }

    /// Layers one after the other, as one operation. It has the context of the first of them.
    ///
    /// # Errors
    /// If there is none, or the outputs of one are not the inputs of the next.
    pub fn chain(layers: &[Self]) -> Result<Self> {
        let formulas: Vec<_> = layers.iter().flat_map(|layer| &layer.engine.formulas).copied().collect();
        let tensors = layers.iter().flat_map(|layer| layer.tensors.all.iter()).cloned().collect();
        let first = layers.first().ok_or_else(|| Error::Msg("resblock: a chain of no layers".into()))?;
        let chain = Self::of(&formulas, first.engine.keep(), tensors)?;
        let packs = layers.iter().all(|layer| layer.packs);
        Ok(Self { ctx: first.ctx, momentum: first.momentum, packs, ..chain })
    }

    fn of(formulas: &[Formula], keep: Keep, mut tensors: Vec<Tensor>) -> Result<Self> {
        let engine = Engine::of(formulas, keep)?;
        if tensors.len() != engine.specs.len() {
            let names: Vec<_> = engine.specs.iter().map(|spec| spec.name.to_string()).collect();
            let (expected, names) = (names.len(), names.join(", "));
            candle_core::bail!("resblock: expected {expected} parameters ({names}), found {}", tensors.len())
        }
        let mut packs = true;
        for (spec, tensor) in engine.specs.iter().zip(&mut tensors) {
            spec.check(tensor)?;
            if !spec.name.role.is_learned() {
                packs &= !tensor.track_op();
                *tensor = Var::from_tensor(tensor)?.into_inner();
            }
        }
        // Helpers that waited for the next call would keep candle's own operations waiting.
        let ctx = Context::new().map_err(Error::wrap)?.with_par(Par::Rayon(0)).with_linger(Duration::ZERO);
        let seed = SEEDS.fetch_add(1, Ordering::Relaxed);
        let (tensors, (packed, step)) = (Arc::new(Tensors::new(tensors)), Default::default());
        Ok(Self { engine, ctx, tensors, packs, packed, momentum: 0.1, seed, step })
    }

    /// The same with another context: threads, instruction set, block sizes. [`Par::Rayon`] with 0, unless set: as many threads as the cost model
    /// finds worth it, of the rayon pool that it is called in, so of candle's own inside `Device::with_context`. Its draw is set by each call; with
    /// frozen statistics, training calls normalise by running averages, and leave these as they are.
    pub fn with_context(self, ctx: Context) -> Self {
        Self { ctx, ..self }
    }

    /// The same with other records: memory against time, the same bits.
    ///
    /// # Errors
    /// If a budget does not hold the inputs of each layer.
    pub fn with_keep(self, keep: Keep) -> Result<Self> {
        let engine = Engine::of(&self.engine.formulas, keep)?;
        Ok(Self { engine, packed: Default::default(), ..self })
    }

    /// The same with another momentum of running averages: 0.1, unless set.
    pub fn with_momentum(self, momentum: f32) -> Self {
        Self { momentum, ..self }
    }

    /// The same with what its masks are drawn from, and a count of steps of its own, from 0. Layers are given the seeds 0, 1, 2, … as they are made, unless
    /// set.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, step: Default::default(), ..self }
    }

    /// Training calls so far: the step of the next draw.
    pub fn step(&self) -> u32 {
        self.step.load(Ordering::Relaxed)
    }

    /// Sets the step of the next draw: of a run that goes on.
    pub fn set_step(&self, step: u32) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// A copy whose parameters are as they are now, tracked by nobody: they have no gradients, and are packed once.
    ///
    /// # Errors
    /// Candle's.
    pub fn frozen(&self) -> Result<Self> {
        let tensors =
            self.tensors.all.iter().map(|tensor| tensor.detach().force_contiguous()).collect::<Result<Vec<_>>>()?;
        let copy = Self::of(&self.engine.formulas, self.engine.keep(), tensors)?;
        Ok(Self { ctx: self.ctx, momentum: self.momentum, seed: self.seed, step: Arc::default(), ..copy })
    }

    /// Forgets the packed copy of parameters that are not tracked: the next call makes it anew. For those who have written to such a tensor, by
    /// `slice_set` or by [`Var::set`] on the `Var` that it was detached from, which nothing tells us.
    pub fn refresh(&self) {
        *lock(&self.packed) = None;
    }

    /// Every parameter with its name: those of a chain begin with `layers.0.`, `layers.1.`, and so on.
    pub fn parameters(&self) -> impl Iterator<Item = (TensorName, &Tensor)> {
        self.engine.specs.iter().map(|spec| spec.name).zip(self.tensors.all.iter())
    }

    /// What it computes, layer by layer.
    pub fn formulas(&self) -> &[Formula] {
        &self.engine.formulas
    }

    /// Whether each parameter's gradient is wanted.
    fn wanted(&self) -> Vec<bool> {
        let specs = self.engine.specs.iter().zip(self.tensors.all.iter());
        specs.map(|(spec, tensor)| spec.name.role.is_learned() && tensor.track_op()).collect()
    }

    /// The tensors, running averages as copies: a training pass before the backward pass of this call would change them.
    fn as_they_are(&self) -> Result<Arc<Tensors>> {
        if self.engine.specs.iter().all(|spec| spec.name.role.is_learned()) {
            return Ok(Arc::clone(&self.tensors));
        }
        let tensors = self.engine.specs.iter().zip(&self.tensors.all).map(|(spec, tensor)| {
            if spec.name.role.is_learned() { Ok(tensor.clone()) } else { tensor.detach().force_contiguous() }
        });
        Ok(Arc::new(Tensors::new(tensors.collect::<Result<_>>()?)))
    }

    /// The bits of all running averages.
    fn running(&self) -> Result<Vec<u32>> {
        let specs = self.engine.specs.iter().zip(&self.tensors.all);
        let mut bits = Vec::new();
        for (_, tensor) in specs.filter(|(spec, _)| !spec.name.role.is_learned()) {
            bits.extend(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits));
        }
        Ok(bits)
    }

    /// The parameters as calls have them.
    fn params(&self, wanted: &[bool]) -> Result<Params> {
        if wanted.contains(&true) || !self.packs {
            return Ok(Params::Tensors(self.as_they_are()?));
        }
        // Running averages may have moved since, by a call of any layer that shares them.
        let running = self.running()?;
        let mut packed = lock(&self.packed);
        if let Some(packed) = packed.as_ref().filter(|packed| packed.running == running) {
            return Ok(Params::Packed(Arc::clone(packed)));
        }
        let pack = |params: resblock::ParamsRef<'_>| self.engine.functional.pack(params);
        let net = self.tensors.with(&self.engine.specs, pack)?;
        let new = Arc::new(Packed::new(net, running)?);
        *packed = Some(Arc::clone(&new));
        Ok(Params::Packed(new))
    }

    /// y in training, where masks are drawn from `draw`, and a BatchNorm takes the statistics of the batch and brings its running averages up to date:
    /// for batches in pieces, which say what their first row is, and for runs that are to be repeated. [`ModuleT::forward_t`] counts steps by itself.
    ///
    /// # Errors
    /// As [`Fused::forward`]; if a BatchNorm's statistics of this batch are NaN or infinite, since running averages would be for ever: they stay as they are.
    pub fn forward_drawn(&self, x: &Tensor, draw: Draw) -> Result<Tensor> {
        let ctx = self.ctx.with_draw(Some(draw));
        self.call(x, ctx, true)
    }

    /// y in evaluation: nothing is dropped, a BatchNorm normalises by its running averages. Gradients flow all the same, so that a pass over tracked parameters
    /// is recorded: [`Fused::frozen`] has what evaluates without.
    ///
    /// # Errors
    /// If x is of another type or width, or elsewhere than on the CPU; resblock's and candle's own.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.call(x, self.ctx.with_draw(None).with_frozen_statistics(true), false)
    }

    fn call(&self, x: &Tensor, ctx: Context, train: bool) -> Result<Tensor> {
        view::check(x, "resblock: x")?;
        let functional = &self.engine.functional;
        if x.dims().last() != Some(&functional.inputs()) {
            candle_core::bail!(
                "resblock: x: expected a last dimension of {}, found {:?}",
                functional.inputs(),
                x.dims()
            )
        }
        if x.dims().iter().try_fold(1usize, |count, &dim| count.checked_mul(dim)).is_none() {
            candle_core::bail!("resblock: x: no memory for {:?}", x.dims())
        }
        // A parameter's own storage would be read twice at once.
        let x = if self.tensors.share(x) { x.force_contiguous()? } else { x.clone() };
        let x = view::with_rows(&x)?;
        let wanted = self.wanted();
        let params = self.params(&wanted)?;
        // Training records even where nothing is tracked: masks and statistics are a recorded pass's.
        if x.track_op() || wanted.contains(&true) || train {
            let call = Arc::new(Call::new(&self.engine, ctx, &params, wanted));
            let y = op::apply(&call, &x, &self.tensors.all)?;
            if train {
                self.update_statistics(call.record())?;
            }
            return Ok(y);
        }
        let storage = view::read(&x);
        let y = self.infer(&ctx, &params, view::matrix(view::cpu(&storage)?, x.layout())?)?;
        Tensor::from_vec(y, result_shape(x.layout(), functional.outputs()), x.device())
    }

    fn infer(&self, ctx: &Context, params: &Params, x: MatRef<'_>) -> Result<Vec<f32>> {
        output(&self.engine, x, |ws, y| match params {
            Params::Packed(packed) => packed.infer(ctx, ws, x, y).map_err(Error::wrap),
            Params::Tensors(tensors) => {
                tensors.with(&self.engine.specs, |params| self.engine.functional.infer(ctx, ws, params, x, y))
            }
        })
    }

    /// Brings running averages up to date. Those that several layers of a chain share move by one layer after the other.
    fn update_statistics(&self, record: &[f32]) -> Result<()> {
        let specs = self.engine.specs.iter().zip(&self.tensors.all);
        let vectors: Vec<_> = specs.filter(|(spec, _)| spec.place == Place::Vector).collect();
        let is_running = |at: &usize| !vectors[*at].0.name.role.is_learned();
        let mut rest: Vec<usize> = (0..vectors.len()).filter(is_running).collect();
        while !rest.is_empty() {
            let mut now: Vec<usize> = Vec::new();
            rest.retain(|&at| {
                let again = now.iter().any(|&other| vectors[other].1.id() == vectors[at].1.id());
                if !again {
                    now.push(at);
                }
                again
            });
            let mut values: Vec<Option<Vec<f32>>> = vec![None; vectors.len()];
            for &at in &now {
                values[at] = Some(vectors[at].1.flatten_all()?.to_vec1()?);
            }
            let mut views: Vec<_> = values.iter_mut().map(|values| values.as_deref_mut()).collect();
            let updated = self.engine.functional.update_statistics(record, self.momentum, &mut views);
            updated.map_err(Error::wrap)?;
            for (new, (_, tensor)) in values.into_iter().zip(&vectors) {
                if let Some(new) = new {
                    // The variable itself: it is one, since this layer was made.
                    Var::from_tensor(tensor)?.set(&Tensor::from_vec(new, tensor.shape(), tensor.device())?)?;
                }
            }
        }
        Ok(())
    }
}

/// Training, or evaluation. A call in training draws its masks from the layer's seed and the number of such calls before it.
impl ModuleT for Fused {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if !train {
            return self.forward(x);
        }
        let step = self.step.fetch_add(1, Ordering::Relaxed);
        self.forward_drawn(x, Draw { seed: self.seed, step, first_row: 0 })
    }
}

/// A layer that is only evaluated, as a [`Module`]: by [`Fused::forward`]. (Candle makes a [`ModuleT`] of every `Module`, one that does not know training;
/// so [`Fused`] itself is none.)
#[derive(Debug, Clone)]
pub struct Evaluated(pub Fused);

impl Module for Evaluated {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}
