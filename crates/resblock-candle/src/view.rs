//! Tensors as matrices: where they are, by their layouts.

use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, Tensor};
use resblock::MatRef;
use std::ops::Deref;

/// That a tensor is of f32, in main memory. `what` is the error's text.
pub(crate) fn check(tensor: &Tensor, what: &'static str) -> Result<()> {
    if tensor.dtype() != DType::F32 {
        return Err(Error::UnexpectedDType { msg: what, expected: DType::F32, got: tensor.dtype() }.bt());
    }
    if !tensor.device().is_cpu() {
        return Err(Error::Msg(format!("{what}, expected: on the CPU, got: on {:?}", tensor.device().location())).bt());
    }
    Ok(())
}

/// Rows and their stride, where all dimensions but the last are as one.
fn rows(layout: &Layout) -> Option<(usize, usize)> {
    let (mut rows, mut stride) = (1, 0);
    let leading = layout.dims().len().saturating_sub(1);
    for (&dim, &step) in layout.dims()[..leading].iter().zip(layout.stride()).rev() {
        match (dim, rows) {
            (0, _) => return Some((0, 0)),
            (1, _) => {}
            (_, 1) => (rows, stride) = (dim, step),
            _ if Some(step) == rows.checked_mul(stride) => rows = rows.checked_mul(dim)?,
            _ => return None,
        }
    }
    Some((rows, stride))
}

/// So many zeros, or an error where there is no memory for them.
pub(crate) fn zeros(rows: usize, cols: usize) -> Result<Vec<f32>> {
    let mut zeros = Vec::new();
    match rows.checked_mul(cols).map(|len| zeros.try_reserve_exact(len).map(|()| zeros.resize(len, 0.0))) {
        Some(Ok(())) => Ok(zeros),
        _ => candle_core::bail!("resblock: no memory for {rows} x {cols} floats"),
    }
}

/// The tensor itself, or a copy if its rows do not follow each other at one distance.
pub(crate) fn with_rows(tensor: &Tensor) -> Result<Tensor> {
    if rows(tensor.layout()).is_some() { Ok(tensor.clone()) } else { tensor.contiguous() }
}

/// The floats of a storage, from where a layout begins.
pub(crate) fn floats<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<&'s [f32]> {
    let CpuStorage::F32(floats) = storage else { candle_core::bail!("resblock: a tensor that is not of F32") };
    Ok(floats.get(layout.start_offset()..).unwrap_or_default())
}

/// Rows of the last dimension. Of a tensor without dimensions, one number.
pub(crate) fn matrix<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<MatRef<'s>> {
    let Some((n, stride)) = rows(layout) else {
        candle_core::bail!("resblock: rows of a tensor at several distances: {layout:?}")
    };
    let (cols, step) = match (layout.dims().last(), layout.stride().last()) {
        (Some(&cols), Some(&step)) => (cols, step),
        _ => (1, 1),
    };
    MatRef::with_strides(floats(storage, layout)?, n, cols, stride, step).map_err(Error::wrap)
}

/// Begins to read a tensor: nobody writes it until the guard is dropped. The type of the guard is candle's own affair.
///
/// Whoever reads a storage must not begin to read it again, through a view say: with a writer waiting in between, candle's lock would have both wait for
/// ever ([`address`] tells storages apart).
pub(crate) fn read(tensor: &Tensor) -> impl Deref<Target = Storage> {
    tensor.storage_and_layout().0
}

/// Which storage a tensor is a view of.
pub(crate) fn address(tensor: &Tensor) -> usize {
    std::ptr::from_ref(&*read(tensor)).addr()
}

/// The storage in main memory.
pub(crate) fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => candle_core::bail!("resblock: a tensor that is not on the CPU"),
    }
}

/// The elements of a layout that is contiguous.
pub(crate) fn line<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<&'s [f32]> {
    Ok(floats(storage, layout)?.get(..layout.shape().elem_count()).unwrap_or_default())
}
