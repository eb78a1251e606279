//! What the tensors of a network do not tell: the activation after each affine map, and where an input is added. A norm between two layers is said
//! before the next affine map; one that none follows, behind the last.
//!
//! As text, for `x W1 + b1` and GELU in a residual block of a stack: `blocks.0.first gelu; blocks.0.second identity + x`. The floats
//! of slopes are the shortest decimals that give the same bits.

use crate::Activation;
use crate::layers::Layer;
use crate::params::name::Place;
use crate::program::form::{BlockForm, BranchScale, Form, NormForm, Skip};
use crate::program::norm::Norm;
use std::collections::HashMap;

/// Its name among the strings of a file.
pub(super) const ARCHITECTURE: &str = "resblock.architecture";

/// Each affine map of `layer`, and what is done with what comes out of it.
pub(super) fn of<L: Layer>(layer: &L) -> impl Iterator<Item = (Place, String)> {
    let (mut maps, mut norms) = (Vec::new(), String::new());
    for form in layer.program().forms() {
        let mut own = match form {
            Form::Linear(form) => vec![act(form.phi) + if form.skip { " + x" } else { "" }],
            Form::Block(form) => block(&form),
            Form::Norm(NormForm { norm, phi, .. }) => {
                let phi = if phi == Activation::Identity { String::new() } else { act(phi) + " " };
                norms += &format!("{} {phi}| ", norm.formula());
                continue;
            }
        };
        if !norms.is_empty() {
            own[0] = format!("on {norms}{}", own[0]);
            norms.clear();
        }
        maps.append(&mut own);
    }
    if !norms.is_empty() {
        match maps.last_mut() {
            Some(last) => *last += &format!(" | {}", norms.trim_end_matches(" | ")),
            None => maps.push(norms),
        }
    }
    maps.into_iter().enumerate().map(|(i, then)| (layer.affine_name(i), then))
}

/// What the maps of a block are between, in the order of its program. What is before the first is said there, what is after the sum
/// at the second.
fn block(form: &BlockForm) -> Vec<String> {
    let of = |norm: Option<Norm>, and: &str| norm.map(|norm| format!("{}{and}", norm.formula())).unwrap_or_default();
    let before = match (of(form.pre_norm, " "), form.pre_activation) {
        (norm, Activation::Identity) => norm,
        (norm, phi) => format!("{norm}{} ", act(phi)),
    };
    let first = if before.is_empty() { String::new() } else { format!("after {before}| ") };
    let first = first + &of(form.inner_norm, " ") + &act(form.activation) + if form.gated { " gate" } else { "" };
    let scale = match form.branch_scale {
        BranchScale::Constant(1.0) => String::new(),
        BranchScale::Constant(c) => format!(" * {c}"),
        BranchScale::Scalar(_) | BranchScale::Vector(_) => " * scale".into(),
    };
    let factor = if form.skip_scale == 1.0 { String::new() } else { format!("{} ", form.skip_scale) };
    let skip = match form.skip {
        Skip::None => String::new(),
        Skip::Identity => format!(" + {factor}x"),
        Skip::Projection => format!(" + {factor}shortcut"),
    };
    let after = match form.post_activation {
        Activation::Identity => form.post_norm.map(|norm| format!(" | {}", norm.formula())).unwrap_or_default(),
        phi => format!(" | {}", act(phi)),
    };
    let branch = of(form.branch_norm, " ");
    let identity = || act(Activation::Identity);
    let third = form.gated.then(identity);
    let shortcut = (form.skip == Skip::Projection).then(identity);
    let all = [Some(first), third, Some(branch + &identity() + &scale + &skip + &after), shortcut];
    all.into_iter().flatten().collect()
}

fn act(phi: Activation) -> String {
    let parameter = phi.parameter().map(|x| format!("({x})")).unwrap_or_default();
    format!("{}{parameter}", phi.name())
}

pub(super) fn text<L: Layer>(layer: &L) -> String {
    of(layer).map(|(map, then)| format!("{map} {then}")).collect::<Vec<_>>().join("; ")
}

/// By the name of the affine map: of one that is fused, what comes after each piece. What is not as `text` writes it says nothing of any map.
pub(super) fn parse(text: &str) -> HashMap<&str, Vec<&str>> {
    let mut all = HashMap::<_, Vec<_>>::new();
    for (map, then) in maps(text) {
        all.entry(map).or_default().push(then);
    }
    all
}

fn maps(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split("; ").filter_map(|map| map.split_once(' '))
}

/// The same text with other names, where `new` has one, and the place of a map among the pieces of a fused one. A name that could not be read
/// back is left out.
pub(super) fn renamed(text: &str, new: &HashMap<String, (&str, usize)>) -> String {
    let mut all: Vec<_> = maps(text).map(|(map, then)| (new.get(map).copied().unwrap_or((map, 0)), then)).collect();
    all.retain(|((map, _), _)| !map.contains([' ', ';']));
    let mut first = HashMap::new();
    for (at, ((map, _), _)) in all.iter().enumerate() {
        first.entry(*map).or_insert(at);
    }
    all.sort_by_key(|((map, piece), _)| (first.get(map).copied(), *piece));
    all.iter().map(|((map, _), then)| format!("{map} {then}")).collect::<Vec<_>>().join("; ")
}
