//! MiniLM-L6 inside candle, with its feed-forward blocks by resblock: embeds sentences, and learns a task.

mod data;
mod finetune;
mod model;
mod plot;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use clap::{Parser, Subcommand};
use data::{Gloss, batch, glosses};
use finetune::Curve;
use model::{Blocks, Encoder};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// MiniLM-L6 with resblock's blocks inside candle. `crates/minilm/fetch.sh` fetches model and text; `RAYON_NUM_THREADS` says how many threads candle and
/// resblock have.
#[derive(Parser)]
struct Options {
    /// Where model and text are.
    #[arg(long, default_value = "target/minilm")]
    folder: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Embeds sentences: similarities, differences between the two kinds of blocks, sentences a second.
    Embed {
        /// Seconds of each kind.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Writes tokens and vectors there, for others to compare with.
        #[arg(long)]
        dump: Option<PathBuf>,
    },
    /// Trains a head and all feed-forward blocks.
    Finetune {
        #[arg(long, default_value_t = 2)]
        epochs: usize,
        /// Definitions of each of twelve classes; a quarter is held out.
        #[arg(long, default_value_t = 200)]
        per_class: usize,
        #[arg(long, default_value_t = 3)]
        seeds: u64,
        #[arg(long, value_delimiter = ',', default_value = "resblock,candle")]
        blocks: Vec<Blocks>,
        /// Writes the definitions' tokens there, as JSON, and trains nothing.
        #[arg(long)]
        export: Option<PathBuf>,
        /// Curves of other runs, as this command writes them, for the picture.
        #[arg(long)]
        beside: Vec<PathBuf>,
        /// Where curves and picture go.
        #[arg(long, default_value = "target/minilm")]
        out: PathBuf,
    },
}

fn main() -> std::result::Result<(), Failed> {
    let options = Options::parse();
    let parameters = parameters(&options.folder)?;
    match options.command {
        Command::Embed { seconds, dump } => embed(&options.folder, &parameters, seconds, dump.as_deref()),
        Command::Finetune { epochs, per_class, seeds, blocks, export, beside, out } => {
            let glosses = glosses(&options.folder, per_class)?;
            println!("{} definitions to learn from, {} held out", glosses.train.len(), glosses.test.len());
            if let Some(export) = export {
                std::fs::write(export, serde_json::to_string(&glosses)?)?;
                return Ok(());
            }
            let mut curves: Vec<Curve> = Vec::new();
            for seed in 1..=seeds {
                for &blocks in &blocks {
                    let curve = finetune::run(blocks, &parameters, &glosses, epochs, seed)?;
                    let accuracy: Vec<_> = curve.accuracy.iter().map(|a| format!("{:.1} %", 100.0 * a)).collect();
                    let last = curve.losses.last().copied().unwrap_or(f32::NAN);
                    println!(
                        "{:9} seed {seed}: loss {:.4} at first, {last:.4} at last, held out {}, {:.0} ms a step",
                        curve.name,
                        curve.losses[0],
                        accuracy.join(", "),
                        curve.step_ms
                    );
                    curves.push(curve);
                }
            }
            std::fs::write(out.join("curves.json"), serde_json::to_string(&curves)?)?;
            for path in beside {
                curves.extend(serde_json::from_str::<Vec<Curve>>(&std::fs::read_to_string(path)?)?);
            }
            plot::losses(&curves, &out.join("losses.svg"))
        }
    }
}

fn parameters(folder: &Path) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)
}

const SENTENCES: [&str; 5] = [
    "A residual block adds its input to its output.",
    "The skip connection carries the input past the weight layers.",
    "Gradients vanish in very deep networks.",
    "The cat sat on the mat.",
    "A kitten was sitting on the rug.",
];

fn embed(
    folder: &Path,
    parameters: &HashMap<String, Tensor>,
    seconds: f64,
    dump: Option<&Path>,
) -> std::result::Result<(), Failed> {
    let vb = VarBuilder::from_tensors(parameters.clone(), DType::F32, &Device::Cpu);
    let ours = Encoder::new(Blocks::Resblock, &vb)?;
    let (candles, all_ours) = (Encoder::new(Blocks::Candle, &vb)?, Encoder::new(Blocks::All, &vb)?);

    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json"))?;
    let gloss = |text: &&str| -> std::result::Result<Gloss, Failed> {
        let encoding = tokenizer.encode(*text, true)?;
        let len = encoding.get_attention_mask().iter().sum::<u32>() as usize;
        Ok(Gloss { text: text.to_string(), ids: encoding.get_ids()[..len].to_vec(), class: 0 })
    };
    let sentences = SENTENCES.iter().map(gloss).collect::<std::result::Result<Vec<_>, _>>()?;
    let (ids, mask, _) = batch(&sentences.iter().collect::<Vec<_>>())?;
    let vectors = ours.embed(&ids, &mask)?;
    let similarities = vectors.matmul(&vectors.t()?)?.to_vec2::<f32>()?;
    for (sentence, row) in SENTENCES.iter().zip(similarities) {
        let row: Vec<_> = row.iter().map(|s| format!("{s:5.2}")).collect();
        println!("{}  {sentence}", row.join(" "));
    }

    // Definitions of WordNet, 32 at a time.
    let all = glosses(folder, 40)?;
    let batches = all.train.chunks(32).map(|some| batch(&some.iter().collect::<Vec<_>>()));
    let batches = batches.collect::<Result<Vec<_>>>()?;
    let mut difference = 0f32;
    let mut vectors = Vec::new();
    for (ids, mask, _) in &batches {
        let found = ours.embed(ids, mask)?;
        for other in [&candles, &all_ours] {
            let most = found.sub(&other.embed(ids, mask)?)?.abs()?.max_all()?;
            difference = difference.max(most.to_scalar()?);
        }
        vectors.push(found);
    }
    println!("largest difference between resblock's and candle's, of {} vectors: {difference:.1e}", all.train.len());

    let mut best = [0f64; 3];
    let until = Instant::now() + std::time::Duration::from_secs_f64(3.0 * seconds);
    while Instant::now() < until {
        for (best, encoder) in best.iter_mut().zip([&candles, &ours, &all_ours]) {
            let start = Instant::now();
            for (ids, mask, _) in &batches {
                encoder.embed(ids, mask)?;
            }
            *best = best.max(all.train.len() as f64 / start.elapsed().as_secs_f64());
        }
    }
    println!("sentences a second, {} threads, best:", candle_core::utils::get_num_threads());
    for (name, own) in ["candle", "resblock's blocks", "attention's, too"].iter().zip(&best) {
        println!("{name:18} {own:6.0} {:5.2}", own / best[0]);
    }
    if let Some(dump) = dump {
        let glosses: Vec<_> = all.train.iter().map(|gloss| &gloss.ids).collect();
        let vectors = Tensor::cat(&vectors, 0)?.to_vec2::<f32>()?;
        std::fs::write(dump, serde_json::to_string(&serde_json::json!({ "ids": glosses, "vectors": vectors }))?)?;
    }
    Ok(())
}
