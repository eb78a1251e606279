//! A network in several files, and the index that says which tensor is in which: `model.safetensors.index.json`, as Hugging Face writes it.

use super::file;
use crate::error::Error;
use crate::error::checkpoint::CheckpointError;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// What its name ends in, and those of the files end in with their number.
const ENDING: &str = ".safetensors.index.json";

/// The names of the tensors that each file has.
pub(super) type Files = BTreeMap<String, Vec<String>>;

/// The files by the index at `path`.
pub(super) fn read(path: &Path) -> Result<Files, Error> {
    let bytes = file::read(path, |start| match start.trim_ascii_start().first() {
        Some(b'{') => Ok(()),
        _ => Err(refused(format!("this is not JSON: it begins with \"{}\"", start.escape_ascii()))),
    })?;
    let Index(map) = serde_json::from_slice(&bytes).map_err(|e| refused(e.to_string()))?;
    let mut pairs: Vec<_> = map.ok_or_else(|| refused("it has no weight_map".into()))?;
    pairs.sort();
    if let Some(twice) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(CheckpointError::Duplicate { tensor: twice[0].0.clone() }.into());
    }
    let mut files = Files::new();
    for (tensor, file) in pairs {
        if !is_name(&file) {
            return Err(
                refused(format!("tensor {tensor:?} is in {file:?}, expected the name of a file beside it")).into()
            );
        }
        files.entry(file).or_default().push(tensor);
    }
    Ok(files)
}

fn refused(reason: String) -> CheckpointError {
    CheckpointError::Index { reason }
}

/// Whether it is one on every system, and leads out of no folder.
fn is_name(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    one && !file.contains(['/', '\\', ':', '\0'])
}

/// The pairs of `weight_map` as they come, equal names and all. All else is passed over.
struct Index(Option<Vec<(String, String)>>);

struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(IndexVisitor)
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct IndexVisitor;
struct PairsVisitor;

impl<'de> Visitor<'de> for IndexVisitor {
    type Value = Index;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with a weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        const MAP: &str = "weight_map";
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            if name != MAP {
                map.next_value::<IgnoredAny>()?;
            } else if found.is_some() {
                return Err(A::Error::duplicate_field(MAP));
            } else {
                found = Some(map.next_value::<Pairs>()?.0);
            }
        }
        Ok(Index(found))
    }
}

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from tensors to files")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}

/// The names of the files of the index at `path`: `model-00001-of-00002.safetensors`.
pub(super) fn names(path: &Path, count: usize) -> Result<Vec<String>, Error> {
    let refused = Error::Setting { operand: "index", reason: "its name ends in .safetensors.index.json" };
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(ENDING));
    let name = name.filter(|name| !name.is_empty()).ok_or(refused)?;
    Ok((1..=count).map(|i| format!("{name}-{i:05}-of-{count:05}.safetensors")).collect())
}

/// The index as bytes. `size`: bytes of all tensors.
pub(super) fn text(files: &BTreeMap<&str, &str>, size: u64) -> Vec<u8> {
    format!("{:#}\n", json!({ "metadata": { "total_size": size }, "weight_map": files })).into_bytes()
}

/// The path of a file beside the index at `path`.
pub(super) fn beside(path: &Path, name: &str) -> PathBuf {
    path.with_file_name(name)
}
