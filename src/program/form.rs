//! Forms: what a part of a network computes, as data. How is in `crate::parts`.

use super::norm::Norm;
use crate::Activation;
use crate::error::{Error, expect_shape};
use crate::random;

/// A part of a network before it is compiled: its formula and its sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Linear(Linear),
    Block(BlockForm),
    Norm(NormForm),
}

/// y = phi(N(x)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NormForm {
    pub(crate) width: usize,
    pub(crate) norm: Norm,
    pub(crate) phi: Activation,
}

/// y = phi(x Wᵀ + b) (+ x).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Linear {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) phi: Activation,
    /// Whether the input is added.
    pub(crate) skip: bool,
}

/// What a layer adds to its branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Skip {
    /// y = x + G(x): residual.
    Identity,
    /// y = G(x): plain (vanilla).
    None,
    /// y = x Wsᵀ + bs + G(x): residual, where the width changes. Of blocks alone.
    Projection,
}

/// What the branch of a block is multiplied by before the skip is added.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum BranchScale {
    /// A number that is not learned: the time step of an Euler step, x + Δt F(x). 1 is no scale at all.
    Constant(f32),
    /// One number that is learned (ReZero, Bachlechner et al. 2020), from this one on: usually 0.
    Scalar(f32),
    /// A number for each output that is learned (LayerScale, Touvron et al. 2021), from this one on: 0.1 to 1e-6.
    Vector(f32),
}

/// How much of a block is dropped: probabilities, in steps of 2⁻¹⁶.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dropout {
    /// Of elements of h.
    pub hidden: f32,
    /// Of elements of the branch.
    pub branch: f32,
    /// Of the branch of a whole row: stochastic depth (Huang et al. 2016).
    pub depth: f32,
}

/// A residual block of two weight layers in any of the forms that people train.
///
/// ```text
/// n = a(N1(x)),  z = n W1ᵀ + b1,  h = φ(N2(z))  or, gated,  h = φ(z) ⊙ (n W3ᵀ + b3),  F = N4(drop(h) W2ᵀ + b2), dropped itself
/// r = α S(x) + λ F,  y = p(r)  or  N3(r)
/// ```
///
/// N1, N2, N3, N4: `pre_norm`, `inner_norm`, `post_norm`, `branch_norm`; a, φ, p: `pre_activation`, `activation`, `post_activation`; S, α: `skip`,
/// `skip_scale`; λ: `branch_scale`. What is not there is left out of the formula. Public fields with good defaults: name those that differ.
///
/// ```
/// use resblock::{Activation, Block, BlockForm, Init, Norm};
/// let form = BlockForm { pre_norm: Some(Norm::layer(1e-5)), ..BlockForm::new(64, 256, Activation::Gelu) };
/// let block = Block::with_form(&form, &mut Init::he(1))?;
/// # Ok::<(), resblock::Error>(())
/// ```
///
/// Each operation that is written rounds once: r is S(x) + F; fma(α, S(x), F) with an α other than 1; fma(λ, F, S(x)) with a λ; and
/// fma(α, S(x), λ F) with both. The gradient of a gate's input z is dh ⊙ (u ⊙ φ'(z)), u being what the gate lets through, and n's is one chain,
/// all of W1, then all of W3.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockForm {
    /// Features of an input row.
    pub inputs: usize,
    /// Features between the two weight layers.
    pub hidden: usize,
    /// Features of an output row: those of the input, but where the skip is a projection or not there.
    pub outputs: usize,
    /// Whether the maps have biases.
    pub biases: bool,
    /// φ.
    pub activation: Activation,
    /// Whether there is a second map beside the first, which φ(z) is multiplied with: GLU and its kin (Shazeer 2020).
    pub gated: bool,
    /// The norm of the input, before the first weight layer.
    pub pre_norm: Option<Norm>,
    /// What is applied to the input of the branch, after its norm: pre-activation (He et al. 2016b).
    pub pre_activation: Activation,
    /// The norm between the first weight layer and φ; not of a gated block.
    pub inner_norm: Option<Norm>,
    /// The norm after the skip.
    pub post_norm: Option<Norm>,
    /// The norm of the branch, before its dropout, its scale and the skip.
    pub branch_norm: Option<Norm>,
    /// What is applied after the skip, where no norm is.
    pub post_activation: Activation,
    /// S.
    pub skip: Skip,
    /// α: 1 but for DeepNorm.
    pub skip_scale: f32,
    /// λ.
    pub branch_scale: BranchScale,
    /// Probabilities to drop, each in [0, 1), in recorded passes that have a draw ([`crate::Context::with_draw`]). What is left is multiplied by
    /// 1 / (1 - p).
    pub dropout: Dropout,
    /// Factors on the initial W1 (and W3) and W2.
    pub init_scales: [f32; 2],
}

impl BlockForm {
    /// y = x + φ(x W1ᵀ + b1) W2ᵀ + b2 on `d` features with `h` hidden ones.
    pub const fn new(d: usize, h: usize, activation: Activation) -> Self {
        Self {
            inputs: d,
            hidden: h,
            outputs: d,
            biases: true,
            activation,
            gated: false,
            pre_norm: None,
            pre_activation: Activation::Identity,
            inner_norm: None,
            post_norm: None,
            branch_norm: None,
            post_activation: Activation::Identity,
            skip: Skip::Identity,
            skip_scale: 1.0,
            branch_scale: BranchScale::Constant(1.0),
            dropout: Dropout { hidden: 0.0, branch: 0.0, depth: 0.0 },
            init_scales: [1.0; 2],
        }
    }

    /// ResNet v1, dense (He et al. 2016a): BatchNorm after each weight layer, ReLU after the first and after the skip; no biases, which BatchNorm
    /// would take away.
    pub const fn resnet_v1(d: usize, h: usize) -> Self {
        let norm = Some(Norm::batch(1e-5));
        Self {
            inner_norm: norm,
            branch_norm: norm,
            post_activation: Activation::Relu,
            biases: false,
            ..Self::new(d, h, Activation::Relu)
        }
    }

    /// ResNet v2, dense (He et al. 2016b): BatchNorm and ReLU before each weight layer.
    pub const fn resnet_v2(d: usize, h: usize) -> Self {
        let norm = Some(Norm::batch(1e-5));
        Self { pre_norm: norm, pre_activation: Activation::Relu, inner_norm: norm, ..Self::new(d, h, Activation::Relu) }
    }

    /// The block of the tabular ResNet (Gorishniy et al. 2021): BatchNorm, ReLU between the weight layers, dropout of h and of the branch. Its network
    /// is a linear layer, such blocks, and BatchNorm, ReLU ([`crate::NormLayer`]) and a linear layer.
    pub const fn tabular(d: usize, h: usize, dropout: Dropout) -> Self {
        Self { pre_norm: Some(Norm::batch(1e-5)), dropout, ..Self::new(d, h, Activation::Relu) }
    }

    /// The feed-forward block of GPT-2 (Radford et al. 2019): pre-LayerNorm, tanh GELU.
    pub const fn gpt2(d: usize, h: usize) -> Self {
        Self { pre_norm: Some(Norm::layer(1e-5)), ..Self::new(d, h, Activation::GeluTanh) }
    }

    /// That of ViT (Dosovitskiy et al. 2021): pre-LayerNorm, GELU.
    pub const fn vit(d: usize, h: usize) -> Self {
        Self { pre_norm: Some(Norm::layer(1e-6)), ..Self::new(d, h, Activation::Gelu) }
    }

    /// That of BERT (Devlin et al. 2019) and MiniLM: post-LayerNorm, GELU.
    pub const fn bert(d: usize, h: usize) -> Self {
        Self { post_norm: Some(Norm::layer(1e-12)), ..Self::new(d, h, Activation::Gelu) }
    }

    /// That of Llama (Touvron et al. 2023): pre-RMSNorm, SwiGLU, no biases.
    pub const fn llama(d: usize, h: usize) -> Self {
        Self { pre_norm: Some(Norm::rms(1e-5)), gated: true, biases: false, ..Self::new(d, h, Activation::Silu) }
    }

    /// That of T5 v1.1 (Shazeer 2020): pre-RMSNorm, GEGLU by the tanh GELU, no biases.
    pub const fn t5(d: usize, h: usize) -> Self {
        Self { pre_norm: Some(Norm::rms(1e-6)), gated: true, biases: false, ..Self::new(d, h, Activation::GeluTanh) }
    }

    /// That of CaiT (Touvron et al. 2021), and of ConvNeXt's pair of pointwise layers: pre-LayerNorm, GELU, LayerScale from `scale` on.
    pub const fn cait(d: usize, h: usize, scale: f32) -> Self {
        Self {
            pre_norm: Some(Norm::layer(1e-6)),
            branch_scale: BranchScale::Vector(scale),
            ..Self::new(d, h, Activation::Gelu)
        }
    }

    /// Sandwich-LN (Ding et al. 2021, CogView): LayerNorm before and after the branch, GELU.
    pub const fn sandwich(d: usize, h: usize) -> Self {
        let norm = Some(Norm::layer(1e-5));
        Self { pre_norm: norm, branch_norm: norm, ..Self::new(d, h, Activation::Gelu) }
    }

    /// ReZero (Bachlechner et al. 2020): y = x + α F, α learned from 0 on.
    pub const fn rezero(d: usize, h: usize) -> Self {
        Self { branch_scale: BranchScale::Scalar(0.0), ..Self::new(d, h, Activation::Relu) }
    }

    /// DeepNorm (Wang et al. 2022) in an encoder of `layers` layers, each of attention and such a block: y = LN((2 layers)^¼ x + F), initial weights
    /// times (8 layers)^-¼.
    pub fn deepnorm(d: usize, h: usize, layers: usize) -> Self {
        let root = |x: f64| libm::sqrt(libm::sqrt(x));
        let scale = (1.0 / root(8.0 * layers as f64)) as f32;
        Self {
            post_norm: Some(Norm::layer(1e-5)),
            skip_scale: root(2.0 * layers as f64) as f32,
            init_scales: [scale; 2],
            ..Self::new(d, h, Activation::Gelu)
        }
    }

    /// One Euler step of dx/dt = F(x): y = x + Δt F(x).
    pub const fn euler(d: usize, h: usize, activation: Activation, dt: f32) -> Self {
        Self { branch_scale: BranchScale::Constant(dt), ..Self::new(d, h, activation) }
    }

    /// Whether its branch has a scale that is learned.
    pub(crate) fn has_scale(&self) -> bool {
        !matches!(self.branch_scale, BranchScale::Constant(_))
    }

    /// Whether it is y = x + φ(x W1ᵀ + b1) W2ᵀ + b2, or without x, and no more.
    pub(crate) fn is_bare(&self) -> bool {
        let Self { inputs, hidden, outputs, biases, activation, skip, init_scales, .. } = *self;
        let bare = Self { outputs, biases, skip, init_scales, ..Self::new(inputs, hidden, activation) };
        *self == bare && skip != Skip::Projection
    }

    /// That the form does not contradict itself.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Self { inputs, hidden, outputs, .. } = *self;
        let setting = |operand, reason| Err(Error::Setting { operand, reason });
        if self.skip == Skip::Identity {
            expect_shape("second weights", (inputs, hidden), (outputs, hidden))?;
        }
        let norms = [
            ("pre_norm", self.pre_norm, inputs),
            ("inner_norm", self.inner_norm, hidden),
            ("post_norm", self.post_norm, outputs),
            ("branch_norm", self.branch_norm, outputs),
        ];
        for (operand, norm, width) in norms {
            norm.map_or(Ok(()), |norm| norm.check(operand, width))?;
        }
        if self.gated && self.inner_norm.is_some() {
            return setting("inner_norm", "a gated block has none");
        }
        if self.post_norm.is_some() && self.post_activation != Activation::Identity {
            return setting("post_activation", "a block has a norm or an activation after the skip, not both");
        }
        let Dropout { hidden, branch, depth } = self.dropout;
        for (operand, p) in [("hidden dropout", hidden), ("branch dropout", branch), ("stochastic depth", depth)] {
            random::check(operand, p)?;
        }
        if !self.skip_scale.is_finite() {
            return setting("skip_scale", "must be finite");
        }
        if self.skip == Skip::None && self.skip_scale != 1.0 {
            return setting("skip_scale", "there is no skip to scale");
        }
        if matches!(self.branch_scale, BranchScale::Constant(scale) if !scale.is_finite()) {
            return setting("branch_scale", "must be finite");
        }
        Ok(())
    }
}

impl Form {
    pub(crate) fn inputs(&self) -> usize {
        match self {
            Form::Linear(form) => form.inputs,
            Form::Block(form) => form.inputs,
            Form::Norm(form) => form.width,
        }
    }
}
