//! The forms of a block that are raced, by the names of the race, and what the race calls their parameters.

use clap::ValueEnum;
use resblock::{Activation, BlockForm, BranchScale, Norm, Part, Role, Skip};

/// A form of a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Form {
    /// y = x + W2 φ(W1 x + b1) + b2
    Bare,
    /// The same of n = LayerNorm(x)
    PreLn,
    /// y = x + W2 φ(W1 n), n = RMSNorm(x)
    PreRms,
    /// The same of n = BatchNorm(x)
    PreBn,
    /// y = LayerNorm(x + W2 φ(W1 x + b1) + b2)
    PostLn,
    /// y = x + W2 (silu(W1 n) ⊙ (W3 n)), n = RMSNorm(x)
    SwiGlu,
    /// y = x + W2 (gelu(W1 n + b1) ⊙ (W3 n + b3)) + b2, n = LayerNorm(x)
    GeGlu,
    /// y = φ(x + W2 φ(W1 x + b1) + b2)
    PostAct,
    /// y = x + s ⊙ (W2 φ(W1 n + b1) + b2), n = LayerNorm(x)
    LayerScale,
    /// y = x + a (W2 φ(W1 x + b1) + b2), a learned
    ReZero,
    /// y = x + 0.1 (W2 φ(W1 x + b1) + b2)
    Euler,
    /// y = LayerNorm(1.5 x + W2 φ(W1 x + b1) + b2)
    DeepNorm,
    /// y = Ws x + bs + W2 φ(W1 x + b1) + b2, twice as wide as x
    Shortcut,
}

impl Form {
    /// The block, on `d` features with `h` hidden ones. Gated forms bring their own activation.
    pub(crate) fn block(self, d: usize, h: usize, phi: Activation) -> BlockForm {
        let bare = BlockForm::new(d, h, phi);
        let (layer, rms) = (Some(Norm::layer(1e-5)), Some(Norm::rms(1e-6)));
        match self {
            Form::Bare => bare,
            Form::PreLn => BlockForm { pre_norm: layer, ..bare },
            Form::PreBn => BlockForm { pre_norm: Some(Norm::batch(1e-5)), ..bare },
            Form::PreRms => BlockForm { pre_norm: rms, biases: false, ..bare },
            Form::PostLn => BlockForm { post_norm: layer, ..bare },
            Form::SwiGlu => {
                BlockForm { pre_norm: rms, gated: true, biases: false, activation: Activation::Silu, ..bare }
            }
            Form::GeGlu => BlockForm { pre_norm: layer, gated: true, activation: Activation::GeluTanh, ..bare },
            Form::PostAct => BlockForm { post_activation: phi, ..bare },
            Form::LayerScale => BlockForm { pre_norm: layer, branch_scale: BranchScale::Vector(1.0), ..bare },
            Form::ReZero => BlockForm { branch_scale: BranchScale::Scalar(1.0), ..bare },
            Form::Euler => BlockForm { branch_scale: BranchScale::Constant(0.1), ..bare },
            Form::DeepNorm => BlockForm { post_norm: layer, skip_scale: 1.5, ..bare },
            Form::Shortcut => BlockForm { skip: Skip::Projection, outputs: 2 * d, ..bare },
        }
    }
}

/// What the race calls a parameter of `len` numbers, of which the block has `outputs`.
pub(crate) fn name(part: Part, role: Role, len: usize, outputs: usize) -> &'static str {
    match (part, role) {
        (Part::First, Role::Weight) => "W1",
        (Part::First, _) => "b1",
        (Part::Second, Role::Weight) => "W2",
        (Part::Second, _) => "b2",
        (Part::Third, Role::Weight) => "W3",
        (Part::Third, _) => "b3",
        (Part::Shortcut, Role::Weight) => "Ws",
        (Part::Shortcut, _) => "bs",
        (_, Role::Gain) => "g",
        (_, Role::Shift) => "e",
        (_, Role::RunningMean) => "rm",
        (_, Role::RunningVariance) => "rv",
        _ if len == 1 && outputs != 1 => "a",
        _ => "s",
    }
}
