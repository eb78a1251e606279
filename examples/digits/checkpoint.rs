//! A run on disk: after every epoch all that it needs to go on, so that a killed one ends with the same bits.

use crate::train::Epoch;
use rand_chacha::ChaCha8Rng;
use resblock::{AdamW, Checkpoint, Error, Snapshot, Stack};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a net's training depends on, by the name of the option. Two runs that differ in one are not the same run.
pub(crate) type Settings = BTreeMap<String, String>;

/// Why a run cannot be saved or resumed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("--checkpoint {path}: {source}", path = path.display())]
    File { path: PathBuf, source: Error },
    #[error("--checkpoint {path}: {source}", path = path.display())]
    Look { path: PathBuf, source: std::io::Error },
    #[error("--checkpoint {path}: there already; --resume goes on from it", path = path.display())]
    Exists { path: PathBuf },
    #[error("--checkpoint {path}: its run had {option} {found:?}, this one has {expected:?}", path = path.display())]
    Setting { path: PathBuf, option: String, expected: String, found: String },
    #[error("--checkpoint {path}: not a run of this example: {reason}", path = path.display())]
    Note { path: PathBuf, reason: String },
}

/// How far a run has come, beside its net and optimiser.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// Of order and noise.
    pub(crate) rng: ChaCha8Rng,
    /// Of the training images: each epoch shuffles that of the one before.
    pub(crate) order: Vec<usize>,
    pub(crate) epochs: Vec<Epoch>,
}

/// The text of a checkpoint. Floats by their bits: decimal ones might not come back as they were.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    settings: Settings,
    /// Words that the generator has given, as text: JSON has no such integers.
    words: String,
    order: Vec<usize>,
    epochs: Vec<[u64; 3]>,
}

/// The file of one run.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    settings: Settings,
    resume: bool,
}

/// Whether there is a file, or an error: what cannot be looked at is not a reason to begin again and overwrite it.
fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(|source| StoreError::Look { path: path.to_path_buf(), source })
}

impl Store {
    /// Without `resume`, what is there already is not overwritten.
    pub(crate) fn new(path: PathBuf, settings: Settings, resume: bool) -> Result<Self, StoreError> {
        if !resume && exists(&path)? {
            return Err(StoreError::Exists { path });
        }
        Ok(Self { path, settings, resume })
    }

    /// Puts what was saved into a run that is about to start; leaves it as it is if nothing was saved yet. `epochs` is how many
    /// there are to be.
    pub(crate) fn load(
        &self,
        net: &mut Stack,
        optimizer: &mut AdamW,
        progress: &mut Progress,
        epochs: usize,
    ) -> Result<(), StoreError> {
        if !self.resume || !exists(&self.path)? {
            return Ok(());
        }
        let file = |source| StoreError::File { path: self.path.clone(), source };
        let checkpoint = Checkpoint::load(&self.path).map_err(file)?;
        let note = self.note(checkpoint.note().unwrap_or_default())?;
        let Note { words, order, epochs: done, .. } = note;
        let refused = |reason: &str| StoreError::Note { path: self.path.clone(), reason: reason.into() };
        let words = words.parse().map_err(|_| refused("no position of the generator"))?;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..progress.order.len()) {
            return Err(refused("no order of the training images"));
        }
        if done.len() > epochs {
            return Err(refused("more epochs than there are to be"));
        }
        checkpoint.resume(net, optimizer).map_err(file)?;
        progress.rng.set_word_pos(words);
        progress.order = order;
        progress.epochs = done.into_iter().map(Epoch::from_bits).collect();
        Ok(())
    }

    /// Reads a note and compares its settings with this run's.
    fn note(&self, text: &str) -> Result<Note, StoreError> {
        let path = || self.path.clone();
        let note: Note =
            serde_json::from_str(text).map_err(|e| StoreError::Note { path: path(), reason: e.to_string() })?;
        let value = |settings: &Settings, option: &String| settings.get(option).cloned().unwrap_or_default();
        let mut options = self.settings.keys().chain(note.settings.keys());
        match options.find(|option| self.settings.get(*option) != note.settings.get(*option)) {
            Some(option) => Err(StoreError::Setting {
                path: path(),
                option: option.clone(),
                expected: value(&self.settings, option),
                found: value(&note.settings, option),
            }),
            None => Ok(note),
        }
    }

    /// Saves, whole or not at all.
    pub(crate) fn save(&self, net: &Stack, optimizer: &AdamW, progress: &Progress) -> Result<(), StoreError> {
        let note = Note {
            settings: self.settings.clone(),
            words: progress.rng.get_word_pos().to_string(),
            order: progress.order.clone(),
            epochs: progress.epochs.iter().copied().map(Epoch::to_bits).collect(),
        };
        let path = || self.path.clone();
        let note =
            serde_json::to_string(&note).map_err(|e| StoreError::Note { path: path(), reason: e.to_string() })?;
        let saved = Snapshot::with_optimizer(net, optimizer).and_then(|snapshot| snapshot.note(note).save(&self.path));
        saved.map_err(|source| StoreError::File { path: path(), source })
    }
}
