//! What new parameters are.

use crate::params::Spec;
use candle_nn::Init;
use resblock::{BranchScale, Formula, Part, Role};

/// A new parameter of a formula.
pub(crate) fn initial(formula: &Formula, spec: &Spec) -> Init {
    let scale = match (formula, spec.name.place.part) {
        (Formula::Block(form), Part::First | Part::Third) => form.init_scales[0],
        (Formula::Block(form), Part::Second) => form.init_scales[1],
        _ => 1.0,
    };
    match (formula, spec.name.role) {
        // Kaiming, over the inputs, as `candle_nn::linear`.
        (_, Role::Weight) => {
            Init::Randn { mean: 0.0, stdev: f64::from(scale) * (2.0 / spec.cols.max(1) as f64).sqrt() }
        }
        (_, Role::Gain | Role::RunningVariance) => Init::Const(1.0),
        (Formula::Block(form), Role::Scale) => match form.branch_scale {
            BranchScale::Scalar(from) | BranchScale::Vector(from) => Init::Const(from.into()),
            _ => Init::Const(1.0),
        },
        _ => Init::Const(0.0),
    }
}
