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
mod optimizer;
mod read;
mod tensor;

pub use optimizer::SavedOptimizer;
pub use read::{Checkpoint, Leftovers, TensorInfo};

use crate::error::Error;
use crate::layers::Layer;
use read::reserve;
use std::collections::BTreeMap;
use std::path::Path;
use tensor::Tensor;

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

    /// The file's bytes.
    ///
    /// # Errors
    /// [`crate::CheckpointError::Header`] if the names, the shapes and the strings take more than the 100 MB that the format allows;
    /// [`Error::Memory`] if there is no memory for the values.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        // The widest elements first: all are then aligned.
        tensors.sort_by(|a, b| b.dtype().cmp(&a.dtype()).then_with(|| a.name.cmp(&b.name)));
        let values = tensors.iter().try_fold(0usize, |sum, tensor| sum.checked_add(tensor.len()?));
        let header = header::write(&tensors, &self.strings)?;
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
}
