//! Where a call finds its weights, and where it leaves their gradients.

use crate::gemm::buffers::Buffer;
use crate::gemm::factor::Factor;
use crate::mat::MatMut;
use crate::params::borrowed::AffineGradMut;
use crate::params::gradients::Gradients;
use crate::program::{Side, wide};

/// The weights of a network, by the number of the affine map. `Program::check` has seen that each is there and of its size.
pub(crate) trait Source: Sync {
    /// Forward, Wᵀ and the bias, if there is one, padded to whole panels; backward, W and no bias. In one call: it is a virtual one, and a step
    /// of a few rows takes a microsecond.
    fn map(&self, affine: usize, side: Side) -> (Factor<'_>, Option<&[f32]>);
    /// Whether weights are put straight on the way forward, too, which takes room.
    fn moves(&self) -> bool {
        false
    }
}

/// Where the gradient of a weight matrix goes.
pub(crate) enum Target<'a> {
    /// To panels of dWᵀ, as weights of ours are stored.
    Panels(&'a mut [f32]),
    /// To the caller's row-major matrix: dW, with a row for each output, or dWᵀ, with one for each input.
    Rows { m: MatMut<'a>, outputs_first: bool },
}

/// Where the gradients of an affine map go. What was declined is None.
pub(crate) struct Slot<'a> {
    pub(crate) dw: Option<Target<'a>>,
    pub(crate) db: Option<&'a mut [f32]>,
}

/// Where all gradients of a network go.
pub(crate) enum Slots<'a, 'm> {
    /// To memory of ours.
    Owned(&'a mut Gradients),
    /// To the caller; by way of a buffer of panels, one for each map, where the strides are of no other use.
    Caller(&'a mut [AffineGradMut<'m>], &'a mut [Buffer]),
}

impl Slots<'_, '_> {
    /// Those of each map, in order.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = Slot<'_>> {
        let (owned, caller) = match self {
            Slots::Owned(grads) => (Some(grads.affines_mut().map(owned)), None),
            Slots::Caller(grads, staging) => {
                let both = grads.iter_mut().zip(staging.iter_mut());
                (None, Some(both.map(|(grad, staging)| caller(grad, staging))))
            }
        };
        owned.into_iter().flatten().chain(caller.into_iter().flatten())
    }

    /// Makes every gradient zero.
    pub(crate) fn clear(&mut self) {
        for slot in self.all() {
            match slot.dw {
                None => {}
                Some(Target::Panels(data)) => data.fill(0.0),
                Some(Target::Rows { mut m, .. }) => m.fill(0.0),
            }
            slot.db.unwrap_or_default().fill(0.0);
        }
    }
}

/// What was declined has no values.
fn owned<'s>([dw, db]: [&'s mut [f32]; 2]) -> Slot<'s> {
    Slot { dw: Some(Target::Panels(dw)), db: Some(db) }
}

fn caller<'s>(grad: &'s mut AffineGradMut<'_>, staging: &'s mut Buffer) -> Slot<'s> {
    let dw = grad.weights.as_mut().map(|dw| {
        let (outputs, inputs) = dw.shape();
        match Layout::of(dw) {
            Layout::Rows => Target::Rows { m: dw.reborrow(), outputs_first: true },
            Layout::Columns => Target::Rows { m: dw.reborrow().t(), outputs_first: false },
            Layout::Other => Target::Panels(&mut staging.as_mut_slice()[..wide(outputs) * inputs]),
        }
    });
    Slot { dw, db: grad.bias.as_deref_mut() }
}

/// How a matrix of the caller's lies in memory.
pub(crate) enum Layout {
    /// Row by row.
    Rows,
    /// Column by column.
    Columns,
    Other,
}

impl Layout {
    pub(crate) fn of(m: &MatMut<'_>) -> Self {
        if m.is_row_major() {
            Layout::Rows
        } else if m.as_ref().t().is_row_major() {
            Layout::Columns
        } else {
            Layout::Other
        }
    }
}
