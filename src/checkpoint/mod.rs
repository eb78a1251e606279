//! Saved networks, in the [safetensors] format: a [`Snapshot`] is written, a [`Checkpoint`] is read.
//!
//! [safetensors]: https://huggingface.co/docs/safetensors
//!
//! Both hold no layout of ours: matrices are row by row, weights and their moments (outputs, inputs), as Python has them.

mod architecture;
mod elements;
mod file;
mod foreign;
mod groups;
mod header;
mod index;
mod names;
mod optimizer;
mod read;
mod tensor;
mod view;

pub use optimizer::SavedOptimizer;
pub use read::{Checkpoint, Leftovers, TensorInfo};

use crate::error::Error;
use crate::error::checkpoint::CheckpointError;
use crate::layers::Layer;
use crate::params::convention::Convention;
use crate::params::tensor::TensorRef;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use tensor::{Tensor, Values};

/// A network, and perhaps its optimiser, about to be saved. Borrows both; their values are copied when it is written,
/// all of them, since the file is made in memory first.
///
/// | tensor | type and shape | |
/// |---|---|---|
/// | `blocks.3.first.weight` | F32 (outputs, inputs) | every parameter, by the name that [`TensorName`] displays |
/// | `blocks.3.first.bias` | F32 (outputs) | |
/// | `optimizer.sgd.lr`, `momentum`, `weight_decay` | F32 () | |
/// | `optimizer.sgd.momentum_buffer.` + parameter | F32, the parameter's | zero before the first step |
/// | `optimizer.adamw.lr`, `beta1`, `beta2`, `eps`, `weight_decay` | F32 () | |
/// | `optimizer.adamw.steps` | I64 () | calls of `step` |
/// | `optimizer.sgd.step.` or `optimizer.adamw.step.` + parameter | I64 () | steps that it has taken: fewer where its gradient was declined |
/// | `optimizer.adamw.exp_avg.` + parameter, `exp_avg_sq.` + parameter | F32, the parameter's | zero before the first step |
///
/// Beside them are strings by name: the caller's ([`Snapshot::note`], [`Snapshot::metadata`]), and under `resblock.architecture` what
/// the network does after each affine map, by the name that [`Place`] displays: `first gelu; second identity + x` for a residual
/// GELU block, whose input is added in the end. A leaky ReLU is `leaky_relu(0.01)`, the shortest decimal of its slope. A network that
/// does something else is not restored from such a file ([`Checkpoint::ignore_architecture`] lets it); one without that string, by
/// PyTorch say, fits any network with its names and shapes. The [`Group`]s of an optimiser that has any are a string, too, under
/// `resblock.groups`: `part input: lr_factor 0.1; role bias, blocks 0..3: lr_factor 1, weight_decay 0`.
///
/// The same values give the same bytes.
///
/// ```
/// use resblock::{Activation, AdamW, Block, Checkpoint, Init, Snapshot};
///
/// # fn main() -> Result<(), resblock::Error> {
/// let (block, adam) = (Block::residual(4, 8, Activation::Relu, &mut Init::he(1))?, AdamW::new(1e-3));
/// let bytes = Snapshot::with_optimizer(&block, &adam)?.note("epoch 3").to_bytes()?; // or .save(path)
///
/// let mut other = Block::residual(4, 8, Activation::Relu, &mut Init::he(2))?;
/// let mut resumed = AdamW::new(1.0);
/// let checkpoint = Checkpoint::from_bytes(&bytes)?; // or Checkpoint::load(path)
/// assert_eq!(checkpoint.note(), Some("epoch 3"));
/// checkpoint.resume(&mut other, &mut resumed)?; // or .restore(&mut other), for the parameters alone
/// assert_eq!(resumed.lr, 1e-3);
/// assert_eq!(other.first().weights().get(0, 0), block.first().weights().get(0, 0));
/// # Ok(())
/// # }
/// ```
///
/// [`TensorName`]: crate::TensorName
/// [`Place`]: crate::Place
/// [`Group`]: crate::Group
#[derive(Debug, Clone)]
#[must_use = "a snapshot is written by `save` or `to_bytes`"]
pub struct Snapshot<'a> {
    tensors: Vec<Tensor<'a>>,
    strings: BTreeMap<String, String>,
}

impl<'a> Snapshot<'a> {
    /// The parameters of `layer`.
    pub fn new<L: Layer>(layer: &'a L) -> Self {
        let tensors = layer.parameters().map(Tensor::parameter).collect();
        let strings = [(architecture::ARCHITECTURE.to_string(), architecture::text(layer))].into();
        Self { tensors, strings }
    }

    /// The parameters of `layer`, and the moments, steps, hyper-parameters and groups of its optimiser.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the optimiser's state belongs to another network.
    pub fn with_optimizer<L: Layer, O: SavedOptimizer>(layer: &'a L, optimizer: &'a O) -> Result<Self, Error> {
        let mut snapshot = Self::new(layer);
        let (_, _, state) = optimizer.parts();
        if !optimizer.groups().is_empty() {
            snapshot.strings.insert(groups::GROUPS.into(), groups::text(optimizer.groups()));
        }
        snapshot.tensors.extend(optimizer::tensors(layer, optimizer, state)?);
        snapshot.tensors.extend(optimizer::step_counts::<L, O>(layer, state));
        Ok(snapshot)
    }

    /// The same with a text of the caller's, kept beside the tensors: how far a run has come, say.
    pub fn note(self, note: impl Into<String>) -> Self {
        self.metadata(header::NOTE, note)
    }

    /// The same with a string of the caller's under a name, `note` being that of [`Snapshot::note`]. The last of a name stays, but the
    /// crate's own `resblock.architecture` and `resblock.groups` are not replaced, so that those of another file may be passed on.
    pub fn metadata(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        let name = name.into();
        if ![architecture::ARCHITECTURE, groups::GROUPS].contains(&&name[..]) {
            self.strings.insert(name, text.into());
        }
        self
    }

    /// The same with the parameters as another library calls and lays them out by `convention`, such as [`Convention::gpt2`], before them `pattern`,
    /// as in [`crate::Checkpoint::with_convention`], which reads them back: under their names, in their orientation, fused where they are. What the
    /// network does after each affine map is told under these names, too, and the string `format` is `pt`, for which readers of that library ask, unless
    /// the caller has one of that name.
    ///
    /// The tensors of an optimiser keep their names and our orientation: [`crate::Checkpoint::resume`] goes on from such a file, other libraries take
    /// the parameters from it. Those of layers and projections for which `convention` has no names keep them, too.
    ///
    /// # Errors
    /// [`CheckpointError::Unnamed`] if a block has a parameter for which `convention` has no name; [`CheckpointError::Pieces`] if it has but some of
    /// those of a fused tensor; [`CheckpointError::Duplicate`] if two parameters or two tensors have one name, as in a pattern without a place
    /// for a number; [`Error::Setting`] naming `pattern` if it is none, or `convention` if it names no parameter of the network, or contradicts itself;
    /// [`Error::Memory`].
    pub fn with_convention(mut self, convention: &Convention, pattern: &str) -> Result<Self, Error> {
        let ours = self.tensors.iter().filter_map(Tensor::as_parameter).map(TensorRef::spec);
        let names::Named { theirs, unnamed } = names::named(convention, pattern, ours)?;
        if let Some(tensor) = unnamed {
            return Err(CheckpointError::Unnamed { tensor: tensor.to_string() }.into());
        }
        let (mut maps, mut renamed, mut rest) = (HashMap::new(), Vec::new(), Vec::new());
        let mut parameters = HashMap::new();
        for tensor in self.tensors {
            match tensor.as_parameter() {
                Some(&parameter) => _ = parameters.insert(parameter.name(), parameter),
                None => rest.push(tensor),
            }
        }
        for one in &theirs {
            one.check()?;
            let pieces = one.pieces.iter().filter_map(|(_, spec)| parameters.remove(&spec.name)).collect();
            let values = Values::Pieces(pieces, one.transposed);
            renamed.push(Tensor { name: one.name.clone(), shape: one.dims.clone(), values });
            maps.extend(one.pieces.iter().map(|(at, spec)| (spec.name.place.to_string(), (one.map(), *at))));
        }
        self.tensors = rest;
        self.tensors.extend(parameters.into_values().map(Tensor::parameter));
        self.tensors.append(&mut renamed);
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let reserved = self.tensors.iter().find(|tensor| tensor.name == header::STRINGS);
        let twice = self.tensors.windows(2).find(|pair| pair[0].name == pair[1].name).map(|pair| &pair[0]);
        if let Some(Tensor { name, .. }) = reserved.or(twice) {
            return Err(CheckpointError::Duplicate { tensor: name.clone() }.into());
        }
        if let Some(text) = self.strings.get_mut(architecture::ARCHITECTURE) {
            *text = architecture::renamed(text, &maps);
        }
        self.strings.entry("format".into()).or_insert_with(|| "pt".into());
        Ok(self)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// [`crate::CheckpointError::Header`] if the names, the shapes and the strings take more than the 100 MB that the format allows;
    /// [`Error::Memory`] if there is no memory for the values.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.bytes_of(&self.in_order())
    }

    /// The widest elements first: all are then aligned.
    fn in_order(&self) -> Vec<&Tensor<'a>> {
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by(|a, b| b.dtype().cmp(&a.dtype()).then_with(|| a.name.cmp(&b.name)));
        tensors
    }

    /// The bytes of a file with these tensors.
    fn bytes_of(&self, tensors: &[&Tensor<'_>]) -> Result<Vec<u8>, Error> {
        let values = tensors.iter().try_fold(0usize, |sum, tensor| sum.checked_add(tensor.len()?));
        let header = header::write(tensors, &self.strings)?;
        let mut bytes = reserve(values.and_then(|len| len.checked_add(header.len())).unwrap_or(usize::MAX))?;
        bytes.extend(header);
        tensors.iter().for_each(|tensor| tensor.write(&mut bytes));
        Ok(bytes)
    }

    /// Writes the file, whole or not at all: to a temporary file in the same folder, which is synced, renamed to `path`, and, on
    /// Unix, the folder synced. Whatever happens, `path` holds what it held before or all of the new. What a file system does not do at
    /// all, such as to sync a folder, is left out. A writer that is killed may leave the temporary file, `.resblock-` and some letters.
    ///
    /// A file that was there passes its permissions on, and its owner if the process may give files away. Of a link, the file that it
    /// leads to is replaced. Folders, fifos, sockets and devices are not.
    ///
    /// # Errors
    /// [`crate::CheckpointError::File`], and nothing has changed; [`crate::CheckpointError::Unsynced`] if the file was replaced, but the disk failed when
    /// the folder was to be synced; as [`Snapshot::to_bytes`]. On targets that are neither Unix nor Windows, always
    /// [`crate::CheckpointError::File`], of kind `Unsupported`.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        Ok(file::replace(path.as_ref(), &self.to_bytes()?)?)
    }

    /// Writes the network in several files, of at most `most_bytes` of tensors each unless one alone has more, and their index, as Hugging Face has
    /// them: `model-00001-of-00002.safetensors` and so on, beside an index `model.safetensors.index.json`. [`crate::Checkpoint::load_sharded`] reads
    /// them. One file at a time is in memory.
    ///
    /// The files come first, each as by [`Snapshot::save`], and the index last: while it is not there, nobody takes them for a network. None of the
    /// files may be there before, since those of an older network would be lost one by one: save to a folder of its own. If saving fails, those
    /// that it has written are removed. A writer that is killed may leave some.
    ///
    /// # Errors
    /// [`Error::Setting`] naming `index` if its name does not end in `.safetensors.index.json`; [`CheckpointError::File`], of kind `AlreadyExists` if
    /// one of the files is there; as [`Snapshot::save`] of each.
    pub fn save_sharded(&self, index: impl AsRef<Path>, most_bytes: usize) -> Result<(), Error> {
        let index = index.as_ref();
        let (mut shards, mut size, mut total) = (vec![Vec::new()], 0_usize, 0_u64);
        for tensor in self.in_order() {
            let len = tensor.len().unwrap_or(usize::MAX);
            total = total.saturating_add(len as u64);
            size = size.saturating_add(len);
            match shards.last_mut() {
                Some(shard) if shard.is_empty() || size <= most_bytes => shard.push(tensor),
                _ => {
                    shards.push(vec![tensor]);
                    size = len;
                }
            }
        }
        let names = index::names(index, shards.len())?;
        let paths: Vec<PathBuf> = names.iter().map(|name| index::beside(index, name)).collect();
        if let Some(there) = paths.iter().find(|path| fs::symlink_metadata(path).is_ok()) {
            return Err(CheckpointError::file(there, &io::Error::from(ErrorKind::AlreadyExists)).into());
        }
        let mut begun = 0;
        let mut write = || -> Result<(), Error> {
            let mut files = BTreeMap::new();
            for ((shard, path), name) in shards.iter().zip(&paths).zip(&names) {
                let bytes = self.bytes_of(shard)?;
                begun += 1;
                file::replace(path, &bytes)?;
                files.extend(shard.iter().map(|tensor| (&tensor.name[..], &name[..])));
            }
            Ok(file::replace(index, &index::text(&files, total))?)
        };
        let written = write();
        // The index in its place says that all is.
        let in_place =
            |e: &Error| matches!(e, Error::Checkpoint(CheckpointError::Unsynced { path, .. }) if path == index);
        if written.as_ref().is_err_and(|e| !in_place(e)) {
            paths.iter().take(begun).for_each(|path| _ = fs::remove_file(path));
        }
        written
    }
}

fn reserve<T>(len: usize) -> Result<Vec<T>, Error> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| Error::Memory { bytes: len.saturating_mul(size_of::<T>()) })?;
    Ok(vec)
}
