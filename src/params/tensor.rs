//! Tensors in panels, with their names and shapes.

use super::name::{Role, TensorName};
use super::sums::Sums;
use crate::error::{Error, expect_shape};
use crate::gemm::pack::{pack, unpack};
use crate::gemm::panels::{PANEL, PanelMut, PanelRef, panels};
use crate::mat::{MatMut, MatRef};
use crate::simd::Isa;
use std::fmt;

/// A row of a table of tensors, without the values: which tensor, and how many rows and columns its panels have. Weights are stored
/// transposed, (inputs, outputs); all else is one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) name: TensorName,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Spec {
    /// (outputs, inputs) of weights, (1, length) of all else.
    pub(crate) fn shape(&self) -> (usize, usize) {
        if self.name.role.is_transposed() { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    /// The shape in files, as PyTorch has it: what is one row has one dimension.
    #[cfg(feature = "safetensors")]
    pub(crate) fn dims(&self) -> Vec<usize> {
        if self.name.role == Role::Weight { vec![self.cols, self.rows] } else { vec![self.cols] }
    }

    /// Floats as stored, padding included.
    pub(crate) fn len(&self) -> usize {
        self.rows * panels(self.cols) * PANEL
    }
}

/// A tensor of a network to read: a parameter, its gradient or a moment. Made on the fly; costs nothing to iterate. Displays as its name.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    name: TensorName,
    values: PanelRef<'a>,
}

impl<'a> TensorRef<'a> {
    pub(crate) fn new(name: TensorName, values: PanelRef<'a>) -> Self {
        Self { name, values }
    }

    /// Which tensor it is.
    pub fn name(&self) -> TensorName {
        self.name
    }

    /// What it is to its layer.
    pub fn role(&self) -> Role {
        self.name.role
    }

    /// (outputs, inputs) of weights, (1, outputs) of a bias.
    pub fn shape(&self) -> (usize, usize) {
        self.spec().shape()
    }

    pub(crate) fn spec(&self) -> Spec {
        Spec { name: self.name, rows: self.values.rows(), cols: self.values.cols() }
    }

    /// Element (i, j) of the shape, or `None` outside.
    pub fn get(&self, i: usize, j: usize) -> Option<f32> {
        if self.name.role.is_transposed() { self.values.get(j, i) } else { self.values.get(i, j) }
    }

    /// The elements, row by row.
    pub fn iter(&self) -> impl Iterator<Item = f32> + use<'a> {
        let (tensor, (rows, cols)) = (*self, self.shape());
        (0..rows).flat_map(move |i| (0..cols).filter_map(move |j| tensor.get(i, j)))
    }

    /// Everything as stored, in an order of this crate's own and with padding: for elementwise work, such as an optimiser's, on tensors of
    /// equal name and shape.
    pub fn as_slice(&self) -> &'a [f32] {
        self.values.data()
    }

    /// Copies the values to `out`, of the same shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape differs.
    pub fn write_to(&self, out: MatMut<'_>) -> Result<(), Error> {
        expect_shape("output", self.shape(), out.shape())?;
        let mut out = if self.name.role.is_transposed() { out.t() } else { out };
        unpack(Isa::for_copies(), self.values, &mut out, 0);
        Ok(())
    }

    /// Sum of squares, in f64, of each column modulo 16 by itself and then over these (columns are outputs, for weights): an order
    /// that does not depend on the machine.
    pub fn norm_squared(&self) -> f64 {
        self.sums().squares()
    }

    pub(super) fn sums(&self) -> Sums {
        Sums::of(self.values.lines())
    }

    /// The values that are not `within`, each with its position, row by row.
    pub(super) fn outside(&self, within: impl Fn(f32) -> bool) -> impl Iterator<Item = (usize, f32)> {
        self.iter().enumerate().filter(move |&(_, value)| !within(value))
    }
}

impl fmt::Display for TensorRef<'_> {
    /// `blocks.3.first.weight`, say: the name alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// A tensor of a network to change: what [`crate::Layer::parameters_mut`] gives.
#[derive(Debug)]
pub struct TensorMut<'a> {
    name: TensorName,
    values: PanelMut<'a>,
}

impl<'a> TensorMut<'a> {
    pub(crate) fn new(name: TensorName, values: PanelMut<'a>) -> Self {
        Self { name, values }
    }

    /// The same tensor, to read.
    pub fn as_ref(&self) -> TensorRef<'_> {
        TensorRef { name: self.name, values: self.values.as_ref() }
    }

    /// Which tensor it is.
    pub fn name(&self) -> TensorName {
        self.name
    }

    /// (outputs, inputs) of weights, (1, outputs) of a bias.
    pub fn shape(&self) -> (usize, usize) {
        self.as_ref().shape()
    }

    /// Overwrites the values with `m`, of the same shape.
    ///
    /// # Errors
    /// [`Error::TensorShape`] if the shape differs.
    pub fn read_from(&mut self, m: MatRef<'_>) -> Result<(), Error> {
        let (expected, found) = (self.shape(), m.shape());
        if expected != found {
            return Err(Error::TensorShape { tensor: self.name.to_string(), expected, found });
        }
        pack(Isa::for_copies(), if self.name.role.is_transposed() { m.t() } else { m }, self.values.reborrow());
        Ok(())
    }

    /// As [`TensorRef::as_slice`], to be changed. Elementwise functions that keep zeros keep the padding zero; nothing but the padding
    /// itself depends on that.
    pub fn into_slice(self) -> &'a mut [f32] {
        self.values.into_data()
    }
}
