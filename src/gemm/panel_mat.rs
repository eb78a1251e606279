//! Owned matrices in panels.

use super::buffers::Buffer;
use super::pack::{pack, unpack};
use super::panels::{PANEL, PanelMut, PanelRef, panel_len, panels};
use crate::error::{Error, expect_shape};
use crate::mat::{MatMut, MatRef};
use crate::simd::Isa;

/// An owned matrix in panels, 64-byte aligned, padding all zero: how weights, weight gradients and optimiser state are stored.
#[derive(Debug, Clone)]
pub(crate) struct PanelMat {
    buffer: Buffer,
    rows: usize,
    cols: usize,
}

impl PanelMat {
    /// A matrix of zeros.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the size overflows, [`Error::Memory`] if there is not so much memory.
    pub(crate) fn zeros(rows: usize, cols: usize) -> Result<Self, Error> {
        let len = panel_len("matrix", rows, cols)?;
        let mut buffer = Buffer::default();
        buffer.grow(len)?;
        Ok(Self { buffer, rows, cols })
    }

    /// A copy of `m`.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the size overflows (a view with stride 0 can be larger than its slice), [`Error::Memory`] if there
    /// is not so much memory.
    pub(crate) fn from_mat(m: MatRef<'_>) -> Result<Self, Error> {
        let mut mat = Self::zeros(m.rows(), m.cols())?;
        pack(Isa::for_copies(), m, mat.view_mut());
        Ok(mat)
    }

    /// (rows, columns).
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Element (i, j), or `None` outside the matrix.
    pub(crate) fn get(&self, i: usize, j: usize) -> Option<f32> {
        self.view().get(i, j)
    }

    /// Overwrites the matrix with `m`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub(crate) fn read_from(&mut self, m: MatRef<'_>) -> Result<(), Error> {
        expect_shape("matrix", self.shape(), m.shape())?;
        pack(Isa::for_copies(), m, self.view_mut());
        Ok(())
    }

    /// Copies the matrix to `out`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub(crate) fn write_to(&self, mut out: MatMut<'_>) -> Result<(), Error> {
        expect_shape("output", self.shape(), out.shape())?;
        unpack(Isa::for_copies(), self.view(), &mut out, 0);
        Ok(())
    }

    /// Everything as stored, padding included: for elementwise work such as an optimiser's, on matrices of equal shape.
    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.buffer.as_slice()[..self.rows * panels(self.cols) * PANEL]
    }

    /// As [`PanelMat::as_slice`], for writing. Elementwise functions that keep zeros keep the padding zero; nothing but the
    /// padding itself depends on that.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        let len = self.rows * panels(self.cols) * PANEL;
        &mut self.buffer.as_mut_slice()[..len]
    }

    pub(crate) fn view(&self) -> PanelRef<'_> {
        PanelRef::new(self.as_slice(), self.rows, self.cols)
    }

    pub(crate) fn view_mut(&mut self) -> PanelMut<'_> {
        let (rows, cols) = self.shape();
        PanelMut::new(self.as_mut_slice(), rows, cols)
    }
}
