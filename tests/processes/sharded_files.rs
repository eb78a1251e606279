//! Networks in several files, with an index that says which tensor is in which.

use crate::common::{Rng, mat, parameters_of};
use proptest::prelude::*;
use resblock::{AdamW, Block, BlockForm, Checkpoint, CheckpointError, Convention, Error, Init, Layer, Snapshot, Stack};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";

/// A folder of its own for each test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sharded-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Two blocks of 4 features and 6 hidden ones: 26 floats of norm and biases and 48 of weights in each.
fn net(seed: u64) -> Stack {
    let mut rng = Rng::new(seed);
    let mut block = || {
        let mut block = Block::with_form(&BlockForm::gpt2(4, 6), &mut Init::he(seed)).expect("a block");
        for mut tensor in block.parameters_mut() {
            let (rows, cols) = tensor.shape();
            tensor.read_from(mat(&rng.vec(rows * cols), rows, cols)).expect("values");
        }
        block
    };
    Stack::from_blocks(vec![block(), block()]).expect("a stack")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().expect("a name")).collect();
    names.sort();
    names
}

/// The index as its text says.
fn index(folder: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder.join(INDEX)).expect("a file")).expect("JSON")
}

#[test]
fn a_network_in_several_files_comes_back() {
    let saved = net(1);
    let total: usize = parameters_of(&saved).iter().map(|values| 4 * values.len()).sum();
    for (most, files) in [(0, 12), (100, 8), (200, 4), (total - 1, 2), (total, 1), (usize::MAX, 1)] {
        let folder = folder("back");
        let path = folder.join(INDEX);
        let snapshot =
            Snapshot::new(&saved).with_convention(&Convention::gpt2(), "h.{}.").expect("named").note("epoch 3");
        snapshot.save_sharded(&path, most).expect("saved");
        let shards: Vec<_> = (1..=files).map(|i| format!("model-{i:05}-of-{files:05}.safetensors")).collect();
        assert_eq!(names(&folder), [&shards[..], &[INDEX.to_string()]].concat(), "{most}");

        let index = index(&folder);
        assert_eq!(index["metadata"]["total_size"], total);
        let map = index["weight_map"].as_object().expect("a map");
        let mut in_files = 0;
        for shard in &shards {
            let one = Checkpoint::load(folder.join(shard)).expect("a file by itself");
            let bytes: usize = one.tensors().map(|t| 4 * t.shape.iter().product::<usize>()).sum();
            assert!(bytes <= most || one.tensors().count() == 1, "{bytes} bytes of {most}");
            assert!(one.tensors().all(|t| map[t.name] == shard[..]), "{shard}");
            in_files += one.tensors().count();
        }
        assert_eq!((map.len(), in_files), (12, 12));

        let (checkpoint, mut other) = (Checkpoint::load_sharded(&path).expect("loaded"), net(2));
        assert_eq!(checkpoint.note(), Some("epoch 3"));
        assert_eq!(checkpoint.tensors().map(|t| t.name.to_string()).collect::<BTreeSet<_>>().len(), 12);
        let checkpoint =
            checkpoint.require_finite().and_then(|c| c.with_convention(&Convention::gpt2(), "h.{}.", &other));
        checkpoint.and_then(|c| c.restore(&mut other)).expect("restored");
        assert_eq!(parameters_of(&other), parameters_of(&saved));
        fs::remove_dir_all(folder).expect("removed");
    }
}

#[test]
fn an_optimiser_in_several_files_is_resumed() {
    let (folder, saved, mut adam) = (folder("resume"), net(1), AdamW::new(0.25));
    adam.weight_decay = 0.5;
    let path = folder.join(INDEX);
    let snapshot = Snapshot::with_optimizer(&saved, &adam).expect("a snapshot");
    snapshot.save_sharded(&path, 300).expect("saved");
    let (mut other, mut resumed) = (net(2), AdamW::new(1.0));
    Checkpoint::load_sharded(&path).and_then(|c| c.resume(&mut other, &mut resumed)).expect("resumed");
    assert_eq!((resumed.lr, resumed.weight_decay), (0.25, 0.5));
    let again = Snapshot::with_optimizer(&other, &resumed).and_then(|s| s.to_bytes());
    assert_eq!(again, snapshot.to_bytes());
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn files_that_are_there_are_not_replaced() {
    let (folder, old, new) = (folder("there"), net(1), net(2));
    let path = folder.join(INDEX);
    Snapshot::new(&old).save_sharded(&path, 300).expect("saved");
    let before = names(&folder);
    let Err(Error::Checkpoint(CheckpointError::File { path: found, kind, .. })) =
        Snapshot::new(&new).save_sharded(&path, 300)
    else {
        panic!("no error of a file")
    };
    assert_eq!((&found, kind), (&folder.join(&before[0]), ErrorKind::AlreadyExists));
    assert_eq!(names(&folder), before);
    // In another number of files, the index takes the new in the place of the old.
    Snapshot::new(&new).save_sharded(&path, usize::MAX).expect("saved");
    let mut other = net(3);
    Checkpoint::load_sharded(&path).and_then(|c| c.restore(&mut other)).expect("restored");
    assert_eq!(parameters_of(&other), parameters_of(&new));
    // What cannot be finished leaves nothing behind: here, a folder is where the index is to be.
    let elsewhere = folder.join("elsewhere");
    fs::create_dir_all(elsewhere.join(INDEX)).expect("a folder");
    let refused = Snapshot::new(&new).save_sharded(elsewhere.join(INDEX), 300);
    assert!(matches!(refused, Err(Error::Checkpoint(CheckpointError::File { kind: ErrorKind::IsADirectory, .. }))));
    assert_eq!(names(&elsewhere), [INDEX]);
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn an_index_has_the_name_of_one() {
    let (folder, net) = (folder("name"), net(1));
    for name in ["model.json", "model.safetensors", ".safetensors.index.json", "model.safetensors.index.json.gz"] {
        let refused = Snapshot::new(&net).save_sharded(folder.join(name), 300);
        let reason = "its name ends in .safetensors.index.json";
        assert_eq!(refused, Err(Error::Setting { operand: "index", reason }), "{name}");
    }
    assert!(names(&folder).is_empty());
    fs::remove_dir_all(folder).expect("removed");
}

/// A sharded network in a folder of its own, with another index.
fn with_index(name: &str, text: &str) -> Result<(), Error> {
    let folder = folder(name);
    Snapshot::new(&net(1)).save_sharded(folder.join(INDEX), 300).expect("saved");
    fs::write(folder.join(INDEX), text).expect("written");
    let mut other = net(2);
    let before = parameters_of(&other);
    let found = Checkpoint::load_sharded(folder.join(INDEX)).and_then(|c| c.restore(&mut other));
    if found.is_err() {
        assert_eq!(parameters_of(&other), before);
    }
    fs::remove_dir_all(folder).expect("removed");
    found
}

#[test]
fn an_index_that_is_none_is_refused() {
    for text in [
        "",
        "[]",
        "{",
        "{}",
        "null",
        "not JSON",
        "{\"weight_map\": 1}",
        "{\"weight_map\": null}",
        "{\"weight_map\": []}",
        "{\"weight_map\": {\"a\": 1}}",
        "{\"weight_map\": {\"a\": null}}",
        "{\"weight_map\": {}, \"weight_map\": {}}",
        "{\"weight_map\": {}} and more",
        "\u{feff}{\"weight_map\": {}}",
        &format!("{{\"metadata\": {}", "[".repeat(100_000)),
    ] {
        let found = with_index("none", text);
        assert!(matches!(found, Err(Error::Checkpoint(CheckpointError::Index { .. }))), "{text:.40}: {found:?}");
    }
    // One of the files in its place.
    let folder = folder("shard");
    Snapshot::new(&net(1)).save_sharded(folder.join(INDEX), usize::MAX).expect("saved");
    let text =
        Checkpoint::load_sharded(folder.join("model-00001-of-00001.safetensors")).expect_err("refused").to_string();
    assert!(text.contains("not JSON"), "{text}");
    // And the index in the place of a file.
    let text = Checkpoint::load(folder.join(INDEX)).expect_err("refused").to_string();
    assert!(text.contains("load_sharded"), "{text}");
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn an_index_leads_to_no_other_folder() {
    for file in [
        "../model.safetensors",
        "/etc/passwd",
        "a/b",
        "./model.safetensors",
        "a/..",
        "model.safetensors/",
        "..",
        ".",
        "",
        "a\\b",
        "..\\model.safetensors",
        "C:model.safetensors",
        "model.safetensors:stream",
        "a\0b",
    ] {
        let found = with_index("elsewhere", &serde_json::json!({ "weight_map": { "a": file } }).to_string());
        let Err(Error::Checkpoint(CheckpointError::Index { reason })) = found else { panic!("{file}: {found:?}") };
        assert_eq!(reason, format!("tensor \"a\" is in {file:?}, expected the name of a file beside it"));
    }
}

#[test]
fn what_an_index_promises_is_there_once() {
    let folder = folder("promises");
    let path = folder.join(INDEX);
    Snapshot::new(&net(1)).save_sharded(&path, 300).expect("saved");
    let (good, shards) = (index(&folder), names(&folder));
    let [first, second] = [&shards[0], &shards[1]];
    let load = |index: &serde_json::Value| {
        fs::write(&path, index.to_string()).expect("written");
        Checkpoint::load_sharded(&path).map(|_| ()).expect_err("refused")
    };
    let of = |file: &str| {
        let map = good["weight_map"].as_object().expect("a map");
        map.iter().find(|(_, found)| *found == file).expect("a tensor").0.clone()
    };
    let mut index = good.clone();
    index["weight_map"]["more"] = first[..].into();
    assert_eq!(load(&index), CheckpointError::NotInFile { tensor: "more".into(), file: first.clone() }.into());
    // In the other file.
    let (mut index, moved) = (good.clone(), of(second));
    index["weight_map"][&moved] = first[..].into();
    assert_eq!(load(&index), CheckpointError::NotInFile { tensor: moved, file: first.clone() }.into());
    // A file that is not there.
    let mut index = good.clone();
    index["weight_map"]["more"] = "lost.safetensors".into();
    let Error::Checkpoint(CheckpointError::File { path: found, kind, .. }) = load(&index) else { panic!("no file") };
    assert_eq!((found, kind), (folder.join("lost.safetensors"), ErrorKind::NotFound));
    // A tensor that two files have, which the index does not say.
    fs::copy(folder.join(first), folder.join("copy.safetensors")).expect("copied");
    let mut index = good.clone();
    index["weight_map"][of(first)] = "copy.safetensors".into();
    let Error::Checkpoint(CheckpointError::Duplicate { .. }) = load(&index) else { panic!("no duplicate") };
    // A name twice in the index.
    let twice = good.to_string().replacen(&format!("\"{}\"", of(second)), &format!("\"{}\"", of(first)), 1);
    fs::write(&path, twice).expect("written");
    let found = Checkpoint::load_sharded(&path).map(|_| ());
    assert_eq!(found, Err(CheckpointError::Duplicate { tensor: of(first) }.into()));
    // A file that is cut.
    fs::write(&path, good.to_string()).expect("written");
    let cut = fs::read(folder.join(second)).expect("a file");
    fs::write(folder.join(second), &cut[..cut.len() - 1]).expect("written");
    let found = Checkpoint::load_sharded(&path).map(|_| ());
    assert_eq!(found, Err(CheckpointError::Length { expected: cut.len(), found: cut.len() - 1 }.into()));
    // What the index does not name is not read.
    fs::write(folder.join(second), &cut).expect("written");
    fs::write(folder.join("other.safetensors"), "nothing of ours").expect("written");
    let (mut other, extra) = (net(2), "{\"weight_map\"");
    let text = good.to_string().replacen(extra, &format!("{{\"more\": [1.5e300, {{}}], {}", &extra[1..]), 1);
    fs::write(&path, text).expect("written");
    Checkpoint::load_sharded(&path).and_then(|c| c.restore(&mut other)).expect("restored");
    assert_eq!(parameters_of(&other), parameters_of(&net(1)));
    fs::remove_dir_all(folder).expect("removed");
}

/// As in a cache, where the names lead to files elsewhere.
#[cfg(unix)]
#[test]
fn files_may_be_links() {
    let (folder, mut other) = (folder("links"), net(2));
    let path = folder.join("blobs").join(INDEX);
    fs::create_dir_all(folder.join("blobs")).expect("a folder");
    Snapshot::new(&net(1)).save_sharded(&path, 300).expect("saved");
    for name in names(&folder.join("blobs")) {
        std::os::unix::fs::symlink(Path::new("blobs").join(&name), folder.join(&name)).expect("a link");
    }
    Checkpoint::load_sharded(folder.join(INDEX)).and_then(|c| c.restore(&mut other)).expect("restored");
    assert_eq!(parameters_of(&other), parameters_of(&net(1)));
    fs::remove_dir_all(folder).expect("removed");
}

proptest! {
    #![proptest_config(ProptestConfig { source_file: Some(file!()), ..ProptestConfig::default() })]

    /// Either it loads, and is the network that was saved or lacks some of it, or it is an error.
    #[test]
    fn a_damaged_index_breaks_nothing(
        damages in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..4),
    ) {
        let folder = folder("damage");
        Snapshot::new(&net(1)).save_sharded(folder.join(INDEX), 600).expect("saved");
        let mut text = fs::read(folder.join(INDEX)).expect("a file");
        for (at, kind, byte) in damages {
            let at = at.index(text.len());
            match kind {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                2 => drop(text.remove(at)),
                _ => text.truncate(at.max(1)),
            }
        }
        fs::write(folder.join(INDEX), &text).expect("written");
        let mut other = net(2);
        let before = parameters_of(&other);
        let found = Checkpoint::load_sharded(folder.join(INDEX)).and_then(|c| c.restore(&mut other));
        let want = if found.is_ok() { parameters_of(&net(1)) } else { before };
        prop_assert_eq!(parameters_of(&other), want);
        fs::remove_dir_all(folder).expect("removed");
    }
}
