//! One network, from its seed to its accuracy.

use crate::data::{Split, Table};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use resblock::{
    Activation, AdamW, Block, BlockForm, Context, Draw, Error, GradMode, Gradients, Init, Keep, Layer, Linear, Norm,
    NormLayer, Optimizer, RateDecay, Schedule, Sequence, Workspace, rows_of, rows_of_mut, softmax_cross_entropy,
};
use std::time::Instant;

/// The weight of a batch in the running averages of a BatchNorm.
const MOMENTUM: f32 = 0.1;
const WEIGHT_DECAY: f32 = 0.01;

/// How a network is trained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe {
    pub(crate) epochs: usize,
    pub(crate) batch: usize,
    /// Highest learning rate, at the end of the warm-up.
    pub(crate) lr: f32,
    /// Bytes of a record, if they are limited.
    pub(crate) record: Option<usize>,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) parameters: usize,
    /// Mean over the batches of the last epoch, as they were met.
    pub(crate) loss: f64,
    /// Of the rows held out.
    pub(crate) accuracy: f64,
    pub(crate) seconds: f64,
}

/// A linear layer, blocks, the norm that they end with, and a linear layer. The second weights of blocks are scaled by 1 / sqrt(depth).
pub(crate) fn network(
    table: &Table,
    form: &BlockForm,
    head: Option<(Norm, Activation)>,
    depth: usize,
    seed: u64,
) -> Result<Sequence, Error> {
    let (mut init, width) = (Init::he(seed), form.inputs);
    let form = BlockForm { init_scales: [1.0, 1.0 / (depth as f32).sqrt()], ..*form };
    let mut layers = vec![Linear::with_init(table.features(), width, Activation::Identity, &mut init)?.into()];
    for _ in 0..depth {
        layers.push(Block::with_form(&form, &mut init)?.into());
    }
    if let Some((norm, phi)) = head {
        layers.push(NormLayer::new(width, norm, phi)?.into());
    }
    layers.push(Linear::with_init(width, table.classes(), Activation::Identity, &mut init)?.into());
    Sequence::new(layers)
}

/// Trains a network; `watch` is told loss and held-out accuracy of each epoch.
pub(crate) fn train(
    ctx: &Context,
    mut net: Sequence,
    recipe: &Recipe,
    split: &Split,
    seed: u64,
    mut watch: impl FnMut(f64, f64),
) -> Result<Outcome, Error> {
    let start = Instant::now();
    let Recipe { epochs, batch, lr, record } = *recipe;
    let (train, held_out) = (&split.train, &split.held_out);
    if let Some(bytes) = record {
        net.set_keep(Keep::Within { bytes, rows: batch })?;
    }
    let (features, classes) = (train.features(), train.classes());
    let (mut ws, mut grads, mut adam) = (Workspace::new(), Gradients::new(&net)?, AdamW::new(lr));
    adam.weight_decay = WEIGHT_DECAY;
    let (mut x, mut labels) = (vec![0.0; batch * features], vec![0; batch]);
    let [mut y, mut dy] = [(); 2].map(|()| vec![0.0; batch * classes]);
    let mut logits = vec![0.0; held_out.len() * classes];
    let mut order: Vec<usize> = (0..train.len()).collect();
    // A stream of its own: the order has nothing to do with the numbers that the initial weights were drawn from.
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(1);
    // Rows left over after the last whole batch wait for another epoch.
    let steps = train.len() / batch;
    let all = (epochs * steps) as u64;
    let schedule = Schedule::new(lr, all / 10, RateDecay::Cosine { end: all.max(1), floor: 0.0 })?;
    let (mut loss, mut accuracy) = (0.0, 0.0);
    for _ in 0..epochs {
        order.shuffle(&mut rng);
        loss = 0.0;
        for rows in order.chunks_exact(batch) {
            for ((to, label), &row) in x.chunks_exact_mut(features).zip(&mut labels).zip(rows) {
                to.copy_from_slice(train.row(row));
                *label = train.labels()[row];
            }
            adam.lr = schedule.rate(adam.steps());
            let ctx = &ctx.with_draw(Some(Draw { seed, step: adam.steps() as u32, first_row: 0 }));
            let pass = net.forward(ctx, &mut ws, rows_of(&x, features)?, rows_of_mut(&mut y, classes)?)?;
            let dlogits = Some(rows_of_mut(&mut dy, classes)?);
            loss += softmax_cross_entropy(rows_of(&y, classes)?, &labels, dlogits)? / steps as f64;
            pass.backward(rows_of(&dy, classes)?, None, &mut grads, GradMode::Overwrite)?;
            adam.step_checked(ctx, &mut net, &grads)?;
            net.update_statistics(ws.record().as_slice(), MOMENTUM)?;
        }
        net.infer(ctx, &mut ws, held_out.matrix()?, rows_of_mut(&mut logits, classes)?)?;
        let hits = logits.chunks_exact(classes).zip(held_out.labels()).filter(|(row, label)| best(row) == **label);
        accuracy = hits.count() as f64 / held_out.len() as f64;
        watch(loss, accuracy);
    }
    Ok(Outcome { parameters: net.parameter_count(), loss, accuracy, seconds: start.elapsed().as_secs_f64() })
}

/// The class of the largest logit.
fn best(logits: &[f32]) -> usize {
    logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(class, _)| class)
}
