//! Reading what was saved: first the file by itself, then against a network, and only then is anything changed.

use super::header::{Entry, Header, NOTE};
use super::names::named;
use super::optimizer::{self, OPTIMIZER, Parts, STEPS, SavedOptimizer, moment_name, number_name, step_name};
use super::tensor::Tensor;
use super::{architecture, elements, file, foreign, groups, index, reserve};
use crate::error::Error;
use crate::error::checkpoint::CheckpointError;
use crate::layers::Layer;
use crate::mat::MatRef;
use crate::optim::State;
use crate::params::convention::Convention;
use crate::params::tensor::{TensorMut, TensorRef};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, btree_map};
use std::path::Path;

/// A saved network, and perhaps its optimiser, that has been read and whose header has been checked. See [`crate::Snapshot`] for
/// what is in it, and for an example.
///
/// Any safetensors file with the same names and shapes will do, from PyTorch too. Parameters and moments are F32, or F16 or BF16, which f32
/// holds as they are, or F64, rounded to the nearest f32 (ties to even; ±∞ past the largest). Files with the names and layouts of another
/// library are read by [`Checkpoint::with_convention`], and those in several files by [`Checkpoint::load_sharded`]. Any with other names, or with
/// more than is wanted, are listed, mapped and read in part:
///
/// ```
/// use resblock::{Activation, Block, Checkpoint, Init, Linear, Snapshot, Stack};
///
/// # fn main() -> Result<(), resblock::Error> {
/// let init = &mut Init::he(1);
/// let input = Linear::with_init(3, 4, Activation::Identity, init)?;
/// let output = Linear::with_init(4, 2, Activation::Identity, init)?;
/// let blocks = vec![Block::residual(4, 8, Activation::Gelu, init)?];
/// let file = Snapshot::new(&Stack::from_layers(input, blocks.clone(), output)?).to_bytes()?;
///
/// let checkpoint = Checkpoint::from_bytes(&file)?;
/// let first = checkpoint.tensors().next().expect("a tensor");
/// assert_eq!((first.name, first.shape, &first.dtype[..]), ("blocks.0.first.bias", &[8][..], "F32"));
///
/// let mut trunk = Stack::from_blocks(blocks.clone())?; // has no projections
/// let leftovers = checkpoint.restore_partial(&mut trunk)?;
/// assert_eq!(leftovers.unexpected, ["input.bias", "input.weight", "output.bias", "output.weight"]);
///
/// let mut block = blocks[0].clone(); // calls its parameters `first.weight`, ...
/// let leftovers = checkpoint.strip_prefix("blocks.0.")?.restore_partial(&mut block)?;
/// assert!(leftovers.missing.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a checkpoint is put into a network by `restore` or `resume`"]
pub struct Checkpoint<'a> {
    header: Header,
    /// The bytes of each file.
    files: Vec<Cow<'a, [u8]>>,
}

/// A tensor of a file, by what its header says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Sizes, those of rows first; none for a single number.
    pub shape: &'a [usize],
    /// Type of the elements, as the format has it: `F32`, `BF16`, `I64`, ...
    pub dtype: String,
}

/// What [`Checkpoint::restore_partial`] did not do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "says which parameters were not restored"]
pub struct Leftovers {
    /// Parameters of the network that are not in the file, and are as they were.
    pub missing: Vec<String>,
    /// Tensors of the file that the network has not, those of an optimiser aside.
    pub unexpected: Vec<String>,
}

impl<'a> Checkpoint<'a> {
    /// From a file's bytes. Nothing of them is trusted; memory is taken in proportion to their number.
    ///
    /// # Errors
    /// [`CheckpointError::Header`], [`CheckpointError::Length`], [`CheckpointError::Duplicate`].
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, Error> {
        Ok(Self { header: Header::parse(bytes)?, files: vec![bytes.into()] })
    }

    /// The caller's text, if there is one.
    pub fn note(&self) -> Option<&str> {
        self.header.strings.get(NOTE).map(|note| &note[..])
    }

    /// All strings of the file with their names, in the order of these: see [`crate::Snapshot`] for the crate's own.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.header.strings.iter().map(|(name, text)| (&name[..], &text[..]))
    }

    /// The tensors, in the order that the file has them, or the files.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        let tensors = self.header.in_order();
        tensors.map(|(name, Entry { shape, dtype, .. })| TensorInfo { name, shape, dtype: dtype.to_string() })
    }

    /// The elements of a tensor, row by row, as f32.
    ///
    /// # Errors
    /// [`CheckpointError::Missing`], [`CheckpointError::Dtype`]; [`Error::Memory`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>, Error> {
        let missing = || CheckpointError::Missing { tensor: name.into() };
        let Entry { dtype, shape, view, .. } = self.header.tensors.get(name).ok_or_else(missing)?;
        check_dtype(name, Dtype::F32, *dtype)?;
        let mut values = reserve(shape.iter().product())?;
        self.append(name, &mut values);
        match shape[..] {
            [rows, cols] if view.is_transposed() && !values.is_empty() => {
                let mut by_rows = reserve(values.len())?;
                by_rows.extend((0..rows).flat_map(|i| values[i..].iter().step_by(rows).take(cols)));
                Ok(by_rows)
            }
            _ => Ok(values),
        }
    }

    /// The same with other names for its tensors: `new_name` is given each one's, in the order of the file, and those for which it returns
    /// `None` are left out.
    ///
    /// # Errors
    /// [`CheckpointError::Duplicate`] if two tensors get the same name.
    pub fn map_names(mut self, mut new_name: impl FnMut(&str) -> Option<String>) -> Result<Self, Error> {
        let names: Vec<String> = self.header.in_order().map(|(name, _)| name.to_string()).collect();
        let mut old = std::mem::take(&mut self.header.tensors);
        for name in names {
            let Some((entry, new)) = old.remove(&name).zip(new_name(&name)) else { continue };
            insert(&mut self.header.tensors, new, entry)?;
        }
        Ok(self)
    }

    /// The same without `prefix` before the names that begin with it: `model.`, say. The others are kept as they are.
    ///
    /// # Errors
    /// [`CheckpointError::Duplicate`] if two tensors get the same name.
    pub fn strip_prefix(self, prefix: &str) -> Result<Self, Error> {
        self.map_names(|name| Some(name.strip_prefix(prefix).unwrap_or(name).into()))
    }

    /// The same with the tensors that another library calls and lays out by `convention`, such as [`Convention::gpt2`], as those of `layer`: under
    /// our names, in our orientation, and fused ones in pieces. [`Checkpoint::restore`] and all else then sees them so. Which of its parameters
    /// `layer` has, and where its norms are, says which names are looked for; tensors of other names stay as they are.
    ///
    /// `pattern` is what stands before the names of a block: `encoder.layer.3.`, or, with a place for its number, `encoder.layer.{}.`. Blocks are
    /// counted from 0, or from 6 where it is `encoder.layer.{6}.`: those of a [`crate::Stack`], and in a [`crate::Sequence`] the layers of which
    /// `convention` names a parameter. The projections of a stack belong to no block and keep their names.
    ///
    /// ```
    /// use resblock::{Block, BlockForm, Checkpoint, Convention, Init, Snapshot, Stack};
    ///
    /// # fn main() -> Result<(), resblock::Error> {
    /// let block = |seed| Block::with_form(&BlockForm::gpt2(4, 16), &mut Init::he(seed));
    /// let (saved, mut stack) = (Stack::from_blocks(vec![block(1)?, block(2)?])?, Stack::from_blocks(vec![block(3)?, block(4)?])?);
    /// let file = Snapshot::new(&saved).with_convention(&Convention::gpt2(), "h.{}.")?.to_bytes()?;
    ///
    /// let checkpoint = Checkpoint::from_bytes(&file)?; // or one that transformers has saved
    /// assert!(checkpoint.tensors().any(|t| t.name == "h.1.mlp.c_fc.weight" && t.shape == [4, 16]));
    /// let checkpoint = checkpoint.with_convention(&Convention::gpt2(), "h.{}.", &stack)?;
    /// assert!(checkpoint.tensors().any(|t| t.name == "blocks.1.first.weight" && t.shape == [16, 4]));
    /// checkpoint.restore(&mut stack)?; // of a whole model: .restore_partial(&mut stack)
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CheckpointError::Shape`] of a tensor by its own name; [`CheckpointError::Pieces`] if `layer` has but some of those of a fused tensor;
    /// [`CheckpointError::Duplicate`] if two parameters have one name, as in a pattern without a place for a number, or two tensors get one;
    /// [`Error::Setting`] naming `pattern` if it is none, or `convention` if it names no parameter of `layer`, or contradicts itself;
    /// [`Error::Memory`].
    pub fn with_convention<L: Layer>(
        mut self,
        convention: &Convention,
        pattern: &str,
        layer: &L,
    ) -> Result<Self, Error> {
        let theirs = named(convention, pattern, layer.parameters().map(|p| TensorRef::spec(&p)))?.theirs;
        let tensors = &mut self.header.tensors;
        let found: Vec<_> = theirs.into_iter().filter_map(|one| Some((tensors.remove(&one.name)?, one))).collect();
        for (entry, theirs) in found {
            theirs.check()?;
            if entry.shape != theirs.dims {
                let (expected, found) = (theirs.dims, entry.shape);
                return Err(CheckpointError::Shape { tensor: theirs.name, expected, found }.into());
            }
            for (piece, spec) in theirs.pieces {
                let shape = spec.dims();
                let view = if theirs.transposed { entry.view.t() } else { entry.view };
                let first = piece.saturating_mul(shape.first().copied().unwrap_or(0));
                let view = view.from(first, &shape);
                let told = entry.then.get(piece).filter(|_| entry.then.len() == theirs.count);
                let then = told.cloned().into_iter().collect();
                insert(tensors, spec.name.to_string(), Entry { shape, view, then, ..entry.clone() })?;
            }
        }
        Ok(self)
    }

    /// The same without what the file says of the network's activations and skips: its parameters then fit any network with these names
    /// and shapes.
    pub fn ignore_architecture(mut self) -> Self {
        self.header.tensors.values_mut().for_each(|entry| entry.then.clear());
        self
    }

    /// Refuses NaN and ∞ in any tensor that is read as f32, as all of ours are: a run that has diverged, or a damaged file. An F64 past the
    /// largest f32 counts as ∞.
    ///
    /// # Errors
    /// [`CheckpointError::NotFinite`] with the first such element of the file.
    pub fn require_finite(self) -> Result<Self, Error> {
        /// A piece of a tensor: whole elements of any type.
        const PIECE: usize = 4096;
        let mut values = Vec::new();
        for (tensor, entry) in self.header.in_order() {
            let mut first: Option<(usize, f32)> = None;
            for (at, run) in entry.runs(&self.files).enumerate() {
                let mut start = 0;
                for piece in run.chunks(PIECE) {
                    values.clear();
                    elements::append(&mut values, entry.dtype, piece);
                    for (i, &value) in values.iter().enumerate().filter(|(_, value)| !value.is_finite()) {
                        let index = entry.view.position(&entry.shape, at, start + i);
                        first = first.filter(|(first, _)| *first < index).or(Some((index, value)));
                    }
                    start += values.len();
                }
            }
            if let Some((index, found)) = first {
                let found = found.to_string();
                return Err(CheckpointError::NotFinite { tensor: tensor.into(), index, found }.into());
            }
        }
        Ok(self)
    }

    /// Puts the saved parameters into `layer`: those of F32 bit by bit. The tensors of an optimiser may be there and are left alone.
    ///
    /// # Errors
    /// [`CheckpointError::Missing`], [`CheckpointError::Unexpected`], [`CheckpointError::Shape`], [`CheckpointError::Dtype`],
    /// [`CheckpointError::Architecture`]; [`Error::Memory`]. Nothing is changed then.
    pub fn restore<L: Layer>(&self, layer: &mut L) -> Result<(), Error> {
        let expected: Vec<_> = layer.parameters().map(Tensor::parameter).collect();
        self.check(&expected, |name| name.starts_with(OPTIMIZER))?;
        self.check_architecture(layer)?;
        let mut room = room(&expected)?;
        self.write_parameters(layer, &mut room)
    }

    /// Puts those of the saved parameters into `layer` that it has, and says which others there are on either side.
    ///
    /// # Errors
    /// [`CheckpointError::Shape`], [`CheckpointError::Dtype`] and [`CheckpointError::Architecture`] of those that both have;
    /// [`Error::Memory`]. Nothing is changed then.
    pub fn restore_partial<L: Layer>(&self, layer: &mut L) -> Result<Leftovers, Error> {
        let (expected, missing): (Vec<_>, Vec<_>) = layer
            .parameters()
            .map(Tensor::parameter)
            .partition(|tensor| self.header.tensors.contains_key(&tensor.name));
        self.check(&expected, |_| true)?;
        self.check_architecture(layer)?;
        let missing = missing.into_iter().map(|tensor| tensor.name).collect();
        let unexpected =
            self.others(&expected).filter(|name| !name.starts_with(OPTIMIZER)).map(str::to_string).collect();
        let mut room = room(&expected)?;
        self.write_parameters(layer, &mut room)?;
        Ok(Leftovers { missing, unexpected })
    }

    /// Puts the saved parameters into `layer`, and moments, steps, hyper-parameters and groups into `optimizer`: the next step then has the
    /// same bits as if the run had never stopped. Whatever `optimizer` had is replaced: by no groups, if the file has none. Files from before parameters had counts of
    /// their own have none of them: each has then taken as many steps as the optimiser.
    ///
    /// # Errors
    /// As [`Checkpoint::restore`]; [`CheckpointError::Count`] if a count of steps is negative,
    /// [`CheckpointError::Groups`] if its groups are not to be understood. Nothing is changed then.
    pub fn resume<L: Layer, O: SavedOptimizer>(&self, layer: &mut L, optimizer: &mut O) -> Result<(), Error> {
        // What is expected depends on the kind of optimiser and on the network, not on the state to be replaced.
        let none = State::default();
        let mut expected = optimizer::tensors(layer, optimizer, &none)?;
        expected.extend(layer.parameters().map(Tensor::parameter));
        let prefix = step_name::<O>("");
        if self.header.in_order().any(|(name, _)| name.starts_with(&prefix)) {
            expected.extend(optimizer::step_counts::<L, O>(layer, &none));
        }
        self.check(&expected, |_| false)?;
        self.check_architecture(layer)?;
        let steps = self.steps(&number_name::<O>(STEPS))?;
        let groups = groups::parse(self.header.strings.get(groups::GROUPS).map_or("", |text| text))?;
        let mut room = room(&expected)?;
        let state = self.read_state::<L, O>(layer, steps.unwrap_or(0), &mut room)?;
        self.write_parameters(layer, &mut room)?;

        let (numbers, count, moments) = optimizer.parts_mut();
        for (number, name) in numbers.into_iter().zip(O::NUMBERS) {
            room.clear();
            self.append(&number_name::<O>(name), &mut room);
            room.iter().for_each(|&value| *number = value);
        }
        if let Some((count, steps)) = count.zip(steps) {
            *count = steps;
        }
        *moments = state;
        *optimizer.groups_mut() = groups;
        Ok(())
    }

    /// That every expected tensor is there, as expected, and no other but those that `spare` names.
    fn check(&self, expected: &[Tensor<'_>], spare: impl Fn(&str) -> bool) -> Result<(), CheckpointError> {
        for tensor in expected {
            let name = || tensor.name.clone();
            let entry = self.header.tensors.get(&tensor.name);
            let entry = entry.ok_or_else(|| CheckpointError::Missing { tensor: name() })?;
            if entry.shape != tensor.shape {
                let (expected, found) = (tensor.shape.clone(), entry.shape.clone());
                return Err(CheckpointError::Shape { tensor: name(), expected, found });
            }
            check_dtype(&tensor.name, tensor.dtype(), entry.dtype)?;
        }
        match self.others(expected).find(|name| !spare(name)) {
            Some(tensor) => Err(CheckpointError::Unexpected { tensor: tensor.into() }),
            None => Ok(()),
        }
    }

    /// The tensors of the file that are not expected.
    fn others(&self, expected: &[Tensor<'_>]) -> impl Iterator<Item = &str> {
        let known: HashSet<String> = expected.iter().map(|tensor| tensor.name.clone()).collect();
        self.header.in_order().map(|(name, _)| name).filter(move |name| !known.contains(*name))
    }

    /// That the file says nothing else of what comes after each affine map of which it has a parameter.
    fn check_architecture<L: Layer>(&self, layer: &L) -> Result<(), CheckpointError> {
        for (map, expected) in architecture::of(layer) {
            for parameter in ["weight", "bias"] {
                let then = self.header.tensors.get(&format!("{map}.{parameter}")).map(|entry| &entry.then[..]);
                if let Some([found]) = then
                    && *found != expected
                {
                    let found = found.clone();
                    return Err(CheckpointError::Architecture { layer: map.to_string(), expected, found });
                }
            }
        }
        Ok(())
    }

    /// Appends the elements of a tensor, in the order of its runs; none if it is not there.
    fn append(&self, name: &str, values: &mut Vec<f32>) {
        if let Some(entry) = self.header.tensors.get(name) {
            entry.runs(&self.files).for_each(|run| elements::append(values, entry.dtype, run));
        }
    }

    /// A count of steps; none if it is not there.
    fn steps(&self, name: &str) -> Result<Option<u64>, CheckpointError> {
        let data = self.header.tensors.get(name).and_then(|entry| entry.runs(&self.files).next());
        let Some(&bytes) = data.and_then(<[u8]>::first_chunk) else { return Ok(None) };
        let found = i64::from_le_bytes(bytes);
        let count = u64::try_from(found).map_err(|_| CheckpointError::Count { tensor: name.into(), found })?;
        Ok(Some(count))
    }

    /// Moments and counts. `steps`: the count of a parameter that has none of its own.
    fn read_state<L: Layer, O: Parts>(&self, layer: &L, steps: u64, room: &mut Vec<f32>) -> Result<State, Error> {
        let mut state = State::zeros(layer, O::MOMENTS.len())?;
        for (p, (count, moments)) in layer.parameters().zip(state.parts_mut()) {
            if !p.role().is_learned() {
                continue;
            }
            *count = self.steps(&step_name::<O>(p))?.unwrap_or(steps);
            for (name, to) in O::MOMENTS.iter().zip(moments) {
                self.write(&moment_name::<O>(name, p), to, room)?;
            }
        }
        Ok(state)
    }

    /// After `check`: then none of this can fail. Parameters that are not there are left alone.
    fn write_parameters<L: Layer>(&self, layer: &mut L, room: &mut Vec<f32>) -> Result<(), Error> {
        for to in layer.parameters_mut() {
            let name = to.name().to_string();
            if self.header.tensors.contains_key(&name) {
                self.write(&name, to, room)?;
            }
        }
        Ok(())
    }

    /// The values of the tensor `name` to a parameter or a moment.
    fn write(&self, name: &str, mut to: TensorMut<'_>, room: &mut Vec<f32>) -> Result<(), Error> {
        let (rows, cols) = to.shape();
        room.clear();
        self.append(name, room);
        let transposed = self.header.tensors.get(name).is_some_and(|entry| entry.view.is_transposed());
        to.read_from(if transposed { MatRef::new(room, cols, rows)?.t() } else { MatRef::new(room, rows, cols)? })
    }
}

impl Checkpoint<'static> {
    /// From a file, a regular one: a fifo, a socket or a device is refused.
    ///
    /// # Errors
    /// [`CheckpointError::File`], [`Error::Memory`]; as [`Checkpoint::from_bytes`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let bytes = file::read(path.as_ref(), foreign::check)?;
        Ok(Self { header: Header::parse(&bytes)?, files: vec![bytes.into()] })
    }

    /// From the files of a network that is in several, by their index, `model.safetensors.index.json`, as Hugging Face has it: those that it names,
    /// which are beside it. They are all read, one after the other. Of the strings that several have by one name, that of the first file stays.
    ///
    /// # Errors
    /// [`CheckpointError::Index`] if it is no index, or names a file that may be elsewhere; [`CheckpointError::NotInFile`] if a tensor is not
    /// where it says; [`CheckpointError::Duplicate`] if it has a name twice, or two files have one; as [`Checkpoint::load`] of each file.
    pub fn load_sharded(index: impl AsRef<Path>) -> Result<Self, Error> {
        let (mut all, mut files) = (Header::default(), Vec::new());
        for (at, (file, promised)) in index::read(index.as_ref())?.into_iter().enumerate() {
            let bytes = file::read(&index::beside(index.as_ref(), &file), foreign::check)?;
            let Header { tensors, strings } = Header::parse(&bytes)?;
            if let Some(tensor) = promised.into_iter().find(|tensor| !tensors.contains_key(tensor)) {
                return Err(CheckpointError::NotInFile { tensor, file }.into());
            }
            for (name, entry) in tensors {
                insert(&mut all.tensors, name, Entry { file: at, ..entry })?;
            }
            for (name, text) in strings {
                all.strings.entry(name).or_insert(text);
            }
            files.push(bytes.into());
        }
        Ok(Self { header: all, files })
    }
}

/// Adds a tensor with a new name.
fn insert(tensors: &mut BTreeMap<String, Entry>, name: String, entry: Entry) -> Result<(), CheckpointError> {
    match tensors.entry(name) {
        btree_map::Entry::Vacant(place) => _ = place.insert(entry),
        btree_map::Entry::Occupied(twice) => return Err(CheckpointError::Duplicate { tensor: twice.key().clone() }),
    }
    Ok(())
}

/// That a tensor has these elements, or floats of another type in place of f32.
fn check_dtype(tensor: &str, expected: Dtype, found: Dtype) -> Result<(), CheckpointError> {
    if found == expected || expected == Dtype::F32 && elements::is_float(found) {
        return Ok(());
    }
    let (expected, found) = (expected.to_string(), found.to_string());
    Err(CheckpointError::Dtype { tensor: tensor.into(), expected, found })
}

/// Room for any one of the tensors.
fn room(tensors: &[Tensor<'_>]) -> Result<Vec<f32>, Error> {
    reserve(tensors.iter().map(|tensor| tensor.shape.iter().product()).max().unwrap_or(0))
}
