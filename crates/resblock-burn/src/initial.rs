//! What new parameters are.

use burn::module::Initializer;
use resblock::{BranchScale, Formula, Part, Role, TensorName};

/// How a tensor of a formula begins: maps as burn's own `Linear`, times the form's `init_scales`, gains 1, shifts 0.
pub(crate) fn initial(formula: &Formula, name: TensorName) -> Initializer {
    let scale = match (formula, name.place.part) {
        (Formula::Block(form), Part::First | Part::Third) => form.init_scales[0],
        (Formula::Block(form), Part::Second) => form.init_scales[1],
        _ => 1.0,
    };
    let value = match (formula, name.role) {
        (_, Role::Weight | Role::Bias) => {
            return Initializer::KaimingUniform { gain: f64::from(scale) / 3f64.sqrt(), fan_out_only: false };
        }
        (_, Role::Gain | Role::RunningVariance) => 1.0,
        (Formula::Block(form), Role::Scale) => match form.branch_scale {
            BranchScale::Scalar(from) | BranchScale::Vector(from) => f64::from(from),
            _ => 1.0,
        },
        _ => 0.0,
    };
    Initializer::Constant { value }
}
