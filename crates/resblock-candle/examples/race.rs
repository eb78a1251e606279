//! This crate against candle's own operations: the same block, the same tensors, by turns in one process.
//!
//! `RAYON_NUM_THREADS=1 cargo run --release --example race`

use candle_core::{D, DType, Device, Module, Result, Tensor, Var};
use candle_nn::{AdamW, Init, LayerNorm, Linear, Optimizer, ParamsAdamW, VarBuilder, VarMap, layer_norm, linear};
use clap::Parser;
use resblock_candle::resblock::{
    self, Activation, AffineGradMut, AffineRef, Block, BlockForm, Context, Functional, GradMode, Layer, Par, Record,
    Workspace, rows_of, rows_of_mut,
};
use resblock_candle::{Formula, Fused};
use std::time::{Duration, Instant};

/// Seconds of each contender in each row of the table.
#[derive(Parser)]
struct Options {
    /// Seconds of each contender in each row of the table.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Only rows whose text has this in it.
    #[arg(long, default_value = "")]
    only: String,
}

/// A block by candle's own operations.
struct Plain {
    norm: Option<LayerNorm>,
    up: Linear,
    down: Linear,
    gelu: bool,
}

impl Plain {
    fn new(d: usize, h: usize, pre_norm: bool, vb: &VarBuilder<'_>) -> Result<Self> {
        let norm = pre_norm.then(|| layer_norm(d, 1e-5, vb.pp("norm"))).transpose()?;
        // A small branch, so that 50 blocks do not grow beyond f32.
        let small = Init::Randn { mean: 0.0, stdev: 0.1 / (h as f64).sqrt() };
        let weight = vb.pp("down").get_with_hints((d, h), "weight", small)?;
        let down = Linear::new(weight, Some(vb.pp("down").get_with_hints(d, "bias", Init::Const(0.0))?));
        Ok(Self { norm, up: linear(d, h, vb.pp("up"))?, down, gelu: pre_norm })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let n = match &self.norm {
            // Candle's fused norm has no gradient: in training, what its layer does where it is not fused.
            Some(norm) if train => {
                let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
                let n = centred.broadcast_div(&(variance + norm.eps())?.sqrt()?)?.broadcast_mul(norm.weight())?;
                norm.bias().map_or(Ok(n.clone()), |bias| n.broadcast_add(bias))?
            }
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        let z = self.up.forward(&n)?;
        let h = if self.gelu { z.gelu()? } else { z.relu()? };
        x.add(&self.down.forward(&h)?)
    }

    fn parameters(&self) -> Vec<Tensor> {
        let maps = [&self.up, &self.down].into_iter().flat_map(|map| [Some(map.weight()), map.bias()]);
        let norm = self.norm.iter().flat_map(|norm| [Some(norm.weight()), norm.bias()]);
        maps.chain(norm).flatten().cloned().collect()
    }
}

/// The median of each of two functions, by turns.
fn race(
    seconds: f64,
    mut ours: impl FnMut() -> Result<()>,
    mut theirs: impl FnMut() -> Result<()>,
) -> Result<[f64; 2]> {
    for _ in 0..3 {
        ours()?;
        theirs()?;
    }
    let mut times = [Vec::new(), Vec::new()];
    let until = Instant::now() + Duration::from_secs_f64(2.0 * seconds);
    while Instant::now() < until || times[0].len() < 9 {
        let start = Instant::now();
        ours()?;
        let middle = Instant::now();
        theirs()?;
        times[0].push((middle - start).as_secs_f64());
        times[1].push(middle.elapsed().as_secs_f64());
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{} threads; medians in µs, and theirs over ours", candle_core::utils::get_num_threads());
    let columns = ["forward", "forward, backward", "by our backward", "candle's AdamW", "our AdamW"];
    println!("{:28} {}", "", columns.map(|column| format!("{column:>24}")).join(" "));
    let shapes = [(1, 128, 128, 1), (64, 384, 1536, 1), (256, 256, 256, 1), (1, 768, 3072, 1), (64, 64, 64, 50)];
    let mut logs = [0.0; 5];
    let mut rows = 0.0;
    for (kind, pre_norm) in [("ReLU", false), ("pre-LN GELU", true)] {
        for (n, d, h, depth) in shapes {
            let name = format!("({n},{d},{h}) x {depth} {kind}");
            if !name.contains(&options.only) {
                continue;
            }
            let (vars, cpu) = (VarMap::new(), Device::Cpu);
            let vb = VarBuilder::from_varmap(&vars, DType::F32, &cpu);
            let plain: Vec<_> = (0..depth).map(|i| Plain::new(d, h, pre_norm, &vb.pp(i))).collect::<Result<_>>()?;
            let form = if pre_norm { BlockForm::gpt2(d, h) } else { BlockForm::new(d, h, Activation::Relu) };
            let fused = plain.iter().map(|block| Fused::new(Formula::from(form), block.parameters()));
            let fused = Fused::chain(&fused.collect::<Result<Vec<_>>>()?)?;
            let frozen = fused.frozen()?;
            let bare = |block: &Plain| block.parameters().iter().map(Tensor::detach).collect::<Vec<_>>();
            let detached: Vec<_> = plain.iter().map(|block| Plain::of(&bare(block), block.gelu)).collect();
            let x = Tensor::randn(0f32, 1., (n, d), &cpu)?;
            let all =
                |blocks: &[Plain], train: bool| blocks.iter().try_fold(x.clone(), |x, block| block.forward(&x, train));

            let expected = all(&detached, false)?;
            let most = |t: Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
            let (difference, largest) = (most(expected.sub(&frozen.forward(&x)?)?)?, most(expected)?);
            assert!(difference < 1e-3 * largest, "{name}: {difference}");
            let forward = race(options.seconds, || frozen.forward(&x).map(drop), || all(&detached, false).map(drop))?;
            let loss = |y: Tensor| y.sqr()?.mean_all();
            let backward = race(
                options.seconds,
                || loss(fused.forward(&x)?)?.backward().map(drop),
                || loss(all(&plain, true)?)?.backward().map(drop),
            )?;
            let stored = race(
                options.seconds,
                || resblock_candle::backward(&loss(fused.forward(&x)?)?).map(drop),
                || loss(all(&plain, true)?)?.backward().map(drop),
            )?;
            let settings = ParamsAdamW { lr: 1e-6, ..ParamsAdamW::default() };
            let mut theirs = AdamW::new(vars.all_vars(), settings.clone())?;
            let mut same = AdamW::new(vars.all_vars(), settings.clone())?;
            let mut ours = resblock_candle::AdamW::new(vars.all_vars(), settings)?;
            let same = race(
                options.seconds,
                || same.backward_step(&loss(fused.forward(&x)?)?),
                || theirs.backward_step(&loss(all(&plain, true)?)?),
            )?;
            let step = race(
                options.seconds,
                || ours.backward_step(&loss(fused.forward(&x)?)?),
                || theirs.backward_step(&loss(all(&plain, true)?)?),
            )?;
            print!("{name:28}");
            for (sum, [ours, theirs]) in logs.iter_mut().zip([forward, backward, stored, same, step]) {
                print!(" {:9.1} {:9.1} {:4.2}", ours * 1e6, theirs * 1e6, theirs / ours);
                *sum += (theirs / ours).ln();
            }
            println!();
            rows += 1.0;
        }
    }
    println!("{:28} {}", "geometric mean", logs.map(|sum| format!("{:>24.2}", f64::exp(sum / rows))).join(" "));
    border(options.seconds)
}

impl Plain {
    fn of(parameters: &[Tensor], gelu: bool) -> Self {
        let linear = |at: usize| Linear::new(parameters[at].clone(), Some(parameters[at + 1].clone()));
        let norm = parameters.get(4).map(|gain| LayerNorm::new(gain.clone(), parameters[5].clone(), 1e-5));
        Self { norm, up: linear(0), down: linear(2), gelu }
    }
}

/// What the border costs: one row of a small block, by the core crate and by its candle operation.
fn border(seconds: f64) -> Result<()> {
    let (n, d, h) = (1, 128, 128);
    let cpu = Device::Cpu;
    let refused = candle_core::Error::wrap;
    let block = Block::residual(d, h, Activation::Relu, &mut resblock::Init::he(1)).map_err(refused)?;
    let tensors = block.parameters().map(|p| Tensor::from_vec(p.iter().collect::<Vec<_>>(), p.shape(), &cpu));
    let tensors = tensors.map(|t| t.and_then(|t| if t.dims()[0] == 1 { t.squeeze(0) } else { Ok(t) }));
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    let vars = tensors.iter().map(|t| Var::from_tensor(t).map(Var::into_inner)).collect::<Result<Vec<_>>>()?;
    let form = BlockForm::new(d, h, Activation::Relu);
    let (frozen, fused) = (Fused::new(form, tensors.clone())?, Fused::new(form, vars)?);
    let x = Tensor::randn(0f32, 1., (n, d), &cpu)?;
    let dy = Tensor::ones((n, d), DType::F32, &cpu)?;

    let ctx = Context::new().map_err(refused)?.with_par(Par::Rayon(0));
    let (values, mut y, mut ws) = (x.flatten_all()?.to_vec1::<f32>()?, vec![0.0; n * d], Workspace::new());
    let core = |ws: &mut Workspace, y: &mut [f32]| block.infer(&ctx, ws, rows_of(&values, d)?, rows_of_mut(y, d)?);
    let [core_time, ours] = race(seconds, || core(&mut ws, &mut y).map_err(refused), || frozen.forward(&x).map(drop))?;
    println!("({n},{d},{h}): forward {:.2} µs by the core, {:.2} by candle", core_time * 1e6, ours * 1e6);

    let flat = tensors.iter().map(|t| t.flatten_all()?.to_vec1::<f32>()).collect::<Result<Vec<_>>>()?;
    let functional = Functional::form(&form).map_err(refused)?;
    let mut record = Record::new();
    let mut step = || -> std::result::Result<(), resblock::Error> {
        let affines = [0, 2].map(|at| (&flat[at], &flat[at + 1]));
        let affines = [
            AffineRef { weights: rows_of(affines[0].0, d)?, bias: Some(affines[0].1) },
            AffineRef { weights: rows_of(affines[1].0, h)?, bias: Some(affines[1].1) },
        ];
        let mut grads: Vec<Vec<f32>> = flat.iter().map(|values| vec![0.0; values.len()]).collect();
        let (mut y, mut dx, dy) = (vec![0.0; n * d], vec![0.0; n * d], vec![1.0; n * d]);
        functional.forward_to(&ctx, &mut ws, &affines, rows_of(&values, d)?, rows_of_mut(&mut y, d)?, &mut record)?;
        let [dw1, db1, dw2, db2] = &mut grads[..] else { return Ok(()) };
        let mut places = [
            AffineGradMut { weights: Some(rows_of_mut(dw1, d)?), bias: Some(db1) },
            AffineGradMut { weights: Some(rows_of_mut(dw2, h)?), bias: Some(db2) },
        ];
        let (dx, dy) = (Some(rows_of_mut(&mut dx, d)?), rows_of(&dy, d)?);
        functional.backward(&ctx, &mut ws, &affines, record.as_slice(), dy, dx, &mut places, GradMode::Overwrite)
    };
    let x = Var::from_tensor(&x)?;
    let loss = || fused.forward(&x)?.mul(&dy)?.sum_all();
    let [core_time, stored] =
        race(seconds, || step().map_err(refused), || resblock_candle::backward(&loss()?).map(drop))?;
    let [_, ours] = race(seconds, || step().map_err(refused), || loss()?.backward().map(drop))?;
    println!(
        "forward and backward {:.2} µs by the core on lists of the host's, {:.2} by candle with our backward, {:.2} with its own",
        core_time * 1e6,
        stored * 1e6,
        ours * 1e6
    );
    Ok(())
}
