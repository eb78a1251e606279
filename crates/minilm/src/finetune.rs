//! Fine-tuning: a linear head and all feed-forward blocks learn what definitions are of.

use crate::data::{CLASS_COUNT, Gloss, Glosses, Numbers, batch};
use crate::model::{Blocks, Encoder, WIDTH, is_trained};
use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{AdamW, Linear, Optimizer, ParamsAdamW, VarBuilder, loss};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Instant;

const BATCH: usize = 32;
const HEAD_RATE: f64 = 1e-3;
const BLOCK_RATE: f64 = 5e-5;

/// How a run went.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) seed: u64,
    pub(crate) losses: Vec<f32>,
    /// Held-out accuracy after each epoch.
    pub(crate) accuracy: Vec<f32>,
    /// Median of a step: forward, backward, optimisers.
    pub(crate) step_ms: f64,
}

/// Trains from the model's parameters on.
pub(crate) fn run(
    blocks: Blocks,
    parameters: &HashMap<String, Tensor>,
    glosses: &Glosses,
    epochs: usize,
    seed: u64,
) -> Result<Curve> {
    let mut all = parameters.clone();
    let mut trained = Vec::new();
    for (name, tensor) in all.iter_mut().filter(|(name, _)| is_trained(name)) {
        let var = Var::from_tensor(tensor)?;
        *tensor = var.as_tensor().clone();
        trained.push((name.clone(), var));
    }
    trained.sort_by(|(a, _), (b, _)| a.cmp(b));
    let trained: Vec<Var> = trained.into_iter().map(|(_, var)| var).collect();
    let cpu = Device::Cpu;
    let encoder = Encoder::new(blocks, &VarBuilder::from_tensors(all, DType::F32, &cpu))?;

    let mut numbers = Numbers(seed);
    let bound = 1.0 / (WIDTH as f32).sqrt();
    let weight: Vec<f32> = (0..CLASS_COUNT * WIDTH).map(|_| numbers.unit() * bound).collect();
    let weight = Var::from_vec(weight, (CLASS_COUNT, WIDTH), &cpu)?;
    let bias = Var::zeros(CLASS_COUNT, DType::F32, &cpu)?;
    let head = Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
    let mut optimizers = Optimizers::new(blocks, trained, vec![weight, bias])?;

    let steps = glosses.train.len() / BATCH * epochs;
    if steps == 0 {
        candle_core::bail!("{} definitions and {epochs} epochs are no step of {BATCH}", glosses.train.len())
    }
    let bar = ProgressBar::new(steps as u64);
    let style = ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} steps, {msg}, {eta} left");
    bar.set_style(style.map_err(candle_core::Error::wrap)?);
    bar.set_prefix(format!("{blocks:?}, seed {seed}"));
    let (mut losses, mut accuracy, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..epochs {
        let order = numbers.order(glosses.train.len());
        for some in order.chunks_exact(BATCH) {
            let (ids, mask, classes) = batch(&some.iter().map(|&at| &glosses.train[at]).collect::<Vec<_>>())?;
            let start = Instant::now();
            let loss = loss::cross_entropy(&head.forward(&encoder.forward(&ids, &mask, true)?)?, &classes)?;
            optimizers.step(&loss)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            losses.push(loss.to_scalar::<f32>()?);
            bar.set_message(format!("loss {:.3}", losses[losses.len() - 1]));
            bar.inc(1);
        }
        accuracy.push(held_out(&encoder, &head, &glosses.test)?);
    }
    bar.finish_and_clear();
    times.sort_by(f64::total_cmp);
    Ok(Curve { name: format!("{blocks:?}").to_lowercase(), seed, losses, accuracy, step_ms: times[times.len() / 2] })
}

fn held_out(encoder: &Encoder, head: &Linear, test: &[Gloss]) -> Result<f32> {
    let mut right = 0.0;
    for some in test.chunks(BATCH) {
        let (ids, mask, classes) = batch(&some.iter().collect::<Vec<_>>())?;
        let found = head.forward(&encoder.forward(&ids, &mask, false)?)?.argmax(1)?;
        right += found.eq(&classes)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    }
    Ok(right / test.len() as f32)
}

/// One for the blocks and one for the head, which learns faster.
enum Optimizers {
    Candle(Vec<AdamW>),
    Resblock(Vec<resblock_candle::AdamW>),
}

impl Optimizers {
    fn new(blocks: Blocks, trained: Vec<Var>, head: Vec<Var>) -> Result<Self> {
        let settings = |lr| ParamsAdamW { lr, ..ParamsAdamW::default() };
        let [slow, fast] = [settings(BLOCK_RATE), settings(HEAD_RATE)];
        Ok(match blocks {
            Blocks::Candle => Self::Candle(vec![AdamW::new(trained, slow)?, AdamW::new(head, fast)?]),
            Blocks::Resblock | Blocks::All => {
                Self::Resblock(vec![Optimizer::new(trained, slow)?, Optimizer::new(head, fast)?])
            }
        })
    }

    fn step(&mut self, loss: &Tensor) -> Result<()> {
        match self {
            Self::Candle(both) => {
                let grads = loss.backward()?;
                both.iter_mut().try_for_each(|one| one.step(&grads))
            }
            Self::Resblock(both) => {
                let grads = resblock_candle::backward(loss)?;
                both.iter_mut().try_for_each(|one| one.step(&grads))
            }
        }
    }
}
