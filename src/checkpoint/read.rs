//! Reading what was saved: first the file by itself, then against a network, and only then is anything changed.

use super::CheckpointError;
use super::header::Header;
use super::optimizer::{self, OPTIMIZER, Parts, STEPS, SavedOptimizer, moment_name, number_name};
use super::tensor::{Tensor, parameters};
use crate::error::Error;
use crate::gemm::pack::pack;
use crate::gemm::panels::PanelMut;
use crate::layers::Layer;
use crate::mat::MatRef;
use crate::optim::State;
use crate::simd::Isa;
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A saved network, and perhaps its optimiser, that has been read and whose header has been checked. See [`crate::Snapshot`] for
/// what is in it, and for an example.
///
/// Any safetensors file with the same names, shapes and types will do, from PyTorch too.
#[derive(Debug, Clone)]
#[must_use = "a checkpoint is put into a network by `restore` or `resume`"]
pub struct Checkpoint<'a> {
    header: Header,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Checkpoint<'a> {
    /// From a file's bytes. Nothing of them is trusted; memory is taken in proportion to their number.
    ///
    /// # Errors
    /// [`CheckpointError::Header`], [`CheckpointError::Length`], [`CheckpointError::Duplicate`].
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, Error> {
        Ok(Self { header: Header::parse(bytes)?, bytes: bytes.into() })
    }

    /// The caller's text, if there is one.
    pub fn note(&self) -> Option<&str> {
        self.header.note.as_deref()
    }

    /// Refuses NaN and ∞ in any tensor of f32, as all of ours are: a run that has diverged, or a damaged file.
    ///
    /// # Errors
    /// [`CheckpointError::NotFinite`] with the first such element of the file.
    pub fn require_finite(self) -> Result<Self, Error> {
        for tensor in self.header.tensors.offset_keys() {
            if self.header.tensors.info(&tensor).is_none_or(|info| info.dtype != Dtype::F32) {
                continue;
            }
            let wrong = self.floats(&tensor).enumerate().find(|(_, value)| !value.is_finite());
            if let Some((index, value)) = wrong {
                return Err(CheckpointError::NotFinite { tensor, index, found: value.to_string() }.into());
            }
        }
        Ok(self)
    }

    /// Puts the saved parameters into `layer`, bit by bit. The tensors of an optimiser may be there and are left alone.
    ///
    /// # Errors
    /// [`CheckpointError::Missing`], [`CheckpointError::Unexpected`], [`CheckpointError::Shape`], [`CheckpointError::Dtype`];
    /// [`Error::Memory`]. Nothing is changed then.
    pub fn restore<L: Layer>(&self, layer: &mut L) -> Result<(), Error> {
        let expected: Vec<_> = parameters(layer).map(|(_, p)| Tensor::parameter(p)).collect();
        self.check(&expected, |name| name.starts_with(OPTIMIZER))?;
        let mut room = room(&expected)?;
        self.write_parameters(layer, &mut room)
    }

    /// Puts the saved parameters into `layer`, and moments, steps and hyper-parameters into `optimizer`: the next step then has the
    /// same bits as if the run had never stopped. Whatever state `optimizer` had is replaced.
    ///
    /// # Errors
    /// As [`Checkpoint::restore`]; [`CheckpointError::Count`] if the count of steps is negative. Nothing is changed then.
    pub fn resume<L: Layer, O: SavedOptimizer>(&self, layer: &mut L, optimizer: &mut O) -> Result<(), Error> {
        // What is expected depends on the kind of optimiser and on the network, not on the state to be replaced.
        let none = State::default();
        let mut expected = optimizer::tensors(layer, optimizer, &none)?;
        expected.extend(parameters(layer).map(|(_, p)| Tensor::parameter(p)));
        self.check(&expected, |_| false)?;
        let steps = self.steps(&number_name::<O>(STEPS))?;
        let mut room = room(&expected)?;
        let state = self.read_moments::<L, O>(layer, &mut room)?;
        self.write_parameters(layer, &mut room)?;

        let (numbers, count, moments) = optimizer.parts_mut();
        for (number, name) in numbers.into_iter().zip(O::NUMBERS) {
            self.floats(&number_name::<O>(name)).for_each(|value| *number = value);
        }
        if let Some((count, steps)) = count.zip(steps) {
            *count = steps;
        }
        *moments = state;
        Ok(())
    }

    /// That every expected tensor is there, as expected, and no other but those that `spare` names.
    fn check(&self, expected: &[Tensor<'_>], spare: impl Fn(&str) -> bool) -> Result<(), CheckpointError> {
        for tensor in expected {
            let name = || tensor.name.clone();
            let info =
                self.header.tensors.info(&tensor.name).ok_or_else(|| CheckpointError::Missing { tensor: name() })?;
            if info.shape != tensor.shape {
                let (expected, found) = (tensor.shape.clone(), info.shape.clone());
                return Err(CheckpointError::Shape { tensor: name(), expected, found });
            }
            if info.dtype != tensor.dtype() {
                let (expected, found) = (tensor.dtype().to_string(), info.dtype.to_string());
                return Err(CheckpointError::Dtype { tensor: name(), expected, found });
            }
        }
        let known: HashSet<&str> = expected.iter().map(|tensor| &tensor.name[..]).collect();
        let names = self.header.tensors.offset_keys();
        match names.into_iter().find(|name| !known.contains(&name[..]) && !spare(name)) {
            Some(tensor) => Err(CheckpointError::Unexpected { tensor }),
            None => Ok(()),
        }
    }

    /// The data of a tensor; none if it is not there.
    fn data(&self, name: &str) -> &[u8] {
        self.header.tensors.info(name).map_or(&[], |info| {
            let (start, end) = info.data_offsets; // inside the file: `Header::parse` has seen to it
            &self.bytes[self.header.data..][start..end]
        })
    }

    fn floats(&self, name: &str) -> impl Iterator<Item = f32> {
        self.data(name).as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes))
    }

    /// A count of steps; none if it is not there.
    fn steps(&self, name: &str) -> Result<Option<u64>, CheckpointError> {
        let Some(&bytes) = self.data(name).first_chunk() else { return Ok(None) };
        let found = i64::from_le_bytes(bytes);
        let count = u64::try_from(found).map_err(|_| CheckpointError::Count { tensor: name.into(), found })?;
        Ok(Some(count))
    }

    fn read_moments<L: Layer, O: Parts>(&self, layer: &L, room: &mut Vec<f32>) -> Result<State, Error> {
        let count = O::MOMENTS.len();
        let mut state = State::zeros(layer, count)?;
        for (i, p) in parameters(layer) {
            for (at, moment) in O::MOMENTS.iter().enumerate() {
                let Some(to) = state.moment_mut(i, p.is_bias(), at, count) else { continue };
                room.clear();
                room.extend(self.floats(&moment_name::<O>(moment, p)));
                if p.is_bias() {
                    to.copy_from_slice(room);
                } else {
                    let (outputs, inputs) = p.shape();
                    pack(Isa::Scalar, MatRef::new(room, outputs, inputs)?.t(), PanelMut::new(to, inputs, outputs));
                }
            }
        }
        Ok(state)
    }

    /// After `check`: then none of this can fail.
    fn write_parameters<L: Layer>(&self, layer: &mut L, room: &mut Vec<f32>) -> Result<(), Error> {
        let names: Vec<_> = parameters(layer).map(|(i, p)| (i, p.is_bias(), p.to_string())).collect();
        for (i, is_bias, name) in names {
            room.clear();
            room.extend(self.floats(&name));
            let Some(map) = layer.affine_mut(i) else { continue };
            if !is_bias {
                let (outputs, inputs) = (map.outputs(), map.inputs());
                map.weights_mut().read_from(MatRef::new(room, outputs, inputs)?)?;
            } else if let Some(bias) = map.bias_mut() {
                bias.copy_from_slice(room);
            }
        }
        Ok(())
    }
}

impl Checkpoint<'static> {
    /// From a file.
    ///
    /// # Errors
    /// [`CheckpointError::File`], [`Error::Memory`]; as [`Checkpoint::from_bytes`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let refused = |e: std::io::Error| CheckpointError::file(path, &e);
        let file = File::open(path).map_err(refused)?;
        let len = file.metadata().map_err(refused)?.len();
        let mut bytes = reserve(usize::try_from(len).unwrap_or(usize::MAX))?;
        // No more than was there at first: a device has no end.
        file.take(len).read_to_end(&mut bytes).map_err(refused)?;
        Ok(Self { header: Header::parse(&bytes)?, bytes: bytes.into() })
    }
}

/// Room for any one of the tensors.
fn room(tensors: &[Tensor<'_>]) -> Result<Vec<f32>, Error> {
    reserve(tensors.iter().map(|tensor| tensor.shape.iter().product()).max().unwrap_or(0))
}

pub(super) fn reserve<T>(len: usize) -> Result<Vec<T>, Error> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| Error::Memory { bytes: len.saturating_mul(size_of::<T>()) })?;
    Ok(vec)
}
