//! This crate against burn's own modules: the same block, the same tensors, by turns in one process.
//!
//! `RAYON_NUM_THREADS=1 cargo run --release -p resblock-burn --example race`

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig, SwiGlu, SwiGluConfig};
use burn::tensor::{Device, Distribution, Tensor, activation};
use clap::Parser;
use resblock_burn::resblock::{
    self, Activation, AffineGradMut, AffineRef, BlockForm, Context, Functional, GradMode, MatMut, MatRef, Norm, Par,
    Record, Workspace, rows_of, rows_of_mut,
};
use resblock_burn::{Error, Formula, Fused};
use std::time::{Duration, Instant};

/// Seconds of each contender in each row of the table.
#[derive(Parser)]
struct Options {
    /// Seconds of each contender in each row of the table.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only rows whose text has this in it.
    #[arg(long, default_value = "")]
    only: String,
}

/// A block by burn's own modules.
#[derive(Module, Debug)]
enum Plain {
    PreLn(PreLn),
    SwiGlu(PreRms),
}

/// x + W2 gelu(W1 LN(x) + b1) + b2.
#[derive(Module, Debug)]
struct PreLn {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
}

/// x + W2 (silu(W1 n) ⊙ W3 n), n = RMSNorm(x).
#[derive(Module, Debug)]
struct PreRms {
    norm: RmsNorm,
    glu: SwiGlu,
    down: Linear,
}

const EPSILON: f64 = 1e-5;

impl Plain {
    fn new(kind: &str, d: usize, h: usize, device: &Device) -> Self {
        // A small branch, so that 50 blocks do not grow beyond f32.
        let small =
            |map: Linear| Linear { weight: Param::from_tensor(map.weight.val().set_require_grad(false) * 0.1), ..map };
        match kind {
            "pre-LN GELU" => Self::PreLn(PreLn {
                norm: LayerNormConfig::new(d).with_epsilon(EPSILON).init(device),
                up: LinearConfig::new(d, h).init(device),
                down: small(LinearConfig::new(h, d).init(device)),
            }),
            _ => Self::SwiGlu(PreRms {
                norm: RmsNormConfig::new(d).with_epsilon(EPSILON).init(device),
                glu: SwiGluConfig::new(d, h).init(device),
                down: small(LinearConfig::new(h, d).with_bias(false).init(device)),
            }),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::PreLn(PreLn { norm, up, down }) => {
                x.clone() + down.forward(activation::gelu(up.forward(norm.forward(x))))
            }
            Self::SwiGlu(PreRms { norm, glu, down }) => x.clone() + down.forward(glu.forward(norm.forward(x))),
        }
    }

    /// The same block, with the same parameters, by this crate.
    fn fused(&self, d: usize, h: usize) -> Result<Fused, Error> {
        let (form, maps, vectors) = match self.clone() {
            Self::PreLn(PreLn { norm, up, down }) => {
                let form = BlockForm { pre_norm: Some(Norm::layer(EPSILON as f32)), ..BlockForm::vit(d, h) };
                (form, vec![up, down], [Some(norm.gamma), norm.beta].into_iter().flatten().collect())
            }
            Self::SwiGlu(PreRms { norm, glu, down }) => {
                let form = BlockForm { pre_norm: Some(Norm::rms(EPSILON as f32)), ..BlockForm::llama(d, h) };
                (form, vec![glu.linear_inner, glu.linear_outer, down], vec![norm.gamma])
            }
        };
        Fused::from_parts(&[Formula::Block(form)], maps, vectors, Vec::new())
    }
}

/// The median of each of two functions, by turns.
fn race(seconds: f64, mut ours: impl FnMut(), mut theirs: impl FnMut()) -> [f64; 2] {
    for _ in 0..3 {
        ours();
        theirs();
    }
    let mut times = [Vec::new(), Vec::new()];
    let until = Instant::now() + Duration::from_secs_f64(2.0 * seconds);
    while Instant::now() < until || times[0].len() < 9 {
        let start = Instant::now();
        ours();
        let middle = Instant::now();
        theirs();
        times[0].push((middle - start).as_secs_f64());
        times[1].push(middle.elapsed().as_secs_f64());
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

/// Forward and backward, of which the gradients are dropped.
fn step(y: Tensor<2>) {
    drop(y.square().mean().backward());
}

fn main() -> Result<(), Error> {
    let Options { seconds, only } = Options::parse();
    println!("{} threads; medians in µs, and theirs over ours", rayon::current_num_threads());
    println!("{:36} {:>26} {:>26}", "(rows, width, hidden) x blocks", "forward", "forward and backward");
    let (mut logs, mut rows) = ([0.0; 2], 0.0);
    let (plain_device, device) = (Device::flex(), Device::flex().autodiff());
    for kind in ["pre-LN GELU", "pre-RMS SwiGLU"] {
        for (n, d, h, depth) in [(64, 384, 1536, 1), (256, 256, 256, 1), (1, 768, 3072, 1), (64, 64, 64, 50)] {
            let name = format!("({n},{d},{h}) x {depth} {kind}");
            if !name.contains(&only) {
                continue;
            }
            let plain: Vec<_> = (0..depth).map(|_| Plain::new(kind, d, h, &device)).collect();
            let fused = Fused::chain(plain.iter().map(|block| block.fused(d, h)).collect::<Result<_, _>>()?)?;
            let (plain_valid, fused_valid) = (plain.valid(), fused.valid());
            let x = Tensor::<2>::random([n, d], Distribution::Default, &plain_device);
            let all = |blocks: &[Plain], x: &Tensor<2>| blocks.iter().fold(x.clone(), |x, block| block.forward(x));

            let expected = all(&plain_valid, &x);
            let most = |t: Tensor<2>| t.abs().max().into_scalar::<f32>();
            let (difference, largest) = (most(expected.clone() - fused_valid.forward(x.clone())), most(expected));
            assert!(difference < 1e-4 * largest, "{name}: {difference}");
            let forward = race(seconds, || drop(fused_valid.forward(x.clone())), || drop(all(&plain_valid, &x)));
            let x = Tensor::from_inner(x).require_grad();
            let backward = race(seconds, || step(fused.forward(x.clone())), || step(all(&plain, &x)));
            print!("{name:36}");
            for (sum, [ours, theirs]) in logs.iter_mut().zip([forward, backward]) {
                print!(" {:10.1} {:10.1} {:4.2}", ours * 1e6, theirs * 1e6, theirs / ours);
                *sum += (theirs / ours).ln();
            }
            println!();
            rows += 1.0;
        }
    }
    println!("{:36} {}", "geometric mean", logs.map(|sum| format!("{:>26.2}", f64::exp(sum / rows))).join(" "));
    border(seconds)
}

/// What the border costs: one row of a small block, by the core crate and by its burn module.
fn border(seconds: f64) -> Result<(), Error> {
    let (n, d, h) = (1, 128, 128);
    let device = Device::flex().autodiff();
    let form = BlockForm::new(d, h, Activation::Relu);
    let fused = Fused::new(form, &device)?;
    let valid = fused.valid();
    let x = Tensor::<2>::random([n, d], Distribution::Default, &Device::flex());
    fn floats<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
        tensor.to_data().iter::<f32>().collect()
    }
    let maps: Vec<_> = valid
        .maps
        .iter()
        .map(|map| (floats(&map.weight.val()), map.bias.as_ref().map_or(Vec::new(), |bias| floats(&bias.val()))))
        .collect();
    let (values, mut y) = (floats(&x), vec![0.0; n * d]);
    let ctx = Context::new()?.with_par(Par::Rayon(0)).with_linger(Duration::ZERO);
    let (functional, mut ws, mut record) = (Functional::form(&form)?, Workspace::new(), Record::new());
    let affines = maps
        .iter()
        .zip([(d, h), (h, d)])
        .map(|((weight, bias), (inputs, outputs))| {
            Ok(AffineRef { weights: MatRef::new(weight, inputs, outputs)?.t(), bias: Some(bias) })
        })
        .collect::<Result<Vec<_>, resblock::Error>>()?;

    let x_view = rows_of(&values, d)?;
    let mut infer = || functional.infer(&ctx, &mut ws, &affines[..], x_view, rows_of_mut(&mut y, d)?);
    let [ours, core] = race(seconds, || drop(valid.forward(x.clone())), || infer().expect("a forward pass"));
    println!("({n},{d},{h}): forward {:.2} µs by the core, {:.2} by burn", core * 1e6, ours * 1e6);

    let mut pass = || -> Result<(), resblock::Error> {
        let (mut y, mut dx, dy) = (vec![0.0; n * d], vec![0.0; n * d], vec![1.0; n * d]);
        functional.forward_to(&ctx, &mut ws, &affines[..], x_view, rows_of_mut(&mut y, d)?, &mut record)?;
        let [mut dw1, mut db1, mut dw2, mut db2] = [d * h, h, h * d, d].map(|len| vec![0.0; len]);
        let mut places = [
            AffineGradMut { weights: Some(MatMut::new(&mut dw1, d, h)?.t()), bias: Some(&mut db1) },
            AffineGradMut { weights: Some(MatMut::new(&mut dw2, h, d)?.t()), bias: Some(&mut db2) },
        ];
        let (dx, dy) = (Some(rows_of_mut(&mut dx, d)?), rows_of(&dy, d)?);
        let record = record.as_slice();
        functional.backward(&ctx, &mut ws, &affines[..], record, dy, dx, &mut places[..], GradMode::Overwrite)
    };
    let x = Tensor::from_inner(x).require_grad();
    let [ours, core] =
        race(seconds, || drop(fused.forward(x.clone()).sum().backward()), || pass().expect("a training pass"));
    let [sum, _] = race(seconds, || drop(x.clone().sum().backward()), || ());
    println!(
        "forward and backward {:.2} µs by the core on lists of the host's, {:.2} by burn, of which {:.2} are a sum and its own backward pass",
        core * 1e6,
        ours * 1e6,
        sum * 1e6
    );
    Ok(())
}
