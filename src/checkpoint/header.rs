//! The header of a safetensors file: 8 bytes of length, then JSON that gives each tensor's type, shape and place.
//!
//! It is read here, into the types of the `safetensors` crate and checked by them, since the crate's own `deserialize` (0.8)
//! lets the last of two equal names win, and panics at sizes whose sum overflows (in builds that check).

use super::names::map_of;
use super::tensor::Tensor;
use super::view::View;
use super::{architecture, foreign};
use crate::Error;
use crate::error::checkpoint::CheckpointError;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The caller's text, among the strings that a file may carry.
pub(super) const NOTE: &str = "note";
/// Not a tensor, but strings by name.
pub(super) const STRINGS: &str = "__metadata__";

/// A checked header: every tensor lies inside the file, and every byte of data in one tensor.
#[derive(Debug, Clone, Default)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, Entry>,
    pub(super) strings: BTreeMap<String, String>,
}

/// What a header says of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// The file that it is in, where there are several.
    pub(super) file: usize,
    /// From where to where in that file its data are, or those of the tensor that it is a piece of.
    pub(super) bytes: (usize, usize),
    /// Where its elements are among these.
    pub(super) view: View,
    /// What the network that was saved does after the affine map whose parameter this is, if the file tells. Of a tensor of several pieces, there
    /// are as many.
    pub(super) then: Vec<String>,
}

impl Entry {
    /// In the order of the files.
    fn order(&self) -> (usize, (usize, usize), usize) {
        (self.file, self.bytes, self.view.start)
    }

    /// Its data, run by run, in the files that it may be in.
    pub(super) fn runs<'d>(&self, files: &'d [Cow<'_, [u8]>]) -> impl Iterator<Item = &'d [u8]> + use<'d> {
        let (start, end) = self.bytes; // inside the file: `Header::parse` has seen to it
        let data = files.get(self.file).and_then(|file| file.get(start..end)).unwrap_or(&[]);
        self.view.runs(&self.shape, data, self.dtype.bitsize() / 8)
    }
}

impl Header {
    /// Memory is taken in proportion to the bytes there are, whatever they say.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        foreign::check(bytes)?;
        let found = bytes.len();
        let (len, rest) = bytes.split_first_chunk().ok_or(CheckpointError::Length { expected: 8, found })?;
        let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
        // No slice is as long as usize::MAX, so a sum that does not fit is never what was found.
        let data = len.saturating_add(size_of::<u64>());
        let json = rest.get(..len).ok_or(CheckpointError::Length { expected: data, found })?;
        let header = |reason: &dyn fmt::Display| CheckpointError::Header { reason: reason.to_string() };
        let Entries { mut tensors, strings } = serde_json::from_slice(json).map_err(|e| header(&e))?;

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
        let told = architecture::parse(strings.get(architecture::ARCHITECTURE).map_or("", |text| text));
        let entry = |(name, info): (String, &TensorInfo)| {
            let then = told.get(map_of(&name)).into_iter().flatten().map(|then| then.to_string()).collect();
            let (start, end) = info.data_offsets;
            let (shape, view) = (info.shape.clone(), View::whole(&info.shape));
            (name, Entry { dtype: info.dtype, shape, file: 0, bytes: (data + start, data + end), view, then })
        };
        let tensors = tensors.tensors().into_iter().map(entry).collect();
        Ok(Self { tensors, strings })
    }

    /// The tensors in the order that the files have them.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (&str, &Entry)> {
        let mut tensors: Vec<_> = self.tensors.iter().map(|(name, entry)| (&name[..], entry)).collect();
        tensors.sort_by_key(|(_, entry)| entry.order());
        tensors.into_iter()
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
                // The crate takes null for none.
                entries.strings = map.next_value::<Option<_>>()?.unwrap_or_default();
            }
        }
        Ok(entries)
    }
}

/// A header as bytes, its length included, for tensors that follow one another. The crate's `serialize` has the strings in the order of a
/// `HashMap`, another in each process.
pub(super) fn write(tensors: &[&Tensor<'_>], strings: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
    let refused = |reason: String| CheckpointError::Header { reason };
    let mut bytes = vec![0; size_of::<u64>()];
    serde_json::to_writer(&mut bytes, &Written { tensors, strings }).map_err(|e| refused(e.to_string()))?;
    // Spaces, so that data begin at a multiple of 8.
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let len = (bytes.len() - size_of::<u64>()) as u64;
    if len > foreign::LONGEST_HEADER {
        return Err(refused(format!("{len} bytes are more than the format allows")).into());
    }
    bytes[..size_of::<u64>()].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

struct Written<'a> {
    tensors: &'a [&'a Tensor<'a>],
    strings: &'a BTreeMap<String, String>,
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(STRINGS, self.strings)?;
        let mut end = 0_usize;
        for tensor in self.tensors {
            let start = end;
            end = start.saturating_add(tensor.len().unwrap_or(usize::MAX)); // `to_bytes` has asked
            let (dtype, shape) = (tensor.dtype(), tensor.shape.clone());
            map.serialize_entry(&tensor.name, &TensorInfo { dtype, shape, data_offsets: (start, end) })?;
        }
        map.end()
    }
}
