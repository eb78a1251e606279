//! Tensors as matrices: where they are, by their layouts.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Shape, TensorData};
use resblock::{Error, MatRef};

/// Rows and their stride, where all dimensions but the last are as one.
fn rows(layout: &Layout) -> Option<(usize, usize)> {
    let (mut rows, mut stride) = (1, 0);
    let dims = layout.shape().as_slice();
    let leading = dims.len().saturating_sub(1);
    for (&dim, &step) in dims[..leading].iter().zip(layout.strides()).rev() {
        match (dim, rows) {
            (0, _) => return Some((0, 0)),
            (1, _) => {}
            (_, 1) => (rows, stride) = (dim, usize::try_from(step).ok()?),
            _ if Some(usize::try_from(step).ok()?) == rows.checked_mul(stride) => rows = rows.checked_mul(dim)?,
            _ => return None,
        }
    }
    Some((rows, stride))
}

/// Features and the distance between them, if that is not negative, as a flipped tensor's is.
fn features(layout: &Layout) -> Option<(usize, usize)> {
    match (layout.shape().as_slice().last(), layout.strides().last()) {
        (Some(&cols), Some(&step)) if cols > 1 => Some((cols, usize::try_from(step).ok()?)),
        (cols, _) => Some((cols.copied().unwrap_or(1), 1)),
    }
}

/// The tensor itself, or a copy if its rows do not follow each other at one distance.
pub(crate) fn with_rows(tensor: FlexTensor) -> FlexTensor {
    let layout = tensor.layout();
    if rows(layout).is_some() && features(layout).is_some() { tensor } else { tensor.to_contiguous() }
}

/// The tensor itself, or a copy if its elements do not follow each other.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The floats of a tensor of f32, from where its layout begins.
fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.storage().get(tensor.layout().start_offset()..).unwrap_or_default()
}

/// Rows of the last dimension, of what [`with_rows`] has seen to.
pub(crate) fn matrix(tensor: &FlexTensor) -> Result<MatRef<'_>, Error> {
    let ((n, stride), (cols, step)) = match (rows(tensor.layout()), features(tensor.layout())) {
        (Some(rows), Some(features)) => (rows, features),
        _ => return Err(Error::Setting { operand: "data", reason: "rows of a tensor at several distances" }),
    };
    MatRef::with_strides(floats(tensor), n, cols, stride, step)
}

/// The elements of what [`contiguous`] has seen to.
pub(crate) fn line(tensor: &FlexTensor) -> &[f32] {
    floats(tensor).get(..tensor.layout().num_elements()).unwrap_or_default()
}

/// A tensor that owns these.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
