//! Something for each tensor of a network.

use super::name::TensorName;
use super::network::Parameters;
use super::tensor::Spec;
use crate::error::Error;

/// A row for each tensor of a network, in the order of its parameters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Table<T> {
    rows: Vec<Row<T>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row<T> {
    pub(crate) spec: Spec,
    pub(crate) value: T,
}

impl<T> Table<T> {
    /// What `make` makes for each tensor.
    pub(crate) fn new(net: &dyn Parameters, make: impl Fn(Spec) -> Result<T, Error>) -> Result<Self, Error> {
        let mut specs = Vec::new();
        net.visit(&mut |tensor| specs.push(tensor.spec()));
        let rows = specs.into_iter().map(|spec| Ok(Row { spec, value: make(spec)? }));
        Ok(Self { rows: rows.collect::<Result<_, Error>>()? })
    }

    /// That this is the table of a network with the tensors of `net`: the same names and shapes in the same order.
    pub(crate) fn check(&self, operand: &'static str, net: &dyn Parameters) -> Result<(), Error> {
        let (mut rows, mut differs) = (self.rows.iter(), None);
        net.visit(&mut |tensor| {
            let spec = tensor.spec();
            if rows.next().is_none_or(|row| row.spec != spec) {
                differs = differs.or(Some(spec.name));
            }
        });
        mismatch(operand, differs.or_else(|| rows.next().map(|row| row.spec.name)))
    }

    /// That this is a table of the same tensors as another.
    pub(crate) fn check_same<U>(&self, operand: &'static str, other: &Table<U>) -> Result<(), Error> {
        let spec = |i: usize| (self.rows.get(i).map(|row| row.spec), other.rows.get(i).map(|row| row.spec));
        let mut specs = (0..self.rows.len().max(other.rows.len())).map(spec);
        let differs = specs.find(|(mine, others)| mine != others);
        mismatch(operand, differs.and_then(|(mine, others)| others.or(mine)).map(|spec| spec.name))
    }

    pub(crate) fn rows(&self) -> &[Row<T>] {
        &self.rows
    }

    pub(crate) fn rows_mut(&mut self) -> &mut [Row<T>] {
        &mut self.rows
    }
}

/// An error if there is a first tensor that differs.
fn mismatch(operand: &'static str, differs: Option<TensorName>) -> Result<(), Error> {
    differs.map_or(Ok(()), |name| Err(Error::Mismatch { operand, tensor: name.to_string() }))
}
