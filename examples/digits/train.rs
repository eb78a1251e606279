//! Training: one net from its seed to its measurements.

use crate::checkpoint::{Progress, Store, StoreError};
use crate::data::{CLASSES, Digits, PIXELS, Split};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use resblock::{
    AdamW, Context, Error, GradMode, GradientFlow, Gradients, Layer, MatMut, MatRef, Optimizer, RateDecay, Schedule,
    Stack, StackConfig, Workspace, softmax_cross_entropy,
};
use std::time::Instant;

/// How a net is trained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe {
    pub(crate) epochs: usize,
    pub(crate) batch: usize,
    /// Highest learning rate, at the end of the warm-up.
    pub(crate) lr: f32,
    pub(crate) weight_decay: f32,
    /// Deviation of the normal noise on training images, in units of the pixels' deviation.
    pub(crate) noise: f32,
}

impl Recipe {
    /// A linear warm-up over a tenth of the steps, then half a cosine down to 0.
    fn schedule(&self, steps: u64) -> Result<Schedule, Error> {
        Schedule::new(self.lr, steps / 10, RateDecay::Cosine { end: steps.max(1), floor: 0.0 })
    }
}

/// One epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch {
    /// Mean loss over the epoch's batches, as they were met.
    pub(crate) train_loss: f64,
    pub(crate) train_accuracy: f64,
    pub(crate) held_out_accuracy: f64,
}

impl Epoch {
    pub(crate) fn to_bits(self) -> [u64; 3] {
        [self.train_loss, self.train_accuracy, self.held_out_accuracy].map(f64::to_bits)
    }

    pub(crate) fn from_bits(bits: [u64; 3]) -> Self {
        let [train_loss, train_accuracy, held_out_accuracy] = bits.map(f64::from_bits);
        Self { train_loss, train_accuracy, held_out_accuracy }
    }
}

/// What came of a net.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) parameters: usize,
    pub(crate) epochs: Vec<Epoch>,
    /// Over all training images, after the last step.
    pub(crate) train_loss: f64,
    pub(crate) held_out_accuracy: f64,
    /// Gradient norms over depth before the first step, and after the last, over all training images.
    pub(crate) flow_before: GradientFlow,
    pub(crate) flow_after: GradientFlow,
    pub(crate) seconds: f64,
}

/// What can stop a training.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrainError {
    #[error(transparent)]
    Net(#[from] Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("epoch {epoch}: {what} became NaN or infinite: the training has diverged (a lower --lr may help)")]
    Diverged { epoch: usize, what: String },
}

/// Buffers that every step uses again.
struct Buffers {
    workspace: Workspace,
    pixels: Vec<f32>,
    labels: Vec<usize>,
    logits: Vec<f32>,
    dlogits: Vec<f32>,
}

/// A net in training.
struct Trainer<'a> {
    ctx: &'a Context,
    net: Stack,
    grads: Gradients,
    buffers: Buffers,
}

/// Gradient norms over depth of the untrained net that `config` describes.
pub(crate) fn probe(ctx: &Context, config: &StackConfig, split: &Split) -> Result<GradientFlow, Error> {
    Trainer::new(ctx, config, 1, split)?.flow(&split.train)
}

/// Trains the net that `config` describes, from where `store` says that it has come to. `watch` is told of each epoch.
pub(crate) fn train(
    ctx: &Context,
    config: &StackConfig,
    recipe: &Recipe,
    split: &Split,
    store: Option<&Store>,
    mut watch: impl FnMut(&Epoch),
) -> Result<Outcome, TrainError> {
    let start = Instant::now();
    let (train, held_out) = (&split.train, &split.held_out);
    let batch = recipe.batch.min(train.len());
    let mut trainer = Trainer::new(ctx, config, batch, split)?;
    let flow_before = trainer.flow(train)?;

    let mut optimizer = AdamW::new(recipe.lr);
    optimizer.weight_decay = recipe.weight_decay;
    // A stream of its own: order and noise have nothing to do with the numbers that the initial weights were drawn from.
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    rng.set_stream(1);
    let mut progress = Progress { rng, order: (0..train.len()).collect(), epochs: Vec::with_capacity(recipe.epochs) };
    if let Some(store) = store {
        store.load(&mut trainer.net, &mut optimizer, &mut progress, recipe.epochs)?;
        trainer.check(progress.epochs.len())?;
        progress.epochs.iter().for_each(&mut watch);
    }
    // Images left over after the last whole batch wait for another epoch: a batch of a few would be a step of mostly noise.
    let steps = train.len() / batch;
    let schedule = recipe.schedule((recipe.epochs * steps) as u64)?;
    for epoch in progress.epochs.len()..recipe.epochs {
        let Progress { rng, order, epochs } = &mut progress;
        order.shuffle(rng);
        let (mut loss, mut hits) = (0.0, 0);
        for rows in order.chunks_exact(batch) {
            optimizer.lr = schedule.rate(optimizer.steps());
            let (batch_loss, batch_hits) = trainer.step(&mut optimizer, train, rows, recipe.noise, rng)?;
            check_loss(epoch + 1, "the loss", batch_loss)?;
            loss += batch_loss / steps as f64;
            hits += batch_hits;
        }
        let train_accuracy = hits as f64 / (steps * batch) as f64;
        let (held_out_loss, held_out_accuracy) = trainer.measure(held_out)?;
        // Before it is saved in the place of a net that was well.
        trainer.check(epoch + 1)?;
        check_loss(epoch + 1, "the held-out loss", held_out_loss)?;
        let done = Epoch { train_loss: loss, train_accuracy, held_out_accuracy };
        epochs.push(done);
        if let Some(store) = store {
            store.save(&trainer.net, &optimizer, &progress)?;
        }
        watch(&done);
    }
    let (train_loss, _) = trainer.measure(train)?;
    check_loss(recipe.epochs, "the loss over all images", train_loss)?;
    let (_, held_out_accuracy) = trainer.measure(held_out)?;
    let flow_after = trainer.flow(train)?;
    let seconds = start.elapsed().as_secs_f64();
    let parameters = trainer.net.parameter_count();
    let epochs = progress.epochs;
    Ok(Outcome { parameters, epochs, train_loss, held_out_accuracy, flow_before, flow_after, seconds })
}

/// That a loss is a number.
fn check_loss(epoch: usize, what: &str, loss: f64) -> Result<(), TrainError> {
    if loss.is_finite() { Ok(()) } else { Err(TrainError::Diverged { epoch, what: what.into() }) }
}

impl<'a> Trainer<'a> {
    fn new(ctx: &'a Context, config: &StackConfig, batch: usize, split: &Split) -> Result<Self, Error> {
        let net = Stack::new(config)?;
        let grads = Gradients::new(&net)?;
        let logits = vec![0.0; split.train.len().max(split.held_out.len()) * CLASSES];
        let buffers = Buffers {
            workspace: Workspace::new(),
            pixels: vec![0.0; batch * PIXELS],
            labels: vec![0; batch],
            dlogits: logits.clone(),
            logits,
        };
        Ok(Self { ctx, net, grads, buffers })
    }

    /// That the parameters are numbers, after so many epochs.
    fn check(&self, epoch: usize) -> Result<(), TrainError> {
        match self.net.parameters().find(|parameter| !parameter.norm_squared().is_finite()) {
            Some(parameter) => Err(TrainError::Diverged { epoch, what: parameter.to_string() }),
            None => Ok(()),
        }
    }

    /// One step on the images `rows`: their loss and how many were recognised. Once every buffer has its size, nothing is
    /// allocated here, nor by the crate on one thread.
    fn step(
        &mut self,
        optimizer: &mut AdamW,
        digits: &Digits,
        rows: &[usize],
        noise: f32,
        rng: &mut ChaCha8Rng,
    ) -> Result<(f64, usize), Error> {
        let Buffers { workspace, pixels, labels, logits, dlogits } = &mut self.buffers;
        for ((image, label), &row) in pixels.chunks_exact_mut(PIXELS).zip(&mut *labels).zip(rows) {
            for (pixel, &p) in image.iter_mut().zip(digits.image(row)) {
                let z: f32 = StandardNormal.sample(rng);
                *pixel = p + noise * z;
            }
            *label = digits.labels()[row];
        }
        let n = rows.len();
        let (logits, dlogits) = (&mut logits[..n * CLASSES], &mut dlogits[..n * CLASSES]);
        let x = MatRef::new(pixels, n, PIXELS)?;
        let pass = self.net.forward(self.ctx, workspace, x, MatMut::new(logits, n, CLASSES)?)?;
        let loss =
            softmax_cross_entropy(MatRef::new(logits, n, CLASSES)?, labels, Some(MatMut::new(dlogits, n, CLASSES)?))?;
        pass.backward(MatRef::new(dlogits, n, CLASSES)?, None, &mut self.grads, GradMode::Overwrite)?;
        optimizer.step(self.ctx, &mut self.net, &self.grads)?;
        Ok((loss, hits(logits, labels)))
    }

    /// Loss and accuracy on all `digits`.
    fn measure(&mut self, digits: &Digits) -> Result<(f64, f64), Error> {
        let n = digits.len();
        let logits = &mut self.buffers.logits[..n * CLASSES];
        let y = MatMut::new(logits, n, CLASSES)?;
        self.net.infer(self.ctx, &mut self.buffers.workspace, digits.matrix()?, y)?;
        let loss = softmax_cross_entropy(MatRef::new(logits, n, CLASSES)?, digits.labels(), None)?;
        Ok((loss, hits(logits, digits.labels()) as f64 / n as f64))
    }

    /// Gradient norms over depth, of the mean loss over all `digits`.
    fn flow(&mut self, digits: &Digits) -> Result<GradientFlow, Error> {
        let n = digits.len();
        let Buffers { workspace, logits, dlogits, .. } = &mut self.buffers;
        let (logits, dlogits) = (&mut logits[..n * CLASSES], &mut dlogits[..n * CLASSES]);
        let pass = self.net.forward(self.ctx, workspace, digits.matrix()?, MatMut::new(logits, n, CLASSES)?)?;
        let y = MatRef::new(logits, n, CLASSES)?;
        softmax_cross_entropy(y, digits.labels(), Some(MatMut::new(dlogits, n, CLASSES)?))?;
        let mut flow = GradientFlow::new();
        let dy = MatRef::new(dlogits, n, CLASSES)?;
        pass.backward_probed(dy, None, &mut self.grads, GradMode::Overwrite, &mut flow)?;
        Ok(flow)
    }
}

/// How many rows have their largest logit at their label. A net that has diverged to NaN recognises nothing.
fn hits(logits: &[f32], labels: &[usize]) -> usize {
    let recognised = |row: &[f32], label: usize| {
        row.iter().enumerate().all(|(j, &other)| if j == label { !other.is_nan() } else { row[label] > other })
    };
    logits.chunks_exact(CLASSES).zip(labels).filter(|&(row, &label)| recognised(row, label)).count()
}
