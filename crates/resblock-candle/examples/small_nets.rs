//! Training steps of small networks, as inner loops of reinforcement learning have them: forward, mean squared error, backward, AdamW. The core crate, this
//! adapter, and candle's own layers, by turns. `small_nets.py` does the same in PyTorch.
//!
//! `RAYON_NUM_THREADS=1 cargo run --release -p resblock-candle --example small_nets`

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{AdamW, Linear, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear, loss};
use clap::Parser;
use resblock_candle::resblock::{
    self, Activation, Context, GradMode, Gradients, Init, Layer, Par, rows_of, rows_of_mut,
};
use resblock_candle::{Formula, Fused};
use std::time::{Duration, Instant};

/// Seconds of each row of the table.
#[derive(Parser)]
struct Options {
    /// Seconds of each row of the table.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// Layers of some widths, φ after all but the last, as many networks of them as are trained at once.
struct Net {
    name: &'static str,
    widths: &'static [usize],
    phi: Activation,
    batch: usize,
    count: usize,
}

const NETS: [Net; 3] = [
    Net {
        name: "Twin-Q, 2 x 24-256-256-1, 64 rows",
        widths: &[24, 256, 256, 1],
        phi: Activation::Relu,
        batch: 64,
        count: 2,
    },
    Net { name: "DQN, 8-64-64-4, 64 rows", widths: &[8, 64, 64, 4], phi: Activation::Relu, batch: 64, count: 1 },
    Net {
        name: "HIGGS, 28-5x300-1 tanh, 100 rows",
        widths: &[28, 300, 300, 300, 300, 300, 1],
        phi: Activation::Tanh,
        batch: 100,
        count: 1,
    },
];

impl Net {
    /// Inputs, outputs and activation of each layer.
    fn layers(&self) -> impl Iterator<Item = (usize, usize, Activation)> {
        let last = self.widths.len() - 2;
        let phi = move |at| if at == last { Activation::Identity } else { self.phi };
        self.widths.windows(2).enumerate().map(move |(at, pair)| (pair[0], pair[1], phi(at)))
    }
}

type Step = Box<dyn FnMut() -> Result<()>>;
type Forward = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

fn core(net: &Net, x: &[f32], target: &[f32]) -> std::result::Result<Step, resblock::Error> {
    let ctx = Context::new()?.with_par(Par::Rayon(0));
    let mut init = Init::he(1);
    let mut parts = Vec::new();
    for _ in 0..net.count {
        let layers = net.layers().map(|(i, o, phi)| resblock::Linear::with_init(i, o, phi, &mut init).map(Into::into));
        let layers = resblock::Sequence::new(layers.collect::<std::result::Result<Vec<_>, _>>()?)?;
        let grads = Gradients::new(&layers)?;
        parts.push((layers, grads, resblock::AdamW::new(1e-3)));
    }
    let (x, target, mut ws) = (x.to_vec(), target.to_vec(), resblock::Workspace::new());
    let (inputs, outputs) = (net.widths[0], net.widths[net.widths.len() - 1]);
    let (mut y, mut dy) = (target.clone(), target.clone());
    let mut step = move || -> std::result::Result<(), resblock::Error> {
        use resblock::Optimizer;
        for (layers, grads, adam) in &mut parts {
            let pass = layers.forward(&ctx, &mut ws, rows_of(&x, inputs)?, rows_of_mut(&mut y, outputs)?)?;
            let dy_out = Some(rows_of_mut(&mut dy, outputs)?);
            resblock::mean_squared_error(rows_of(&y, outputs)?, rows_of(&target, outputs)?, dy_out)?;
            pass.backward(rows_of(&dy, outputs)?, None, grads, GradMode::Overwrite)?;
            adam.step(&ctx, layers, grads)?;
        }
        Ok(())
    };
    Ok(Box::new(move || step().map_err(candle_core::Error::wrap)))
}

/// Whose layers, whose optimiser.
fn candle(net: &Net, x: &Tensor, target: &Tensor, ours: bool) -> Result<Step> {
    let mut vars: Vec<Var> = Vec::new();
    let mut nets: Vec<Forward> = Vec::new();
    for _ in 0..net.count {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        if ours {
            let layers =
                net.layers().enumerate().map(|(at, (i, o, phi))| Fused::build(Formula::linear(i, o, phi), vb.pp(at)));
            let chain = Fused::chain(&layers.collect::<Result<Vec<_>>>()?)?;
            nets.push(Box::new(move |x| chain.forward(x)));
        } else {
            let layers = net.layers().enumerate().map(|(at, (i, o, phi))| Ok((linear(i, o, vb.pp(at))?, phi)));
            let layers = layers.collect::<Result<Vec<(Linear, Activation)>>>()?;
            nets.push(Box::new(move |x| {
                layers.iter().try_fold(x.clone(), |x, (layer, phi)| {
                    let z = layer.forward(&x)?;
                    match phi {
                        Activation::Relu => z.relu(),
                        Activation::Tanh => z.tanh(),
                        _ => Ok(z),
                    }
                })
            }));
        }
        vars.extend(map.all_vars());
    }
    let settings = ParamsAdamW { lr: 1e-3, ..ParamsAdamW::default() };
    let (x, target) = (x.clone(), target.clone());
    let all = move || -> Result<Tensor> {
        let losses = nets.iter().map(|net| loss::mse(&net(&x)?, &target)).collect::<Result<Vec<_>>>()?;
        losses[1..].iter().try_fold(losses[0].clone(), |sum, loss| sum.add(loss))
    };
    if ours {
        let mut adam = resblock_candle::AdamW::new(vars, settings)?;
        Ok(Box::new(move || adam.backward_step(&all()?)))
    } else {
        let mut adam = AdamW::new(vars, settings)?;
        Ok(Box::new(move || adam.backward_step(&all()?)))
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{} threads; medians of a training step in µs", candle_core::utils::get_num_threads());
    println!("{:36} {:>9} {:>9} {:>9}", "", "core", "adapter", "candle");
    for net in &NETS {
        let (inputs, outputs) = (net.widths[0], net.widths[net.widths.len() - 1]);
        let x = Tensor::randn(0f32, 1., (net.batch, inputs), &Device::Cpu)?;
        let target = Tensor::randn(0f32, 1., (net.batch, outputs), &Device::Cpu)?;
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        let mut steps = [
            core(net, &flat(&x)?, &flat(&target)?).map_err(candle_core::Error::wrap)?,
            candle(net, &x, &target, true)?,
            candle(net, &x, &target, false)?,
        ];
        let mut times = [const { Vec::new() }; 3];
        let until = Instant::now() + Duration::from_secs_f64(options.seconds);
        while Instant::now() < until {
            for (step, times) in steps.iter_mut().zip(&mut times) {
                let start = Instant::now();
                step()?;
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        let medians = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            format!("{:9.1}", times[times.len() / 2])
        });
        println!("{:36} {}", net.name, medians.join(" "));
    }
    Ok(())
}
