//! Formulas as C writes them. Numbers that stand for one of several things are checked: any may come.

use crate::memory::{exclusive, text};
use crate::status::{Failure, Status, enter};
use std::ffi::c_char;

/// φ(z) = z.
pub const RESBLOCK_IDENTITY: u32 = 0;
/// max(z, 0).
pub const RESBLOCK_RELU: u32 = 1;
/// z if z > 0, else `parameter` times z.
pub const RESBLOCK_LEAKY_RELU: u32 = 2;
/// z times the normal distribution function.
pub const RESBLOCK_GELU: u32 = 3;
/// GELU by tanh.
pub const RESBLOCK_GELU_TANH: u32 = 4;
/// z / (1 + e^-z).
pub const RESBLOCK_SILU: u32 = 5;
/// tanh(z).
pub const RESBLOCK_TANH: u32 = 6;
/// 1 / (1 + e^-z).
pub const RESBLOCK_SIGMOID: u32 = 7;
/// max(z, 0)².
pub const RESBLOCK_RELU_SQUARED: u32 = 8;
/// z / (1 + e^(-`parameter` z)).
pub const RESBLOCK_SILU_BETA: u32 = 9;
/// z tanh(ln(1 + e^z)).
pub const RESBLOCK_MISH: u32 = 10;
/// z min(max(z + 3, 0), 6) / 6.
pub const RESBLOCK_HARDSWISH: u32 = 11;
/// z if z > 0, else `parameter` (e^z - 1).
pub const RESBLOCK_ELU: u32 = 12;
/// ln(1 + e^z).
pub const RESBLOCK_SOFTPLUS: u32 = 13;

/// No norm.
pub const RESBLOCK_NORM_NONE: u32 = 0;
/// LayerNorm.
pub const RESBLOCK_NORM_LAYER: u32 = 1;
/// RMSNorm.
pub const RESBLOCK_NORM_RMS: u32 = 2;
/// BatchNorm.
pub const RESBLOCK_NORM_BATCH: u32 = 3;

/// y = x + G(x).
pub const RESBLOCK_SKIP_IDENTITY: u32 = 0;
/// y = G(x).
pub const RESBLOCK_SKIP_NONE: u32 = 1;
/// y = x Wsᵀ + bs + G(x).
pub const RESBLOCK_SKIP_PROJECTION: u32 = 2;

/// The branch is multiplied by `value`, which is not learned.
pub const RESBLOCK_SCALE_CONSTANT: u32 = 0;
/// By one number that is learned, from `value` on.
pub const RESBLOCK_SCALE_SCALAR: u32 = 1;
/// By a number for each output that is learned, from `value` on.
pub const RESBLOCK_SCALE_VECTOR: u32 = 2;

/// The formula is `block`.
pub const RESBLOCK_FORMULA_BLOCK: u32 = 0;
/// The formula is `linear`.
pub const RESBLOCK_FORMULA_LINEAR: u32 = 1;
/// The formula is `norm`.
pub const RESBLOCK_FORMULA_NORM: u32 = 2;

/// An activation.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Activation {
    /// RESBLOCK_RELU, ...
    pub kind: u32,
    /// Of those that have one.
    pub parameter: f32,
}

/// A norm.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// RESBLOCK_NORM_NONE, ...
    pub kind: u32,
    /// ε.
    pub epsilon: f32,
    /// Whether there is a γ.
    pub gain: bool,
    /// Whether there is a β.
    pub shift: bool,
}

/// What the branch of a block is multiplied by.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct BranchScale {
    /// RESBLOCK_SCALE_CONSTANT, ...
    pub kind: u32,
    /// The number.
    pub value: f32,
}

/// Probabilities to drop.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// Elements of h.
    pub hidden: f32,
    /// Elements of the branch.
    pub branch: f32,
    /// The branch of a whole row.
    pub depth: f32,
}

/// A residual block of two weight layers:
///
/// ```text
/// n = a(N1(x)),  z = n W1ᵀ + b1,  h = φ(N2(z))  or, gated,  h = φ(z) ⊙ (n W3ᵀ + b3),  F = N4(drop(h) W2ᵀ + b2), dropped itself
/// r = α S(x) + λ F,  y = p(r)  or  N3(r)
/// ```
///
/// N1, N2, N3, N4: pre_norm, inner_norm, post_norm, branch_norm; a, φ, p: pre_activation, activation, post_activation; S, α: skip, skip_scale;
/// λ: branch_scale. Begin with resblock_form_new or resblock_form_named, and change what differs.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Features of x.
    pub inputs: usize,
    /// Features of h.
    pub hidden: usize,
    /// Features of y.
    pub outputs: usize,
    /// Whether the maps have biases.
    pub biases: bool,
    /// Whether there is a W3.
    pub gated: bool,
    /// φ.
    pub activation: Activation,
    /// a.
    pub pre_activation: Activation,
    /// p.
    pub post_activation: Activation,
    /// N1.
    pub pre_norm: Norm,
    /// N2.
    pub inner_norm: Norm,
    /// N3.
    pub post_norm: Norm,
    /// N4.
    pub branch_norm: Norm,
    /// S: RESBLOCK_SKIP_IDENTITY, ...
    pub skip: u32,
    /// α.
    pub skip_scale: f32,
    /// λ.
    pub branch_scale: BranchScale,
    /// What is dropped in recorded passes that have a draw.
    pub dropout: Dropout,
    /// Factors on the initial W1 (and W3) and W2.
    pub init_scales: [f32; 2],
}

/// y = φ(x Wᵀ + b) (+ x).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// Features of x.
    pub inputs: usize,
    /// Features of y.
    pub outputs: usize,
    /// Whether there is a b.
    pub bias: bool,
    /// Whether x is added.
    pub residual: bool,
    /// φ.
    pub activation: Activation,
}

/// y = φ(N(x)).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct NormLayer {
    /// Features of x and y.
    pub width: usize,
    /// N.
    pub norm: Norm,
    /// φ.
    pub activation: Activation,
}

/// What a layer computes: the member that `kind` names; the others are ignored.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Formula {
    /// RESBLOCK_FORMULA_BLOCK, ...
    pub kind: u32,
    /// A block.
    pub block: Form,
    /// A linear layer.
    pub linear: Linear,
    /// A norm.
    pub norm: NormLayer,
}

fn unknown(operand: &str, found: u32) -> Failure {
    Failure::new(Status::Setting, format!("{operand}: there is no number {found}"))
}

/// Activations by number, without their parameters.
const ACTIVATIONS: [resblock::Activation; 14] = resblock::Activation::ALL;

impl Activation {
    fn read(self, operand: &str) -> Result<resblock::Activation, Failure> {
        use resblock::Activation as A;
        let Some(&known) = ACTIVATIONS.get(self.kind as usize) else { return Err(unknown(operand, self.kind)) };
        Ok(match known {
            A::LeakyRelu(_) => A::LeakyRelu(self.parameter),
            A::SiluBeta(_) => A::SiluBeta(self.parameter),
            A::Elu(_) => A::Elu(self.parameter),
            other => other,
        })
    }

    fn write(activation: resblock::Activation) -> Self {
        let kind = ACTIVATIONS.iter().position(|known| known.name() == activation.name()).unwrap_or(0);
        Self { kind: kind as u32, parameter: activation.parameter().unwrap_or(0.0) }
    }
}

impl Norm {
    const NONE: Self = Self { kind: RESBLOCK_NORM_NONE, epsilon: 0.0, gain: false, shift: false };

    fn read(self, operand: &str) -> Result<Option<resblock::Norm>, Failure> {
        let norm = match self.kind {
            RESBLOCK_NORM_NONE => return Ok(None),
            RESBLOCK_NORM_LAYER => resblock::Norm::layer(self.epsilon),
            RESBLOCK_NORM_RMS => resblock::Norm::rms(self.epsilon),
            RESBLOCK_NORM_BATCH => resblock::Norm::batch(self.epsilon),
            other => return Err(unknown(operand, other)),
        };
        Ok(Some(resblock::Norm { gain: self.gain, shift: self.shift, ..norm }))
    }

    fn write(norm: Option<resblock::Norm>) -> Self {
        let Some(norm) = norm else { return Self::NONE };
        let kind = match norm.kind {
            resblock::NormKind::Layer => RESBLOCK_NORM_LAYER,
            resblock::NormKind::Rms => RESBLOCK_NORM_RMS,
            _ => RESBLOCK_NORM_BATCH,
        };
        Self { kind, epsilon: norm.epsilon, gain: norm.gain, shift: norm.shift }
    }
}

impl Form {
    fn read(&self) -> Result<resblock::BlockForm, Failure> {
        let value = self.branch_scale.value;
        let branch_scale = match self.branch_scale.kind {
            RESBLOCK_SCALE_CONSTANT => resblock::BranchScale::Constant(value),
            RESBLOCK_SCALE_SCALAR => resblock::BranchScale::Scalar(value),
            RESBLOCK_SCALE_VECTOR => resblock::BranchScale::Vector(value),
            other => return Err(unknown("branch_scale", other)),
        };
        let skip = match self.skip {
            RESBLOCK_SKIP_IDENTITY => resblock::Skip::Identity,
            RESBLOCK_SKIP_NONE => resblock::Skip::None,
            RESBLOCK_SKIP_PROJECTION => resblock::Skip::Projection,
            other => return Err(unknown("skip", other)),
        };
        let Dropout { hidden, branch, depth } = self.dropout;
        Ok(resblock::BlockForm {
            inputs: self.inputs,
            hidden: self.hidden,
            outputs: self.outputs,
            biases: self.biases,
            activation: self.activation.read("activation")?,
            gated: self.gated,
            pre_norm: self.pre_norm.read("pre_norm")?,
            pre_activation: self.pre_activation.read("pre_activation")?,
            inner_norm: self.inner_norm.read("inner_norm")?,
            post_norm: self.post_norm.read("post_norm")?,
            branch_norm: self.branch_norm.read("branch_norm")?,
            post_activation: self.post_activation.read("post_activation")?,
            skip,
            skip_scale: self.skip_scale,
            branch_scale,
            dropout: resblock::Dropout { hidden, branch, depth },
            init_scales: self.init_scales,
        })
    }

    fn write(form: &resblock::BlockForm) -> Self {
        let branch_scale = match form.branch_scale {
            resblock::BranchScale::Scalar(value) => BranchScale { kind: RESBLOCK_SCALE_SCALAR, value },
            resblock::BranchScale::Vector(value) => BranchScale { kind: RESBLOCK_SCALE_VECTOR, value },
            resblock::BranchScale::Constant(value) => BranchScale { kind: RESBLOCK_SCALE_CONSTANT, value },
            _ => BranchScale { kind: RESBLOCK_SCALE_CONSTANT, value: 1.0 },
        };
        let skip = match form.skip {
            resblock::Skip::None => RESBLOCK_SKIP_NONE,
            resblock::Skip::Projection => RESBLOCK_SKIP_PROJECTION,
            _ => RESBLOCK_SKIP_IDENTITY,
        };
        let resblock::Dropout { hidden, branch, depth } = form.dropout;
        Self {
            inputs: form.inputs,
            hidden: form.hidden,
            outputs: form.outputs,
            biases: form.biases,
            gated: form.gated,
            activation: Activation::write(form.activation),
            pre_activation: Activation::write(form.pre_activation),
            post_activation: Activation::write(form.post_activation),
            pre_norm: Norm::write(form.pre_norm),
            inner_norm: Norm::write(form.inner_norm),
            post_norm: Norm::write(form.post_norm),
            branch_norm: Norm::write(form.branch_norm),
            skip,
            skip_scale: form.skip_scale,
            branch_scale,
            dropout: Dropout { hidden, branch, depth },
            init_scales: form.init_scales,
        }
    }
}

impl Formula {
    pub(crate) fn read(&self) -> Result<resblock::Formula, Failure> {
        match self.kind {
            RESBLOCK_FORMULA_BLOCK => Ok(resblock::Formula::Block(self.block.read()?)),
            RESBLOCK_FORMULA_LINEAR => {
                let Linear { inputs, outputs, bias, residual, activation } = self.linear;
                let activation = activation.read("activation")?;
                Ok(resblock::Formula::Linear { inputs, outputs, bias, activation, residual })
            }
            RESBLOCK_FORMULA_NORM => {
                let NormLayer { width, norm, activation } = self.norm;
                let none = || Failure::new(Status::Setting, "norm: there is none in a layer that is one");
                let norm = norm.read("norm")?.ok_or_else(none)?;
                Ok(resblock::Formula::Norm { width, norm, activation: activation.read("activation")? })
            }
            other => Err(unknown("kind", other)),
        }
    }

    fn of(kind: u32) -> Self {
        let identity = Activation { kind: RESBLOCK_IDENTITY, parameter: 0.0 };
        let norm = NormLayer { width: 0, norm: Norm::NONE, activation: identity };
        let linear = Linear { inputs: 0, outputs: 0, bias: true, residual: false, activation: identity };
        Self { kind, block: resblock_form_new(0, 0, RESBLOCK_IDENTITY), linear, norm }
    }
}

/// y = x + φ(x W1ᵀ + b1) W2ᵀ + b2 on d features with h hidden ones. Does not return a status: an activation that there is none of is found by
/// resblock_function_new.
#[unsafe(no_mangle)]
pub extern "C" fn resblock_form_new(d: usize, h: usize, activation: u32) -> Form {
    let form = Form::write(&resblock::BlockForm::new(d, h, resblock::Activation::Identity));
    let usual = ACTIVATIONS.get(activation as usize).and_then(|known| known.parameter());
    Form { activation: Activation { kind: activation, parameter: usual.unwrap_or(0.0) }, ..form }
}

/// A published block on d features with h hidden ones: `gpt2`, `vit`, `bert`, `llama`, `t5`, `cait`, `sandwich`, `rezero`, `tabular`, `resnet_v1` or
/// `resnet_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_form_named(name: *const c_char, d: usize, h: usize, form: *mut Form) -> Status {
    enter(|| {
        use resblock::BlockForm;
        // SAFETY: `memory`.
        let (name, form) = unsafe { (text("name", name)?, exclusive("form", form)?) };
        *form = Form::write(&match name {
            "gpt2" => BlockForm::gpt2(d, h),
            "vit" => BlockForm::vit(d, h),
            "bert" => BlockForm::bert(d, h),
            "llama" => BlockForm::llama(d, h),
            "t5" => BlockForm::t5(d, h),
            "cait" => BlockForm::cait(d, h, 0.1),
            "sandwich" => BlockForm::sandwich(d, h),
            "rezero" => BlockForm::rezero(d, h),
            "tabular" => BlockForm::tabular(d, h, resblock::Dropout::default()),
            "resnet_v1" => BlockForm::resnet_v1(d, h),
            "resnet_v2" => BlockForm::resnet_v2(d, h),
            _ => return Err(Failure::new(Status::Setting, format!("name: there is no block called {name:?}"))),
        });
        Ok(())
    })
}

/// A block as a formula. Does not return a status.
#[unsafe(no_mangle)]
pub extern "C" fn resblock_formula_block(block: Form) -> Formula {
    Formula { block, ..Formula::of(RESBLOCK_FORMULA_BLOCK) }
}

/// y = φ(x Wᵀ + b) as a formula. Does not return a status.
#[unsafe(no_mangle)]
pub extern "C" fn resblock_formula_linear(inputs: usize, outputs: usize, activation: u32) -> Formula {
    let new = Formula::of(RESBLOCK_FORMULA_LINEAR);
    let activation = resblock_form_new(0, 0, activation).activation;
    Formula { linear: Linear { inputs, outputs, activation, ..new.linear }, ..new }
}

/// y = N(x) as a formula: `kind` is RESBLOCK_NORM_LAYER, ..., with gain and, but for RMSNorm, shift. Does not return a status.
#[unsafe(no_mangle)]
pub extern "C" fn resblock_formula_norm(width: usize, kind: u32, epsilon: f32) -> Formula {
    let new = Formula::of(RESBLOCK_FORMULA_NORM);
    let norm = Norm { kind, epsilon, gain: true, shift: kind != RESBLOCK_NORM_RMS };
    Formula { norm: NormLayer { width, norm, ..new.norm }, ..new }
}
