//! Training with burn's own optimisers, and BatchNorm's running averages.

use crate::common::{Numbers, assert_close, block, device, floats};
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Tensor};
use resblock_burn::resblock::{Activation, BlockForm, Dropout, Norm};
use resblock_burn::{Formula, Fused};

/// A net of a chain of layers, trained to double its input: the first loss and the last.
fn train(mut optimizer: ModuleOptimizer, rate: f64) -> (f32, f32) {
    let device = device();
    device.seed(1);
    let drop = Dropout { hidden: 0.1, ..Default::default() };
    let formulas = [
        Formula::linear(6, 16, Activation::Identity),
        BlockForm { dropout: drop, ..BlockForm::llama(16, 32) }.into(),
        Formula::norm(16, Norm::layer(1e-5)),
        Formula::linear(16, 6, Activation::Identity),
    ];
    let mut net = Fused::init(&formulas, &device).unwrap();
    let x = Numbers::new(1).tensor([32, 6], &device);
    let loss = |net: &Fused| (net.forward(x.clone()) - x.clone() * 2.0).square().mean();
    let first = loss(&net).into_scalar::<f32>();
    for _ in 0..80 {
        let grads = GradientsParams::from_grads(loss(&net).backward(), &net);
        net = optimizer.step(rate, net, grads);
    }
    (first, loss(&net).into_scalar::<f32>())
}

#[test]
fn burns_optimisers_train_it() {
    for (name, optimizer, rate) in [("AdamW", AdamWConfig::new().init(), 1e-2), ("SGD", SgdConfig::new().init(), 5e-2)]
    {
        let (first, last) = train(optimizer, rate);
        assert!(last < 0.3 * first, "{name}: {first} to {last}");
    }
}

#[test]
fn running_averages() {
    let form = BlockForm::resnet_v1(6, 8);
    let numbers = &mut Numbers::new(2);
    let layer = block(form, numbers);
    let x = numbers.tensor([40, 6], &device());
    let z = layer.maps[0].forward(x.clone());
    let before = floats(layer.running[0].value_sync());
    layer.forward(x.clone());
    let mean = floats(z.mean_dim(0));
    let expected: Vec<_> = before.iter().zip(mean).map(|(before, mean)| 0.9 * before + 0.1 * mean).collect();
    assert_close("running mean", &floats(layer.running[0].value_sync()), &expected);
    // Evaluation leaves them as they are, and a batch that is not finite is refused.
    let valid = layer.valid();
    valid.forward(x.clone().without_autodiff());
    assert_close("in evaluation", &floats(valid.running[0].value_sync()), &expected);
    assert!(layer.try_forward(x * f32::NAN).is_err());
    assert_close("after a refusal", &floats(layer.running[0].value_sync()), &expected);
}

#[test]
fn records_are_burns() {
    let numbers = &mut Numbers::new(3);
    let (trained, fresh) = (block(BlockForm::gpt2(6, 8), numbers), block(BlockForm::gpt2(6, 8), numbers));
    let x: Tensor<2> = numbers.tensor([3, 6], &Device::flex());
    let expected = floats(trained.valid().forward(x.clone()));
    assert_ne!(floats(fresh.valid().forward(x.clone())), expected);
    let loaded = fresh.load_record(trained.into_record());
    assert_eq!(floats(loaded.valid().forward(x)), expected);
    assert_eq!(loaded.num_params(), 2 * 6 * 8 + 8 + 3 * 6);
}
