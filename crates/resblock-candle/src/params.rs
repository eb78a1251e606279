//! Parameters: which tensors a formula has, and how calls have them.

use crate::view;
use candle_core::{Error, Result, Tensor};
use resblock::{
    AffineRef, Context, Formula, GradMode, Gradients, Layer, MatMut, MatRef, ParamsRef, Part, Record, Role, Sequence,
    TensorName, Workspace,
};
use std::sync::Arc;

/// A tensor of a formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spec {
    pub(crate) name: TensorName,
    pub(crate) place: Place,
    /// (outputs, inputs) of weights, (1, length) of all else.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// What a tensor is to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Those of the next affine map.
    Weights,
    /// That of the last affine map.
    Bias,
    /// The next vector.
    Vector,
}

impl Spec {
    /// Those of a formula.
    pub(crate) fn of(formula: &Formula) -> impl Iterator<Item = Self> + use<> {
        formula.tensors().into_iter().map(|(name, shape)| Self::new(name, shape))
    }

    pub(crate) fn new(name: TensorName, (rows, cols): (usize, usize)) -> Self {
        let place = match name.role {
            Role::Weight => Place::Weights,
            Role::Bias => Place::Bias,
            _ => Place::Vector,
        };
        Self { name, place, rows, cols }
    }

    /// The same in layer `layer` of a chain.
    pub(crate) fn within(self, layer: usize) -> Self {
        let place = resblock::Place { layer: Some(layer), ..self.name.place };
        Self { name: place.tensor(self.name.role), ..self }
    }

    /// Its name in a layer by itself: that of `candle_nn`, where that has such a layer.
    pub(crate) fn own_name(&self) -> String {
        match (self.name.place.part, self.name.role) {
            (Part::Linear, role) => role.to_string(),
            (Part::Norm, Role::Gain) => "weight".into(),
            (Part::Norm, Role::Shift) => "bias".into(),
            (Part::Norm, role) => role.to_string(),
            _ => self.name.to_string(),
        }
    }

    /// Its shape as a tensor.
    pub(crate) fn dims(&self) -> Vec<usize> {
        if self.place == Place::Weights { vec![self.rows, self.cols] } else { vec![self.cols] }
    }

    /// That a tensor has its shape: a single number may be without dimensions.
    pub(crate) fn check(&self, tensor: &Tensor) -> Result<()> {
        view::check(tensor, "resblock: parameter")?;
        let fits = tensor.dims() == self.dims() || self.cols * self.rows == 1 && tensor.elem_count() == 1;
        if !fits {
            let (expected, found) = (self.dims(), tensor.dims());
            candle_core::bail!("resblock: {}: expected shape {expected:?}, found {found:?}", self.name)
        }
        Ok(())
    }
}

/// The tensors of a layer.
#[derive(Debug)]
pub(crate) struct Tensors {
    pub(crate) all: Vec<Tensor>,
    /// The storage that each is a view of, and the number of the first that is of the same.
    storages: Vec<(usize, usize)>,
}

impl Tensors {
    pub(crate) fn new(all: Vec<Tensor>) -> Self {
        let addresses: Vec<_> = all.iter().map(view::address).collect();
        let first = |address| addresses.iter().position(|other| *other == address).unwrap_or_default();
        let storages = addresses.iter().map(|&address| (address, first(address))).collect();
        Self { all, storages }
    }

    /// Whether some of them is a view of this tensor's storage.
    pub(crate) fn share(&self, tensor: &Tensor) -> bool {
        let address = view::address(tensor);
        self.storages.iter().any(|(other, _)| *other == address)
    }

    /// Calls `f` with the parameters where they are.
    pub(crate) fn with<R>(&self, specs: &[Spec], f: impl FnOnce(ParamsRef<'_>) -> Refused<R>) -> Result<R> {
        // Vectors that are not contiguous are copied now: what they are views of may have changed since the last call.
        let copies = specs.iter().zip(&self.all).map(|(spec, tensor)| {
            (spec.place != Place::Weights && !tensor.is_contiguous()).then(|| tensor.contiguous()).transpose()
        });
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let owns = |at: usize| self.storages[at].1 == at;
        let guards: Vec<_> = self.all.iter().enumerate().map(|(at, t)| owns(at).then(|| view::read(t))).collect();
        let copied: Vec<_> = copies.iter().map(|copy| copy.as_ref().map(view::read)).collect();

        let (mut affines, mut vectors): (Vec<AffineRef<'_>>, Vec<&[f32]>) = Default::default();
        for (at, spec) in specs.iter().enumerate() {
            let (storage, layout) = match (&copied[at], &copies[at], &guards[self.storages[at].1]) {
                (Some(storage), Some(copy), _) => (view::cpu(storage)?, copy.layout()),
                (_, _, Some(storage)) => (view::cpu(storage)?, self.all[at].layout()),
                _ => candle_core::bail!("resblock: a parameter without a storage"),
            };
            match spec.place {
                Place::Weights => affines.push(AffineRef { weights: view::matrix(storage, layout)?, bias: None }),
                Place::Bias => {
                    let bias = view::line(storage, layout)?;
                    if let Some(map) = affines.last_mut() {
                        map.bias = Some(bias);
                    }
                }
                Place::Vector => vectors.push(view::line(storage, layout)?),
            }
        }
        f(ParamsRef { affines: &affines, vectors: &vectors }).map_err(Error::wrap)
    }
}

/// What calls of resblock return.
pub(crate) type Refused<T> = std::result::Result<T, resblock::Error>;

/// The parameters of a call.
#[derive(Debug, Clone)]
pub(crate) enum Params {
    /// Read where they are, at every call.
    Tensors(Arc<Tensors>),
    /// A copy of what does not change.
    Packed(Arc<Packed>),
}

/// Parameters as kernels like them best. They have no gradients.
#[derive(Debug)]
pub(crate) struct Packed {
    net: Sequence,
    /// The bits of the running averages that it is of.
    pub(crate) running: Vec<u32>,
    /// None of any parameter.
    declined: Gradients,
}

impl Packed {
    pub(crate) fn new(net: Sequence, running: Vec<u32>) -> Result<Self> {
        let mut declined = Gradients::new(&net).map_err(Error::wrap)?;
        declined.decline(|_| true);
        Ok(Self { net, running, declined })
    }

    pub(crate) fn infer(&self, ctx: &Context, ws: &mut Workspace, x: MatRef<'_>, y: MatMut<'_>) -> Refused<()> {
        self.net.infer(ctx, ws, x, y)
    }

    pub(crate) fn forward(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        x: MatRef<'_>,
        y: MatMut<'_>,
        record: &mut Record,
    ) -> Refused<()> {
        self.net.forward_to(ctx, ws, x, y, record)
    }

    pub(crate) fn backward(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        record: &[f32],
        dy: MatRef<'_>,
        dx: Option<MatMut<'_>>,
    ) -> Refused<()> {
        self.net.backward(ctx, ws, record, dy, dx, &mut self.declined.clone(), GradMode::Overwrite)
    }
}
