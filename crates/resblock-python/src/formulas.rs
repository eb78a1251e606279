//! Formulas in JSON, as Python writes them, and the names of parameters in other libraries.

use crate::error::refused;
use pyo3::prelude::*;
use resblock::{BlockForm, Convention, Dropout, Formula, Keep, Role, TensorName};
use serde::Deserialize;

/// What is compiled: formulas, one after the other, and what recorded passes keep.
#[derive(Deserialize)]
pub(crate) struct Description {
    pub(crate) formulas: Vec<Formula>,
    pub(crate) keep: Keep,
}

/// Reads JSON.
pub(crate) fn read<'j, T: Deserialize<'j>>(operand: &str, json: &'j str) -> PyResult<T> {
    serde_json::from_str(json).map_err(|error| refused(operand, error))
}

/// A tensor of a description: its name, its role, and its shape, (outputs, inputs) of weights, (1, length) of all else.
pub(crate) struct Tensor {
    pub(crate) name: TensorName,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// All of them, in the order of calls.
pub(crate) fn tensors(formulas: &[Formula]) -> Vec<Tensor> {
    let within = |(layer, formula): (usize, &Formula)| {
        let named = move |(name, (rows, cols)): (TensorName, (usize, usize))| {
            let place = resblock::Place { layer: Some(layer), ..name.place };
            let name = if formulas.len() == 1 { name } else { place.tensor(name.role) };
            Tensor { name, rows, cols }
        };
        formula.tensors().into_iter().map(named).collect::<Vec<_>>()
    };
    formulas.iter().enumerate().flat_map(within).collect()
}

/// The form of a published block on `d` features with `h` hidden ones, as JSON.
#[pyfunction]
pub(crate) fn named_form(name: &str, d: usize, h: usize) -> PyResult<String> {
    let form = match name {
        "resnet_v1" => BlockForm::resnet_v1(d, h),
        "resnet_v2" => BlockForm::resnet_v2(d, h),
        "tabular" => BlockForm::tabular(d, h, Dropout::default()),
        "gpt2" => BlockForm::gpt2(d, h),
        "vit" => BlockForm::vit(d, h),
        "bert" => BlockForm::bert(d, h),
        "llama" => BlockForm::llama(d, h),
        "t5" => BlockForm::t5(d, h),
        "cait" => BlockForm::cait(d, h, 0.1),
        "sandwich" => BlockForm::sandwich(d, h),
        "rezero" => BlockForm::rezero(d, h),
        _ => return Err(refused("name", format_args!("there is no block called {name:?}"))),
    };
    serde_json::to_string(&form).map_err(|error| refused("form", error))
}

/// The conventions that there are: how libraries name and lay out the parameters of a block.
#[pyfunction]
pub(crate) fn conventions() -> Vec<&'static str> {
    CONVENTIONS.iter().map(|(name, _)| *name).collect()
}

/// Names, and what makes them.
type Named = (&'static str, fn() -> Convention);

const CONVENTIONS: [Named; 12] = [
    ("gpt2", Convention::gpt2),
    ("bert", Convention::bert),
    ("llama", Convention::llama),
    ("phi3", Convention::phi3),
    ("t5_encoder", Convention::t5_encoder),
    ("t5_decoder", Convention::t5_decoder),
    ("vit", Convention::vit),
    ("timm_vit", Convention::timm_vit),
    ("cait", Convention::cait),
    ("convnext", Convention::convnext),
    ("torch_encoder", Convention::torch_encoder),
    ("tabular", Convention::tabular),
];

/// Name, shape, whether it is transposed, and which piece of how many.
type StoredAs = (String, Vec<usize>, bool, (usize, usize));

/// How a convention stores each parameter of a block, in the order of calls.
#[pyfunction]
pub(crate) fn stored(form: &str, convention: &str) -> PyResult<Vec<StoredAs>> {
    let form: BlockForm = read("form", form)?;
    let Some((_, make)) = CONVENTIONS.iter().find(|(name, _)| *name == convention) else {
        return Err(refused("convention", format_args!("there is none called {convention:?}")));
    };
    let convention = make();
    let one = |(name, shape): (TensorName, (usize, usize))| {
        let stored = convention.stored(name.place.part, name.role);
        let stored = stored.ok_or_else(|| refused("convention", format_args!("it has no name for {name}")))?;
        let transposed = name.role == Role::Weight && stored.is_transposed();
        Ok((stored.name().to_owned(), stored.dims(name.role, shape), transposed, stored.piece()))
    };
    form.tensors().map(one).collect()
}
