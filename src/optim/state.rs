//! What optimisers keep for each parameter: moments, and how many steps it has taken.

use crate::error::Error;
use crate::gemm::buffers::zeros;
use crate::gemm::panels::{PANEL, PanelRef};
use crate::layers::affines::Affines;
use crate::layers::gradients::Gradients;

/// Moments and step counts of every parameter, moments stored as the parameter is: for each affine map those of the weights and those of the
/// bias.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(unreachable_pub, reason = "part of what seals `SavedOptimizer`: nameable by nobody outside")]
pub struct State {
    affines: Vec<Moments>,
}

/// Moments of one affine map.
#[derive(Debug, Clone, PartialEq)]
struct Moments {
    /// (inputs, outputs) of the map. Lengths would not tell: panels of 5 and of 7 columns are as long.
    shape: (usize, usize),
    /// Those of the weights and those of the bias.
    values: [Vec<f32>; 2],
    /// Steps that the weights and the bias have taken: none while their gradients are declined.
    steps: [u64; 2],
}

/// One parameter, about to take a step.
pub(super) struct Slot<'a> {
    pub(super) p: &'a mut [f32],
    pub(super) g: &'a [f32],
    /// As many times `p.len()` floats as there are moments.
    pub(super) moments: &'a mut [f32],
    /// Which step of this parameter it is, from 1 on.
    pub(super) step: u64,
    /// Weights, not a bias.
    pub(super) is_weight: bool,
}

impl State {
    /// (inputs, outputs) of affine map `index`.
    fn shape(layer: &dyn Affines, index: usize) -> (usize, usize) {
        layer.get(index).map_or((0, 0), |a| (a.inputs(), a.outputs()))
    }

    /// Floats of the moments of weights and bias of affine map `index`.
    fn lens(layer: &dyn Affines, index: usize, count: usize) -> [usize; 2] {
        layer
            .get(index)
            .map_or([0, 0], |a| [count * a.weights().as_slice().len(), count * a.bias().map_or(0, <[f32]>::len)])
    }

    /// `count` moments of zero for each parameter, and no steps.
    pub(crate) fn zeros(layer: &dyn Affines, count: usize) -> Result<Self, Error> {
        let affines = (0..layer.count()).map(|i| {
            let [weights, bias] = Self::lens(layer, i, count);
            let values = [zeros(weights)?, zeros(bias)?];
            Ok(Moments { shape: Self::shape(layer, i), values, steps: [0; 2] })
        });
        Ok(Self { affines: affines.collect::<Result<_, Error>>()? })
    }

    /// That these moments belong to a network of `layer`'s shape, or have not been made yet.
    pub(crate) fn check(&self, layer: &dyn Affines, count: usize) -> Result<(), Error> {
        if self.affines.is_empty() {
            return Ok(());
        }
        let n = layer.count();
        let fits = |i: usize| {
            self.affines.get(i).is_some_and(|Moments { shape, values: [weights, bias], .. }| {
                *shape == Self::shape(layer, i) && [weights.len(), bias.len()] == Self::lens(layer, i, count)
            })
        };
        match (0..n.max(self.affines.len())).find(|&i| i >= n || !fits(i)) {
            Some(index) => Err(Error::Mismatch { operand: "optimiser state", index }),
            None => Ok(()),
        }
    }

    /// New state, if there is none yet. Checks gradients and the state that there is.
    pub(super) fn made_for(&self, layer: &dyn Affines, grads: &Gradients, count: usize) -> Result<Option<Self>, Error> {
        grads.check("grads", layer)?;
        self.check(layer, count)?;
        self.affines.is_empty().then(|| Self::zeros(layer, count)).transpose()
    }

    /// Counts a step of every parameter with a gradient, and runs `rule` on it. State and gradients are those of `layer`.
    pub(super) fn update(&mut self, layer: &mut dyn Affines, grads: &Gradients, mut rule: impl FnMut(Slot<'_>)) {
        for ((i, grad), moments) in grads.affines.iter().enumerate().zip(&mut self.affines) {
            let ([weights, bias], [weight_steps, bias_steps]) = (&mut moments.values, &mut moments.steps);
            let Some(affine) = layer.get_mut(i) else { continue };
            if let Some(dw) = &grad.dw {
                *weight_steps = weight_steps.saturating_add(1);
                let p = affine.weights_mut().as_mut_slice();
                rule(Slot { p, g: dw.as_slice(), moments: weights, step: *weight_steps, is_weight: true });
            }
            if let (Some(g), Some(p)) = (&grad.db, affine.bias_mut()) {
                *bias_steps = bias_steps.saturating_add(1);
                rule(Slot { p, g, moments: bias, step: *bias_steps, is_weight: false });
            }
        }
    }

    /// Whether `holds(g, m, v)` for all elements, without padding, of every parameter with a gradient, up to 16 at a time, where there are two
    /// moments.
    pub(super) fn all_lines(&self, grads: &Gradients, mut holds: impl FnMut(&[f32], &[f32], &[f32]) -> bool) -> bool {
        grads.affines.iter().zip(&self.affines).all(|(grad, Moments { values: [weights, bias], .. })| {
            let dw = grad.dw.as_ref().is_none_or(|dw| {
                let (rows, cols) = dw.shape();
                let (m, v) = weights.split_at(weights.len() / 2);
                let [m, v] = [m, v].map(|moment| PanelRef::new(moment, rows, cols).lines());
                dw.view().lines().zip(m.zip(v)).all(|(g, (m, v))| holds(g, m, v))
            });
            let (m, v) = bias.split_at(bias.len() / 2);
            let db = grad.db.as_ref().is_none_or(|db| {
                let moments = m.chunks(PANEL).zip(v.chunks(PANEL));
                db.chunks(PANEL).zip(moments).all(|(g, (m, v))| holds(g, m, v))
            });
            dw && db
        })
    }
}

#[cfg(feature = "safetensors")]
impl State {
    /// Moment `at` of `count` of a parameter, laid out as the parameter is. None before they are made.
    pub(crate) fn moment(&self, affine: usize, is_bias: bool, at: usize, count: usize) -> Option<&[f32]> {
        let moments = &self.affines.get(affine)?.values[usize::from(is_bias)];
        let len = moments.len() / count;
        Some(&moments[at * len..][..len])
    }

    /// As [`State::moment`], to be changed.
    pub(crate) fn moment_mut(&mut self, affine: usize, is_bias: bool, at: usize, count: usize) -> Option<&mut [f32]> {
        let moments = &mut self.affines.get_mut(affine)?.values[usize::from(is_bias)];
        let len = moments.len() / count;
        Some(&mut moments[at * len..][..len])
    }

    /// Steps that a parameter has taken.
    pub(crate) fn steps(&self, affine: usize, is_bias: bool) -> u64 {
        self.affines.get(affine).map_or(0, |moments| moments.steps[usize::from(is_bias)])
    }

    /// As [`State::steps`], to be changed. None before they are made.
    pub(crate) fn steps_mut(&mut self, affine: usize, is_bias: bool) -> Option<&mut u64> {
        Some(&mut self.affines.get_mut(affine)?.steps[usize::from(is_bias)])
    }
}
