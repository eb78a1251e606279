//! The header of a safetensors file: 8 bytes of length, then JSON that gives each tensor's type, shape and place.
//!
//! It is read here, into the types of the `safetensors` crate and checked by them, since the crate's own `deserialize` (0.8)
//! lets the last of two equal names win, and adds up sizes without a check for overflow.

use super::CheckpointError;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// The caller's text, among the strings that a file may carry.
pub(super) const NOTE: &str = "note";
/// Not a tensor, but strings by name.
const STRINGS: &str = "__metadata__";

/// A checked header: every tensor lies inside the file, and every byte of data in one tensor.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) tensors: Metadata,
    pub(super) note: Option<String>,
    /// Where data begin: what offsets count from.
    pub(super) data: usize,
}

impl Header {
    /// Memory is taken in proportion to the bytes there are, whatever they say.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let found = bytes.len();
        let (len, rest) = bytes.split_first_chunk().ok_or(CheckpointError::Length { expected: 8, found })?;
        let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
        // No slice is as long as usize::MAX, so a sum that does not fit is never what was found.
        let data = len.saturating_add(size_of::<u64>());
        let json = rest.get(..len).ok_or(CheckpointError::Length { expected: data, found })?;
        let header = |reason: &dyn fmt::Display| CheckpointError::Header { reason: reason.to_string() };
        let Entries { mut tensors, mut strings } = serde_json::from_slice(json).map_err(|e| header(&e))?;

        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(twice) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(CheckpointError::Duplicate { tensor: twice[0].0.clone() });
        }
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let tensors = Metadata::new(None, tensors).map_err(|e| header(&e))?;
        let expected = data.saturating_add(tensors.data_len());
        if expected != found {
            return Err(CheckpointError::Length { expected, found });
        }
        Ok(Self { tensors, note: strings.remove(NOTE), data })
    }
}

/// The JSON as it comes, equal names and all.
#[derive(Default)]
struct Entries {
    tensors: Vec<(String, TensorInfo)>,
    strings: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from names to tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Entries::default();
        let mut has_strings = false;
        while let Some(name) = map.next_key::<String>()? {
            if name != STRINGS {
                entries.tensors.push((name, map.next_value()?));
            } else if std::mem::replace(&mut has_strings, true) {
                return Err(A::Error::duplicate_field(STRINGS));
            } else {
                entries.strings = map.next_value()?;
            }
        }
        Ok(entries)
    }
}
