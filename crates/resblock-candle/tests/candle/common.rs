//! Blocks by candle's own operations, which have gradients of their own, in f64.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use resblock_candle::Fused;
use resblock_candle::resblock::{Activation, BlockForm, BranchScale, Norm, NormKind, Role, Skip};

/// A small generator: the tests' own, since candle's on the CPU takes no seed.
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

    pub(crate) fn tensor(&mut self, dims: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| self.next()).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }
}

/// Parameters of a form: variables.
pub(crate) fn variables(form: &BlockForm, numbers: &mut Numbers) -> Vec<Var> {
    let tensors = form.tensors().map(|(name, (rows, cols))| {
        let values = match name.role {
            Role::Weight => (numbers.tensor(&[rows, cols]) * (1.0 / (cols as f64).sqrt())).unwrap(),
            Role::Gain | Role::RunningVariance => ((numbers.tensor(&[cols]) * 0.2).unwrap() + 1.0).unwrap(),
            _ => (numbers.tensor(&[cols]) * 0.3).unwrap(),
        };
        Var::from_tensor(&values).unwrap()
    });
    tensors.collect()
}

/// The layer with these parameters.
pub(crate) fn fused(form: &BlockForm, variables: &[Var]) -> Fused {
    Fused::new(*form, variables.iter().map(|v| v.as_tensor().clone()).collect()).unwrap()
}

/// φ.
fn act(phi: Activation, z: &Tensor) -> Result<Tensor> {
    match phi {
        Activation::Identity => Ok(z.clone()),
        Activation::Relu => z.relu(),
        Activation::Gelu => z.gelu_erf(),
        Activation::GeluTanh => z.gelu(),
        Activation::Silu => z.silu(),
        Activation::Tanh => z.tanh(),
        other => panic!("the reference has no {other:?}"),
    }
}

/// A norm of rows, or of columns by the statistics of the batch or, if there are any, the running averages.
fn norm(norm: Norm, x: &Tensor, next: &mut impl FnMut() -> Tensor, batch: bool) -> Result<Tensor> {
    let gain = norm.gain.then(&mut *next);
    let shift = norm.shift.then(&mut *next);
    let (centred, variance) = match norm.kind {
        NormKind::Rms => (x.clone(), x.sqr()?.mean_keepdim(D::Minus1)?),
        NormKind::Batch => {
            let (mean, variance) = (next(), next());
            if batch {
                let centred = x.broadcast_sub(&x.mean_keepdim(0)?)?;
                let variance = centred.sqr()?.mean_keepdim(0)?;
                (centred, variance)
            } else {
                (x.broadcast_sub(&mean)?, variance.unsqueeze(0)?)
            }
        }
        _ => {
            let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
            (centred, variance)
        }
    };
    let mut y = centred.broadcast_div(&(variance + f64::from(norm.epsilon))?.sqrt()?)?;
    if let Some(gain) = gain {
        y = y.broadcast_mul(&gain)?;
    }
    match shift {
        Some(shift) => y.broadcast_add(&shift),
        None => Ok(y),
    }
}

/// The formula of a form by candle's operations, on a matrix x and parameters of any float type.
pub(crate) fn reference(form: &BlockForm, x: &Tensor, parameters: &[Tensor], batch: bool) -> Result<Tensor> {
    let maps = form.tensors().filter(|(name, _)| name.role == Role::Weight).count();
    let per_map = if form.biases { 2 } else { 1 };
    let map = |at: usize, x: &Tensor| -> Result<Tensor> {
        let z = x.matmul(&parameters[at * per_map].t()?)?;
        if form.biases { z.broadcast_add(&parameters[at * per_map + 1]) } else { Ok(z) }
    };
    let mut vectors = parameters[maps * per_map..].iter().cloned();
    let mut next = || vectors.next().expect("as many vectors as the form has");
    let second = if form.gated { 2 } else { 1 };

    let mut n = x.clone();
    if let Some(pre) = form.pre_norm {
        n = norm(pre, &n, &mut next, batch)?;
    }
    let n = act(form.pre_activation, &n)?;
    let mut z = map(0, &n)?;
    if let Some(inner) = form.inner_norm {
        z = norm(inner, &z, &mut next, batch)?;
    }
    let mut h = act(form.activation, &z)?;
    if form.gated {
        h = h.mul(&map(1, &n)?)?;
    }
    let scale = match form.branch_scale {
        BranchScale::Constant(_) => None,
        _ => Some(next()),
    };
    let mut f = map(second, &h)?;
    if let Some(branch) = form.branch_norm {
        f = norm(branch, &f, &mut next, batch)?;
    }
    f = match (form.branch_scale, scale) {
        (BranchScale::Constant(c), _) => (f * f64::from(c))?,
        (_, Some(scale)) => f.broadcast_mul(&scale)?,
        _ => f,
    };
    let skip = match form.skip {
        Skip::None => None,
        Skip::Projection => Some(map(second + 1, x)?),
        _ => Some(x.clone()),
    };
    let mut r = f;
    if let Some(skip) = skip {
        r = r.add(&(skip * f64::from(form.skip_scale))?)?;
    }
    match form.post_norm {
        Some(post) => norm(post, &r, &mut next, batch),
        None => act(form.post_activation, &r),
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

/// The same tensors as variables of f64.
pub(crate) fn wide(variables: &[Var]) -> Vec<Var> {
    let wide = |v: &Var| Var::from_tensor(&v.as_tensor().detach().to_dtype(DType::F64).unwrap()).unwrap();
    variables.iter().map(wide).collect()
}

pub(crate) fn tensors(variables: &[Var]) -> Vec<Tensor> {
    variables.iter().map(|v| v.as_tensor().clone()).collect()
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// That two tensors agree but for rounding: to 2e-5 of the largest element, or of 1.
pub(crate) fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let found: Vec<f64> = found.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let expected: Vec<f64> = expected.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let size = expected.iter().fold(1.0, |most: f64, v| most.max(v.abs()));
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() <= 2e-5 * size, "{what}[{at}]: {found} for {expected}, of at most {size}");
    }
}
