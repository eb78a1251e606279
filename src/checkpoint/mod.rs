//! Saved networks, in the [safetensors] format: a [`Snapshot`] is written, a [`Checkpoint`] is read.
//!
//! [safetensors]: https://huggingface.co/docs/safetensors
//!
//! Both hold no layout of ours: matrices are row by row, weights and their moments (outputs, inputs), as Python has them.

mod error;
mod header;
mod optimizer;
mod read;
mod tensor;

pub use error::CheckpointError;
pub use optimizer::SavedOptimizer;
pub use read::Checkpoint;

use crate::error::Error;
use crate::layers::Layer;
use atomic_write_file::AtomicWriteFile;
use read::reserve;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::{fs, io};
use tensor::{Tensor, parameters};

/// A network, and perhaps its optimiser, about to be saved. Borrows both; their values are copied when it is written,
/// all of them, since the file is made in memory first.
///
/// | tensor | type and shape | |
/// |---|---|---|
/// | `blocks.3.first.weight` | F32 (outputs, inputs) | every parameter, by the name that [`Parameter`] displays |
/// | `blocks.3.first.bias` | F32 (outputs) | |
/// | `optimizer.sgd.lr`, `momentum`, `weight_decay` | F32 () | |
/// | `optimizer.sgd.momentum_buffer.` + parameter | F32, the parameter's | zero before the first step |
/// | `optimizer.adamw.lr`, `beta1`, `beta2`, `eps`, `weight_decay` | F32 () | |
/// | `optimizer.adamw.steps` | I64 () | |
/// | `optimizer.adamw.exp_avg.` + parameter, `exp_avg_sq.` + parameter | F32, the parameter's | zero before the first step |
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
/// [`Parameter`]: crate::Parameter
#[derive(Debug, Clone)]
#[must_use = "a snapshot is written by `save` or `to_bytes`"]
pub struct Snapshot<'a> {
    tensors: Vec<Tensor<'a>>,
    note: Option<String>,
}

impl<'a> Snapshot<'a> {
    /// The parameters of `layer`.
    pub fn new<L: Layer>(layer: &'a L) -> Self {
        Self { tensors: parameters(layer).map(|(_, p)| Tensor::parameter(p)).collect(), note: None }
    }

    /// The parameters of `layer`, and the moments, steps and hyper-parameters of its optimiser.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the optimiser's state belongs to another network.
    pub fn with_optimizer<L: Layer, O: SavedOptimizer>(layer: &'a L, optimizer: &'a O) -> Result<Self, Error> {
        let mut snapshot = Self::new(layer);
        snapshot.tensors.extend(optimizer::tensors(layer, optimizer, optimizer.parts().2)?);
        Ok(snapshot)
    }

    /// The same with a text of the caller's, kept beside the tensors: how far a run has come, say.
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// [`CheckpointError::Header`] if the names, the shapes and the note take more than the 100 MB that the format allows;
    /// [`Error::Memory`] if there is no memory for the values. (That is found by asking for it once. Where it is gone a moment later,
    /// or that of the largest tensor, which is there twice for a while, the process ends as the allocator has it.)
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let len = self.tensors.iter().try_fold(0usize, |sum, tensor| sum.checked_add(tensor.len()?));
        drop(reserve::<u8>(len.unwrap_or(usize::MAX))?);
        let strings = self.note.iter().map(|note| (header::NOTE.to_string(), note.clone()));
        // No strings rather than an empty map of them: readers differ on that.
        let strings = self.note.is_some().then(|| strings.collect());
        let tensors = self.tensors.iter().map(|tensor| (&tensor.name, tensor));
        let bytes = safetensors::serialize(tensors, strings);
        Ok(bytes.map_err(|e| CheckpointError::Header { reason: e.to_string() })?)
    }

    /// Writes the file, whole or not at all: to a temporary file in the same folder, which is synced, renamed to `path`, and, on
    /// Unix, the folder synced. Whatever happens, `path` holds what it held before or all of the new. A writer that is killed, or whose
    /// disk fails after all was written, may leave the temporary file, with `path`'s name and some letters. A file that was there
    /// passes its permissions on; of a link, the file that it leads to is replaced. Linux wants `/proc`.
    ///
    /// # Errors
    /// [`CheckpointError::File`]; as [`Snapshot::to_bytes`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let (path, bytes) = (path.as_ref(), self.to_bytes()?);
        let write = || {
            let mut file = AtomicWriteFile::open(destination(path)?)?;
            file.write_all(&bytes)?;
            file.commit()
        };
        write().map_err(|e| CheckpointError::file(path, &e).into())
    }
}

/// Where a link leads; else the path itself. A folder is refused here: the rename would fail, and leave the temporary file.
fn destination(path: &Path) -> io::Result<PathBuf> {
    let link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    let path = if link { fs::canonicalize(path)? } else { path.to_path_buf() };
    if path.is_dir() { Err(ErrorKind::IsADirectory.into()) } else { Ok(path) }
}
