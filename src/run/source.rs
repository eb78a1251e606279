//! Where a call finds its weights, and where it leaves their gradients.

use crate::gemm::buffers::Buffer;
use crate::gemm::factor::Factor;
use crate::mat::MatMut;
use crate::params::borrowed::GradsMut;
use crate::params::gradients::Gradients;
use crate::params::name::Role;
use crate::program::step::Side;
use crate::program::wide;

/// The weights of a network, by the number of the affine map. `Program::check` has seen that each is there and of its size.
pub(crate) trait Source: Sync {
    /// Forward, Wᵀ and the bias, if there is one, padded to whole panels; backward, W and no bias. In one call: it is a virtual one, and a step
    /// of a few rows takes a microsecond.
    fn map(&self, affine: usize, side: Side) -> (Factor<'_>, Option<&[f32]>);
    /// A vector of parameters, padded to whole panels.
    fn vector(&self, index: usize) -> &[f32];
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

/// Where a gradient goes, with the number of its affine map or of its vector of parameters.
pub(crate) enum Slot<'a> {
    Weights(usize, Target<'a>),
    Bias(usize, &'a mut [f32]),
    Vector(usize, &'a mut [f32]),
}

/// Where all gradients of a network go.
pub(crate) enum Slots<'a, 'm> {
    /// To memory of ours.
    Owned(&'a mut Gradients),
    /// To the caller; by way of a buffer of panels, one for each map, where the strides are of no other use.
    Caller(GradsMut<'a, 'm>, &'a mut [Buffer]),
}

impl Slots<'_, '_> {
    /// Calls `f` with each that was not declined.
    pub(crate) fn each<'s>(&'s mut self, mut f: impl FnMut(Slot<'s>)) {
        match self {
            Slots::Owned(grads) => {
                let (mut maps, mut vectors) = (0, 0);
                for (spec, values) in grads.rows_mut() {
                    let slot = match spec.name.role {
                        Role::Weight => {
                            maps += 1;
                            values.map(|values| Slot::Weights(maps - 1, Target::Panels(values)))
                        }
                        Role::Bias => values.map(|values| Slot::Bias(maps - 1, &mut values[..spec.cols])),
                        Role::Gain | Role::Shift | Role::Scale | Role::RunningMean | Role::RunningVariance => {
                            vectors += 1;
                            values.map(|values| Slot::Vector(vectors - 1, &mut values[..spec.cols]))
                        }
                    };
                    slot.into_iter().for_each(&mut f);
                }
            }
            Slots::Caller(GradsMut { affines, vectors }, staging) => {
                for (i, (grad, staging)) in affines.iter_mut().zip(staging.iter_mut()).enumerate() {
                    if let Some(dw) = &mut grad.weights {
                        f(Slot::Weights(i, target(dw, staging)));
                    }
                    if let Some(db) = &mut grad.bias {
                        f(Slot::Bias(i, db));
                    }
                }
                let wanted = vectors.iter_mut().enumerate().filter_map(|(i, line)| Some((i, line.as_deref_mut()?)));
                wanted.for_each(|(i, line)| f(Slot::Vector(i, line)));
            }
        }
    }

    /// Makes every gradient zero.
    pub(crate) fn clear(&mut self) {
        self.each(|slot| match slot {
            Slot::Weights(_, Target::Panels(data)) => data.fill(0.0),
            Slot::Weights(_, Target::Rows { mut m, .. }) => m.fill(0.0),
            Slot::Bias(_, line) | Slot::Vector(_, line) => line.fill(0.0),
        });
    }
}

fn target<'s>(dw: &'s mut MatMut<'_>, staging: &'s mut Buffer) -> Target<'s> {
    let (outputs, inputs) = dw.shape();
    match Layout::of(dw) {
        Layout::Rows => Target::Rows { m: dw.reborrow(), outputs_first: true },
        Layout::Columns => Target::Rows { m: dw.reborrow().t(), outputs_first: false },
        Layout::Other => Target::Panels(&mut staging.as_mut_slice()[..wide(outputs) * inputs]),
    }
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
