//! A priori bounds of layers and networks, forward and backward: one size and one error for each tensor.

use super::activation::{largest_curvature, largest_slope, largest_value, slope_accuracy, value_accuracy};
use super::{UNIT, chain, rounding, sum};
use crate::program::form::{Form, Skip};
use crate::weights::Affine;
use crate::{Activation, Layer};

/// What is known of all numbers of a tensor: none is larger than `size` in exact arithmetic, none is computed with a larger error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numbers {
    /// Largest magnitude of the exact values.
    pub size: f64,
    /// Largest distance of a computed value from its exact one.
    pub error: f64,
}

impl Numbers {
    /// Operands: f32 of this magnitude at most, without error.
    pub fn exact(size: f64) -> Self {
        Self { size, error: 0.0 }
    }

    /// Largest magnitude of the computed values.
    fn computed(self) -> f64 {
        self.size + self.error
    }

    /// Σ a b over terms whose |b| add up to `weights`: before any rounding.
    fn weighted(self, weights: f64) -> Self {
        // An empty sum is 0 whatever its terms are.
        if weights == 0.0 { Self::exact(0.0) } else { Self { size: weights * self.size, error: weights * self.error } }
    }

    /// a b: before any rounding.
    fn times(self, b: Self) -> Self {
        let error = self.size * b.error + self.error * b.size + self.error * b.error;
        Self { size: self.size * b.size, error }
    }

    /// a + b: before any rounding.
    fn plus(self, b: Self) -> Self {
        Self { size: self.size + b.size, error: self.error + b.error }
    }

    /// The same with the error of an operation of its own.
    fn and(self, own: f64) -> Self {
        Self { size: self.size, error: self.error + own }
    }

    /// a + b, rounded once; without b, a.
    fn add(self, b: Option<Self>) -> Self {
        b.map_or(self, |b| self.plus(b).and(UNIT * (self.computed() + b.computed())))
    }
}

/// Shape and magnitude of an affine map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Map {
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
    /// Largest sum of absolute weights that make one output, ‖W‖ in the maximum norm.
    pub row_sum: f64,
    /// Largest sum of absolute weights that one input goes to, ‖Wᵀ‖ in the maximum norm.
    pub col_sum: f64,
    /// Largest absolute bias.
    pub bias: f64,
}

impl Map {
    /// Any map of this shape with weights and biases of these magnitudes at most.
    pub fn new(inputs: usize, outputs: usize, weight: f64, bias: f64) -> Self {
        Self { inputs, outputs, row_sum: inputs as f64 * weight, col_sum: outputs as f64 * weight, bias }
    }

    /// The sums of these very weights: sharper.
    pub fn of(map: &Affine) -> Self {
        let w = |o, i| f64::from(map.weights().get(o, i).unwrap_or(0.0)).abs();
        let (inputs, outputs) = (map.inputs(), map.outputs());
        let row = |o| (0..inputs).map(|i| w(o, i)).sum::<f64>();
        let col = |i| (0..outputs).map(|o| w(o, i)).sum::<f64>();
        let bias = map.bias().unwrap_or_default().iter().map(|b| f64::from(b.abs()));
        Self {
            inputs,
            outputs,
            row_sum: (0..outputs).map(row).fold(0.0, f64::max),
            col_sum: (0..inputs).map(col).fold(0.0, f64::max),
            bias: bias.fold(0.0, f64::max),
        }
    }
}

/// Bounds of a forward pass through a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ForwardBounds {
    /// z = x Wᵀ + b, of the first map of a block.
    pub z: Numbers,
    /// φ(z).
    pub h: Numbers,
    /// The output, skip included.
    pub y: Numbers,
}

/// y = φ(x Wᵀ + b) + skip:
///
/// ```text
/// e_z = ‖W‖ e_x + chain(inputs, bias + ‖W‖ (x + e_x)),     e_h = max|φ'| e_z + accuracy of φ,
/// e_y = e_h + e_skip + u (h + e_h + skip + e_skip)
/// ```
pub fn linear(map: Map, phi: Activation, x: Numbers, skip: Option<Numbers>) -> ForwardBounds {
    let exact = x.weighted(map.row_sum).plus(Numbers::exact(map.bias));
    let z = exact.and(chain(map.inputs, exact.computed()));
    let h = Numbers { size: largest_value(phi, z.size), error: largest_slope(phi, z.computed()) * z.error };
    let h = h.and(value_accuracy(phi).error(h.computed()));
    ForwardBounds { z, h, y: h.add(skip) }
}

/// y = φ(x W1ᵀ + b1) W2ᵀ + b2 (+ x): [`linear`] twice.
pub fn block(first: Map, second: Map, phi: Activation, skip: bool, x: Numbers) -> ForwardBounds {
    let ForwardBounds { z, h, .. } = linear(first, phi, x, None);
    ForwardBounds { z, h, y: linear(second, Activation::Identity, h, skip.then_some(x)).y }
}

/// Bounds on the gradients of one affine map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MapBounds {
    /// dL/dW.
    pub dw: Numbers,
    /// dL/db.
    pub db: Numbers,
}

/// Bounds of a backward pass through a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct BackwardBounds {
    /// dL/dx.
    pub dx: Numbers,
    /// Gradients of each affine map, in the order of the layer.
    pub maps: Vec<MapBounds>,
}

/// Backward of [`linear`] over a batch of `rows`, gradients overwritten: dz = dy φ'(z), dx = dz W (+ dy if the skip was x), dW = dzᵀ x,
/// db = sums of dz.
///
/// ```text
/// e_φ' = max|φ''| e_z + accuracy of φ',      e_dz = dy e_φ' + e_dy (max|φ'| + e_φ') + one rounding
/// e_dx = ‖Wᵀ‖ e_dz + chain(outputs, ‖Wᵀ‖ (dz + e_dz)), and the skip as in forward
/// e_dW = rows (dz e_x + e_dz x + e_dz e_x) + chain(rows, rows (dz + e_dz) (x + e_x)),     e_db likewise with x = 1
/// ```
///
/// φ' of ReLU and leaky ReLU jumps at 0: for them this holds if no exact z is within `z.error` of 0.
pub fn linear_backward(
    rows: usize,
    map: Map,
    phi: Activation,
    (x, z): (Numbers, Numbers),
    dy: Numbers,
    skip_is_x: bool,
) -> BackwardBounds {
    let dz = before_activation(phi, z, dy);
    let dx = input_gradient(map.outputs, map.col_sum, dz).add(skip_is_x.then_some(dy));
    BackwardBounds { dx, maps: vec![weight_gradient(rows, x, dz)] }
}

/// Backward of [`block`] over a batch of `rows`, gradients overwritten, from the bounds of its forward: dh = dy W2, dz = dh φ'(z),
/// dx = dz W1 (+ dy), dW2 = dyᵀ h, dW1 = dzᵀ x. Formulas and the condition on kinks are those of [`linear_backward`].
pub fn block_backward(
    rows: usize,
    (first, second): (Map, Map),
    phi: Activation,
    skip: bool,
    (x, out): (Numbers, ForwardBounds),
    dy: Numbers,
) -> BackwardBounds {
    let dz = before_activation(phi, out.z, input_gradient(second.outputs, second.col_sum, dy));
    let dx = input_gradient(first.outputs, first.col_sum, dz).add(skip.then_some(dy));
    BackwardBounds { dx, maps: vec![weight_gradient(rows, x, dz), weight_gradient(rows, out.h, dy)] }
}

/// g φ'(z), rounded once; the identity multiplies by nothing.
fn before_activation(phi: Activation, z: Numbers, g: Numbers) -> Numbers {
    if phi == Activation::Identity {
        return g;
    }
    let slope = Numbers { size: largest_slope(phi, z.computed()), error: largest_curvature(phi) * z.error };
    let slope = slope.and(slope_accuracy(phi).error(slope.computed()));
    let exact = g.times(slope);
    exact.and(rounding(exact.computed()))
}

/// One chain over the outputs of a map.
fn input_gradient(outputs: usize, col_sum: f64, dz: Numbers) -> Numbers {
    let exact = dz.weighted(col_sum);
    exact.and(chain(outputs, exact.computed()))
}

/// Chains over the batch.
fn weight_gradient(rows: usize, x: Numbers, dz: Numbers) -> MapBounds {
    let dw = dz.times(x).weighted(rows as f64);
    let db = dz.weighted(rows as f64);
    MapBounds { dw: dw.and(chain(rows, dw.computed())), db: db.and(sum(rows, db.computed())) }
}

/// Bounds of a whole network: its output and all gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkBounds {
    /// The output of each stage (of a [`crate::Stack`]: projection, blocks, projection), the last being the network's.
    pub outputs: Vec<Numbers>,
    /// dL/dx.
    pub dx: Numbers,
    /// Gradients of each affine map, in the order of [`Layer::affine`].
    pub maps: Vec<MapBounds>,
}

/// Forward and backward of any layer on a batch of `rows` with |x| <= `x` and |dy| <= `dy`, stage by stage: the output of one is the
/// input of the next, with its error, and the gradient of an input is the dy of the stage below.
///
/// Sizes and errors grow from stage to stage by ‖W‖ max|φ'|, as if all terms had one sign: for deep networks a worst case that no data
/// come near. [`super::Running`] is much sharper there.
///
/// None if there are blocks with norms, gates or scales: a norm divides by what may be as small as √ε.
pub fn network<L: Layer>(layer: &L, rows: usize, x: f64, dy: f64) -> Option<NetworkBounds> {
    let mut entering = Numbers::exact(x);
    let mut passed = Vec::new();
    let mut affines = (0..).map_while(|i| layer.affine(i)).map(Map::of);
    for form in layer.program().forms() {
        let x = entering;
        let first = affines.next()?;
        let (second, out) = match form {
            Form::Linear(form) => (None, linear(first, form.phi, x, form.skip.then_some(x))),
            Form::Norm(_) => return None,
            Form::Block(form) if !form.is_bare() => return None,
            Form::Block(form) => {
                let second = affines.next()?;
                (Some(second), block(first, second, form.activation, form.skip == Skip::Identity, x))
            }
        };
        entering = out.y;
        passed.push((form, first, second, x, out));
    }
    let (mut dx, mut maps) = (Numbers::exact(dy), Vec::new());
    for &(form, first, second, x, out) in passed.iter().rev() {
        let below = match (form, second) {
            (Form::Linear(form), _) => linear_backward(rows, first, form.phi, (x, out.z), dx, form.skip),
            (Form::Block(form), Some(second)) => {
                block_backward(rows, (first, second), form.activation, form.skip == Skip::Identity, (x, out), dx)
            }
            (Form::Block(_), None) | (Form::Norm(_), _) => return None,
        };
        dx = below.dx;
        maps.splice(0..0, below.maps);
    }
    Some(NetworkBounds { outputs: passed.iter().map(|(.., out)| out.y).collect(), dx, maps })
}
