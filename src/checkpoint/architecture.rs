//! What the tensors of a network do not tell: the activation after each affine map, and where an input is added.
//!
//! As text, for `x W1 + b1` and GELU in a residual block of a stack: `blocks.0.first gelu; blocks.0.second identity + x`. The floats
//! of slopes are the shortest decimals that give the same bits.

use crate::Activation;
use crate::layers::Layer;
use crate::params::name::Place;
use crate::program::form::Form;
use std::collections::HashMap;

/// Its name among the strings of a file.
pub(super) const ARCHITECTURE: &str = "resblock.architecture";

/// Each affine map of `layer`, and what is done with what comes out of it.
pub(super) fn of<L: Layer>(layer: &L) -> impl Iterator<Item = (Place, String)> {
    let forms = layer.program().forms().flat_map(|form| match form {
        Form::Linear(form) => vec![then(form.phi, form.skip)],
        Form::Block(form) => vec![then(form.phi, false), then(Activation::Identity, form.skip)],
    });
    forms.enumerate().map(|(i, then)| (layer.affine_name(i), then))
}

fn then(phi: Activation, skip: bool) -> String {
    let slope = if let Activation::LeakyRelu(slope) = phi { format!("({slope})") } else { String::new() };
    format!("{}{slope}{}", phi.name(), if skip { " + x" } else { "" })
}

pub(super) fn text<L: Layer>(layer: &L) -> String {
    of(layer).map(|(map, then)| format!("{map} {then}")).collect::<Vec<_>>().join("; ")
}

/// By the name of the affine map. What is not as `text` writes it says nothing of any map.
pub(super) fn parse(text: &str) -> HashMap<&str, &str> {
    text.split("; ").filter_map(|map| map.split_once(' ')).collect()
}
