//! Saving to disk is all or nothing: whoever dies, whenever, the file is the old one or the new one, whole.

mod common;

use common::{Rng, Stage};
use resblock::{Activation, Checkpoint, CheckpointError, Error, Layer, Linear, Snapshot};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A folder of its own for each test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("checkpoint-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn net(seed: u64, features: usize) -> Linear {
    Stage::linear(&mut Rng::new(seed), features, features, Activation::Relu, true).build_linear()
}

fn bytes(net: &impl Layer) -> Vec<u8> {
    Snapshot::new(net).to_bytes().expect("bytes")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    entries.map(|name| name.into_string().expect("a name")).collect()
}

/// The kind of the error that the file system gave, and whether it is about `path`.
fn kind(result: Result<(), Error>, path: &Path) -> ErrorKind {
    match result {
        Err(Error::Checkpoint(CheckpointError::File { path: found, kind, reason })) => {
            assert_eq!(found, path, "{reason}");
            kind
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_saved_file_holds_the_bytes_of_the_snapshot_and_nothing_else_is_left() {
    let (folder, net) = (folder("saved"), net(1, 20));
    let path = folder.join("net.safetensors");
    for _ in 0..2 {
        Snapshot::new(&net).save(&path).expect("saved");
        assert_eq!(fs::read(&path).expect("a file"), bytes(&net));
        assert_eq!(names(&folder), ["net.safetensors"]);
    }
    let mut other = self::net(2, 20);
    Checkpoint::load(&path).and_then(|c| c.restore(&mut other)).expect("restored");
    assert_eq!(bytes(&other), bytes(&net));
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn what_another_writer_left_behind_does_no_harm() {
    let (folder, old, new) = (folder("left"), net(1, 20), net(2, 20));
    let path = folder.join("net.safetensors");
    Snapshot::new(&old).save(&path).expect("saved");
    let left = [".net.safetensors", ".net.safetensors.a", ".net.safetensors.XXXXXX", "net.safetensors.tmp"];
    for name in left {
        fs::write(folder.join(name), &bytes(&new)[..100]).expect("written");
    }
    assert_eq!(fs::read(&path).expect("a file"), bytes(&old));
    Snapshot::new(&new).save(&path).expect("saved");
    assert_eq!(fs::read(&path).expect("a file"), bytes(&new));
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn files_that_cannot_be_written_or_read_are_typed_errors() {
    let (folder, mut net) = (folder("errors"), net(1, 20));
    let before = bytes(&net);
    let mut load = |path: &Path| Checkpoint::load(path).and_then(|c| c.restore(&mut net));
    let nowhere = folder.join("nowhere/net.safetensors");
    assert_eq!(kind(load(&nowhere), &nowhere), ErrorKind::NotFound);
    let _ = kind(load(&folder), &folder);
    let empty = folder.join("empty");
    fs::write(&empty, []).expect("written");
    assert_eq!(load(&empty), Err(CheckpointError::Length { expected: 8, found: 0 }.into()));
    // A file without an end.
    #[cfg(unix)]
    assert_eq!(load(Path::new("/dev/zero")), Err(CheckpointError::Length { expected: 8, found: 0 }.into()));
    assert_eq!(bytes(&net), before);

    assert_eq!(kind(Snapshot::new(&net).save(&nowhere), &nowhere), ErrorKind::NotFound);
    let inside = folder.join("folder");
    fs::create_dir(&inside).expect("a folder");
    assert_eq!(kind(Snapshot::new(&net).save(&inside), &inside), ErrorKind::IsADirectory);
    let mut left = names(&folder);
    left.sort();
    assert_eq!(left, ["empty", "folder"], "a refused writer left something behind");
    fs::remove_dir_all(folder).expect("removed");
}

#[cfg(unix)]
#[test]
fn a_link_stays_a_link_and_permissions_stay_what_they_were() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let (folder, old, new) = (folder("link"), net(1, 20), net(2, 20));
    let (file, link) = (folder.join("run7.safetensors"), folder.join("latest.safetensors"));
    Snapshot::new(&old).save(&file).expect("saved");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
    symlink("run7.safetensors", &link).expect("a link");
    Snapshot::new(&new).save(&link).expect("saved");
    assert!(fs::symlink_metadata(&link).expect("a link").is_symlink());
    assert_eq!(fs::read(&file).expect("a file"), bytes(&new));
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o640);

    fs::remove_file(&file).expect("removed");
    assert_eq!(kind(Snapshot::new(&new).save(&link), &link), ErrorKind::NotFound, "a link that leads nowhere");
    assert_eq!(names(&folder), ["latest.safetensors"]);
    fs::remove_dir_all(folder).expect("removed");
}

/// That `path` holds one of `nets`, whole.
fn assert_whole(path: &Path, nets: &[Vec<u8>; 2]) {
    let found = fs::read(path).expect("a file");
    assert!(nets.contains(&found), "neither the old file nor the new one: {} bytes", found.len());
}

/// Two nets that a writer saves by turns.
fn nets() -> [Linear; 2] {
    [net(1, 300), net(2, 300)]
}

#[test]
fn readers_never_see_half_a_file() {
    let folder = folder("readers");
    let (path, nets, done) = (folder.join("net.safetensors"), nets(), AtomicBool::new(false));
    let both = nets.each_ref().map(bytes);
    Snapshot::new(&nets[1]).save(&path).expect("saved");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_whole(&path, &both);
                Checkpoint::load(&path).and_then(|c| c.restore(&mut net(3, 300))).expect("restored");
            }
        });
        for _ in 0..30 {
            for net in &nets {
                Snapshot::new(net).save(&path).expect("saved");
            }
        }
        done.store(true, Ordering::Relaxed);
        reader.join().expect("a reader that saw whole files only");
    });
    fs::remove_dir_all(folder).expect("removed");
}

/// Where the process started by the test below is to write.
const WRITE_TO: &str = "RESBLOCK_TEST_WRITE_TO";

#[test]
#[ignore = "saves without end: for `a_killed_writer_leaves_a_whole_file`, in a process of its own"]
fn writer() {
    let Some(path) = std::env::var_os(WRITE_TO) else { return };
    for net in nets().iter().cycle() {
        Snapshot::new(net).save(&path).expect("saved");
    }
}

/// `RESBLOCK_KILLS` sets how many.
#[test]
fn a_killed_writer_leaves_a_whole_file() {
    if !common::may_start_processes("a_killed_writer_leaves_a_whole_file") {
        return;
    }
    let (folder, both, mut rng) = (folder("killed"), nets().each_ref().map(bytes), Rng::new(1));
    let path = folder.join("net.safetensors");
    Snapshot::new(&nets()[1]).save(&path).expect("saved");
    let kills = common::kills(10);
    for _ in 0..kills {
        let old = fs::metadata(&path).and_then(|m| m.modified()).expect("a time");
        let mut child = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--ignored", "--exact", "writer", "--quiet"])
            .env(WRITE_TO, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("a process");
        // In the middle of its work, not before it begins.
        let patience = Instant::now();
        while fs::metadata(&path).and_then(|m| m.modified()).expect("a time") == old {
            assert!(patience.elapsed() < Duration::from_secs(300), "the writer does not write");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(rng.below(20_000) as u64));
        child.kill().expect("killed");
        assert!(!child.wait().expect("ended").success());
        assert_whole(&path, &both);
    }
    println!(
        "proof: a file is saved whole or not at all | a process that saves without end, killed at random moments | \
         {kills} kills | ok"
    );
    fs::remove_dir_all(folder).expect("removed");
}
