//! Blocks by burn's own operations, which have gradients of their own, in f64.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use resblock_burn::resblock::{Activation, BlockForm, BranchScale, Norm, NormKind, Role, Skip};
use resblock_burn::{Formula, Fused};

/// A small generator, so that a test has the same numbers each time.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    /// In [-1, 1).
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1 << 24) as f32).mul_add(2.0, -1.0)
    }

    pub(crate) fn tensor<const D: usize>(&mut self, dims: [usize; D], device: &Device) -> Tensor<D> {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| self.next()).collect();
        Tensor::from_data(TensorData::new(values, dims), device)
    }
}

/// The device of graphs.
pub(crate) fn device() -> Device {
    Device::flex().autodiff()
}

/// A layer of these forms with such parameters as trained networks have.
pub(crate) fn layer(formulas: &[Formula], numbers: &mut Numbers, device: &Device) -> Fused {
    let (mut maps, mut vectors) = (Vec::new(), Vec::new());
    for (name, (rows, cols)) in formulas.iter().flat_map(Formula::tensors) {
        match name.role {
            Role::Weight => {
                let weight = numbers.tensor([cols, rows], device) / (cols as f64).sqrt();
                maps.push(Linear { weight: Param::from_tensor(weight), bias: None });
            }
            Role::Bias => {
                let bias = numbers.tensor([cols], device) * 0.3;
                maps.last_mut().expect("weights before a bias").bias = Some(Param::from_tensor(bias));
            }
            Role::Gain => vectors.push(Param::from_tensor(numbers.tensor([cols], device) * 0.2 + 1.0)),
            role if role.is_learned() => vectors.push(Param::from_tensor(numbers.tensor([cols], device) * 0.3)),
            _ => {}
        }
    }
    let running = Fused::init(formulas, device).unwrap().running;
    Fused::from_parts(formulas, maps, vectors, running).unwrap()
}

pub(crate) fn block(form: BlockForm, numbers: &mut Numbers) -> Fused {
    layer(&[form.into()], numbers, &device())
}

/// φ.
fn act(phi: Activation, z: Tensor<2>) -> Tensor<2> {
    match phi {
        Activation::Identity => z,
        Activation::Relu => activation::relu(z),
        Activation::Gelu => activation::gelu(z),
        Activation::GeluTanh => activation::gelu_approximate(z),
        Activation::Silu => activation::silu(z),
        Activation::Tanh => activation::tanh(z),
        other => panic!("the reference has no {other:?}"),
    }
}

/// A norm of rows, or of columns by the statistics of the batch or, if there are any, the running averages.
fn norm(
    norm: Norm,
    x: Tensor<2>,
    next: &mut impl FnMut() -> Tensor<2>,
    running: &mut impl FnMut() -> Tensor<2>,
    batch: bool,
) -> Tensor<2> {
    let gain = norm.gain.then(&mut *next);
    let shift = norm.shift.then(&mut *next);
    let (centred, variance) = match norm.kind {
        NormKind::Rms => (x.clone(), x.square().mean_dim(1)),
        NormKind::Batch => {
            let (mean, variance) = (running(), running());
            if batch {
                let centred = x.clone() - x.mean_dim(0);
                (centred.clone(), centred.square().mean_dim(0))
            } else {
                (x - mean, variance)
            }
        }
        _ => {
            let centred = x.clone() - x.mean_dim(1);
            (centred.clone(), centred.square().mean_dim(1))
        }
    };
    let mut y = centred / (variance + f64::from(norm.epsilon)).sqrt();
    if let Some(gain) = gain {
        y = y * gain;
    }
    match shift {
        Some(shift) => y + shift,
        None => y,
    }
}

/// A parameter in f64.
fn wide<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.cast(DType::F64)
}

/// The formula of a block by burn's operations, in f64, with the layer's own parameters.
pub(crate) fn reference(layer: &Fused, form: &BlockForm, x: Tensor<2>, batch: bool) -> Tensor<2> {
    let x = wide(x);
    let map = |at: usize, x: Tensor<2>| {
        let Linear { weight, bias } = &layer.maps[at];
        let z = x.matmul(wide(weight.val()));
        match bias {
            Some(bias) => z + wide(bias.val()).unsqueeze(),
            None => z,
        }
    };
    let mut vectors = layer.vectors.iter();
    let mut next = || wide(vectors.next().expect("as many vectors as the form has").val()).unsqueeze::<2>();
    let mut averages = layer.running.iter();
    let mut running = || wide(averages.next().expect("as many averages as the form has").value()).unsqueeze::<2>();
    let second = if form.gated { 2 } else { 1 };

    let mut n = x.clone();
    if let Some(pre) = form.pre_norm {
        n = norm(pre, n, &mut next, &mut running, batch);
    }
    let n = act(form.pre_activation, n);
    let mut z = map(0, n.clone());
    if let Some(inner) = form.inner_norm {
        z = norm(inner, z, &mut next, &mut running, batch);
    }
    let mut h = act(form.activation, z);
    if form.gated {
        h = h * map(1, n);
    }
    let scale = match form.branch_scale {
        BranchScale::Constant(_) => None,
        _ => Some(next()),
    };
    let mut f = map(second, h);
    if let Some(branch) = form.branch_norm {
        f = norm(branch, f, &mut next, &mut running, batch);
    }
    f = match (form.branch_scale, scale) {
        (BranchScale::Constant(c), _) => f * f64::from(c),
        (_, Some(scale)) => f * scale,
        _ => f,
    };
    let skip = match form.skip {
        Skip::None => None,
        Skip::Projection => Some(map(second + 1, x)),
        _ => Some(x),
    };
    let r = match skip {
        Some(skip) => f + skip * f64::from(form.skip_scale),
        None => f,
    };
    match form.post_norm {
        Some(post) => norm(post, r, &mut next, &mut running, batch),
        None => act(form.post_activation, r),
    }
}

/// Named forms, and some that have what these have not.
pub(crate) fn forms(d: usize, h: usize) -> Vec<(&'static str, BlockForm)> {
    let bare = BlockForm::new(d, h, Activation::Relu);
    vec![
        ("bare", bare),
        ("plain", BlockForm { skip: Skip::None, ..bare }),
        ("unbiased", BlockForm { biases: false, ..BlockForm::new(d, h, Activation::Gelu) }),
        ("projected", BlockForm { skip: Skip::Projection, outputs: d + 3, ..bare }),
        ("gpt2", BlockForm::gpt2(d, h)),
        ("bert", BlockForm::bert(d, h)),
        ("llama", BlockForm::llama(d, h)),
        ("t5", BlockForm::t5(d, h)),
        ("cait", BlockForm::cait(d, h, 0.1)),
        ("sandwich", BlockForm::sandwich(d, h)),
        ("rezero", BlockForm::rezero(d, h)),
        ("deepnorm", BlockForm::deepnorm(d, h, 6)),
        ("resnet_v1", BlockForm::resnet_v1(d, h)),
        ("resnet_v2", BlockForm::resnet_v2(d, h)),
        ("tabular", BlockForm::tabular(d, h, Default::default())),
        ("euler", BlockForm::euler(d, h, Activation::Tanh, 0.25)),
    ]
}

pub(crate) fn has_batch_norm(form: &BlockForm) -> bool {
    let norms = [form.pre_norm, form.inner_norm, form.branch_norm, form.post_norm];
    norms.into_iter().flatten().any(|norm| norm.kind == NormKind::Batch)
}

pub(crate) fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Gradients of a layer's parameters: those of maps, weights and bias, then of vectors; None of what is not tracked.
pub(crate) fn gradients(layer: &Fused, grads: &burn::tensor::Gradients) -> Vec<Option<Vec<f32>>> {
    let mut all = Vec::new();
    for Linear { weight, bias } in &layer.maps {
        all.push(weight.grad(grads).map(floats));
        all.extend(bias.iter().map(|bias| bias.grad(grads).map(floats)));
    }
    all.extend(layer.vectors.iter().map(|vector| vector.grad(grads).map(floats)));
    all
}

/// That two lists agree but for rounding: to 2e-5 of the largest element, or of 1.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1.0, |most: f32, v| most.max(v.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 2e-5 * size, "{what}[{at}]: {found} for {expected}, of at most {size}");
    }
}
