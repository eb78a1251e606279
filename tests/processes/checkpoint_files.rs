//! Saving to disk is all or nothing: whoever dies, whenever, the file is the old one or the new one, whole.

use crate::common::{self, Rng, Stage};
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
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    let (folder, old, new) = (folder("link"), net(1, 20), net(2, 20));
    let (file, link) = (folder.join("run7.safetensors"), folder.join("latest.safetensors"));
    Snapshot::new(&old).save(&file).expect("saved");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
    symlink("run7.safetensors", &link).expect("a link");
    Snapshot::new(&new).save(&link).expect("saved");
    assert!(fs::symlink_metadata(&link).expect("a link").is_symlink());
    assert_eq!(fs::read(&file).expect("a file"), bytes(&new));
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o640);
    // Only root may give a file away.
    if chown(&file, Some(4321), Some(4322)).is_ok() {
        Snapshot::new(&new).save(&file).expect("saved");
        let found = fs::metadata(&file).expect("a file");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (4321, 4322, 0o640));
    }

    fs::remove_file(&file).expect("removed");
    assert_eq!(kind(Snapshot::new(&new).save(&link), &link), ErrorKind::NotFound, "a link that leads nowhere");
    assert_eq!(names(&folder), ["latest.safetensors"]);
    fs::remove_dir_all(folder).expect("removed");
}

/// Whatever is there and is no regular file stays, by its own path and by a link to it; it is not read either, nor waited for.
#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_neither_replaced_nor_read() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::process::Command;

    let (folder, net) = (folder("kinds"), net(1, 20));
    let _listener = std::os::unix::net::UnixListener::bind(folder.join("socket")).expect("a socket");
    let mut kinds = vec![("socket", "a socket")];
    let mut made = |name: &'static str, kind, command: &str, args: &[&str]| {
        let path = folder.join(name);
        if Command::new(command).arg(&path).args(args).status().is_ok_and(|status| status.success()) {
            kinds.push((name, kind));
        }
    };
    if common::may_start_processes("fifos and devices") {
        made("fifo", "a fifo", "mkfifo", &[]);
        // Only root may; a copy of /dev/null, so that nothing is lost if it is written to.
        made("null", "a character device", "mknod", &["c", "1", "3"]);
        made("block", "a block device", "mknod", &["b", "7", "250"]);
    }
    if fs::metadata("/dev/null").is_ok_and(|found| found.file_type().is_char_device()) {
        symlink("/dev/null", folder.join("link to a device")).expect("a link");
        kinds.push(("link to a device", "a character device"));
    }
    for (name, kind) in kinds {
        let path = folder.join(name);
        let link = folder.join(format!("link to {name}"));
        symlink(&path, &link).expect("a link");
        let before = fs::metadata(&path).expect("a file").file_type();
        for path in [&path, &link] {
            let loaded = Checkpoint::load(path).map(|_| ());
            for refused in [Snapshot::new(&net).save(path), loaded] {
                let text = refused.clone().expect_err("refused").to_string();
                assert!(text.ends_with(&format!("{kind}, not a regular file")), "{text}");
                assert_eq!(self::kind(refused, path), ErrorKind::InvalidInput, "{kind}");
            }
            assert_eq!(fs::metadata(path).expect("a file").file_type(), before, "{kind}");
        }
    }
    let _ = fs::symlink_metadata("/dev/null").inspect(|found| assert!(found.file_type().is_char_device()));
    assert!(names(&folder).iter().all(|name| !name.starts_with('.')), "a refused writer left something behind");
    fs::remove_dir_all(folder).expect("removed");
}

/// A size of 0, as files of the system have it, is not believed.
#[cfg(target_os = "linux")]
#[test]
fn a_file_of_the_system_is_read_to_its_end() {
    let text = Checkpoint::load("/proc/self/cmdline").expect_err("no network").to_string();
    assert!(text.contains("not a safetensors file: it begins with \"/"), "{text}");
    let text = Checkpoint::load("/proc/self/status").expect_err("no network").to_string();
    assert!(text.contains("not a safetensors file: it begins with \"Name:"), "{text}");
}

#[test]
fn files_of_other_formats_are_refused_by_their_first_bytes() {
    let folder = folder("formats");
    let path = folder.join("net.safetensors");
    // Larger than any memory, where the file system has such files.
    let file = fs::File::create(&path).expect("a file");
    let _ = file.set_len(1 << 50);
    std::io::Write::write_all(&mut &file, b"GGUF\x03\0\0\0").expect("written");
    let text = Checkpoint::load(&path).expect_err("no network").to_string();
    assert!(text.contains("not a safetensors file: it begins with \"GGUF") && text.ends_with("(GGUF)"), "{text}");
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n").expect("written");
    let text = Checkpoint::load(&path).expect_err("no network").to_string();
    assert!(text.contains("git lfs pull"), "{text}");
    fs::remove_dir_all(folder).expect("removed");
}

#[cfg(unix)]
#[test]
fn names_are_as_long_as_the_file_system_takes() {
    let (folder, net) = (folder("names"), net(1, 20));
    for len in (1..=255).step_by(23).chain(240..=255) {
        let path = folder.join("n".repeat(len));
        for _ in 0..2 {
            Snapshot::new(&net).save(&path).unwrap_or_else(|error| panic!("{len} bytes: {error}"));
        }
        assert_eq!(fs::read(&path).expect("a file"), bytes(&net));
        fs::remove_file(&path).expect("removed");
    }
    let path = folder.join("ü".repeat(127));
    Snapshot::new(&net).save(&path).expect("saved");
    fs::remove_file(&path).expect("removed");
    let path = folder.join("n".repeat(256));
    let _ = kind(Snapshot::new(&net).save(&path), &path);
    assert!(names(&folder).is_empty(), "a refused writer left something behind");
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn paths_that_name_no_file_are_refused() {
    let (folder, net) = (folder("paths"), net(1, 20));
    let text = folder.to_str().expect("a path");
    fs::write(folder.join("file"), "kept").expect("written");
    for name in ["", "/", ".", "..", "a/", "a/.", "a/..", "a//", "file/", "file/.", "file/a", "./", "a/b/c"] {
        for path in [name.to_string(), format!("{text}/{name}")] {
            let path = Path::new(&path);
            let refused = Snapshot::new(&net).save(path);
            assert!(matches!(refused, Err(Error::Checkpoint(CheckpointError::File { .. }))), "{path:?}: {refused:?}");
        }
    }
    let nul = Path::new("a\0b");
    assert_eq!(kind(Snapshot::new(&net).save(nul), nul), ErrorKind::InvalidInput);
    #[cfg(unix)]
    {
        let (one, other) = (folder.join("one"), folder.join("other"));
        std::os::unix::fs::symlink(&one, &other)
            .and_then(|()| std::os::unix::fs::symlink(&other, &one))
            .expect("links");
        let _ = kind(Snapshot::new(&net).save(&one), &one);
        let _ = kind(Checkpoint::load(&one).map(|_| ()), &one);
        fs::remove_file(&one).and_then(|()| fs::remove_file(&other)).expect("removed");
    }
    assert_eq!(names(&folder), ["file"]);
    assert_eq!(fs::read(folder.join("file")).expect("a file"), b"kept");
    fs::remove_dir_all(folder).expect("removed");
}

/// In the working directory: no folder is named.
#[test]
fn a_bare_name_is_a_path() {
    let (net, name) = (net(1, 20), format!("checkpoint-bare-{}.safetensors", std::process::id()));
    Snapshot::new(&net).save(&name).expect("saved");
    assert_eq!(fs::read(&name).expect("a file"), bytes(&net));
    fs::remove_file(&name).expect("removed");
}

/// File systems that do not do what is asked of them, by a library that is loaded before the C library and fails in its place.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod refusals {
    use super::*;
    use std::process::Command;

    /// Each function fails with the error number in the variable of its name, for a folder and for a file.
    const SHIM: &str = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <errno.h>
        #include <fcntl.h>
        #include <stdarg.h>
        #include <stdlib.h>
        #include <sys/stat.h>

        static int refused(const char *variable) {
            const char *number = getenv(variable);
            if (number) errno = atoi(number);
            return number != 0;
        }
        int fsync(int fd) {
            struct stat found;
            if (fstat(fd, &found)) return -1;
            if (refused(S_ISDIR(found.st_mode) ? "SHIM_SYNC_FOLDER" : "SHIM_SYNC_FILE")) return -1;
            return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
        }
        int fchmod(int fd, mode_t mode) {
            if (refused("SHIM_CHMOD")) return -1;
            return ((int (*)(int, mode_t))dlsym(RTLD_NEXT, "fchmod"))(fd, mode);
        }
        int fchown(int fd, uid_t owner, gid_t group) {
            if (refused("SHIM_CHOWN")) return -1;
            return ((int (*)(int, uid_t, gid_t))dlsym(RTLD_NEXT, "fchown"))(fd, owner, group);
        }
        int open64(const char *path, int flags, ...) {
            va_list more;
            va_start(more, flags);
            mode_t mode = va_arg(more, mode_t);
            va_end(more);
            struct stat found;
            if (!stat(path, &found) && S_ISDIR(found.st_mode) && refused("SHIM_OPEN_FOLDER")) return -1;
            if ((flags & O_TMPFILE) == O_TMPFILE && refused("SHIM_UNNAMED")) return -1;
            return ((int (*)(const char *, int, mode_t))dlsym(RTLD_NEXT, "open64"))(path, flags, mode);
        }
        int linkat(int from, const char *old, int to, const char *path, int flags) {
            if (refused("SHIM_UNNAMED")) return -1;
            return ((int (*)(int, const char *, int, const char *, int))dlsym(RTLD_NEXT, "linkat"))(from, old, to, path, flags);
        }
    "#;

    const SAVE_TO: &str = "RESBLOCK_TEST_SAVE_TO";

    #[test]
    #[ignore = "saves once and tells the outcome: for the test below, in a process of its own"]
    fn saver() {
        let Some(path) = std::env::var_os(SAVE_TO) else { return };
        let outcome = match Snapshot::new(&net(2, 20)).save(path) {
            Ok(()) => "saved".into(),
            Err(Error::Checkpoint(CheckpointError::Unsynced { reason, .. })) => format!("unsynced: {reason}"),
            Err(error) => format!("refused: {error}"),
        };
        println!("outcome: {outcome}.");
    }

    #[test]
    fn what_a_file_system_does_not_do_is_no_failure() {
        const EIO: i32 = 5;
        // EPERM, EBADF, EACCES, EISDIR, EINVAL, ENOTTY, EROFS, ENOSYS, EOPNOTSUPP, ENOTSUPP.
        const REFUSALS: [i32; 10] = [1, 9, 13, 21, 22, 25, 30, 38, 95, 524];
        // EIO, ENOMEM, ENOSPC, ETIMEDOUT, ESTALE, EDQUOT.
        const FAILURES: [i32; 6] = [EIO, 12, 28, 110, 116, 122];

        if !common::may_start_processes("what_a_file_system_does_not_do_is_no_failure") {
            return;
        }
        let (folder, old, new) = (folder("refusals"), bytes(&net(1, 20)), bytes(&net(2, 20)));
        let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
        fs::write(&source, SHIM).expect("written");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
        assert!(compiler.status().expect("a C compiler").success(), "the library was not made");
        let inside = folder.join("inside");
        fs::create_dir(&inside).expect("a folder");
        let path = inside.join("net.safetensors");
        let save = |variable: &str, number: i32| {
            use std::os::unix::fs::PermissionsExt;
            fs::write(&path, &old).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
            // Another's file, if this is root.
            let _ = std::os::unix::fs::chown(&path, Some(4321), Some(4321));
            let output = Command::new(std::env::current_exe().expect("this test"))
                .args(["--ignored", "--exact", "checkpoint_files::refusals::saver", "--quiet", "--nocapture"])
                .env(SAVE_TO, &path)
                .env("LD_PRELOAD", &library)
                .env(variable, number.to_string())
                .output()
                .expect("a process");
            let text = String::from_utf8_lossy(&output.stdout);
            let (_, outcome) = text.split_once("outcome: ").unwrap_or_else(|| panic!("{output:?}"));
            let outcome = outcome.split_once("\n").map_or(outcome, |(line, _)| line).to_string();
            let found = fs::read(&path).expect("a file");
            let kept = if outcome.starts_with("refused") { &old } else { &new };
            let mode = fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
            let private = variable == "SHIM_CHMOD" && outcome == "saved.";
            assert_eq!(mode, if private { 0o600 } else { 0o640 }, "{variable} {number}: {outcome}");
            assert!(found == *kept, "{variable} {number}: {outcome}: another file");
            assert_eq!(names(&inside), ["net.safetensors"], "{variable} {number}: {outcome}: something else was left");
            outcome
        };
        let count = 6 * REFUSALS.len() + 5 * FAILURES.len();
        for number in REFUSALS {
            for variable in ["SHIM_SYNC_FOLDER", "SHIM_OPEN_FOLDER", "SHIM_SYNC_FILE", "SHIM_CHMOD", "SHIM_CHOWN"] {
                assert_eq!(save(variable, number), "saved.", "{variable} {number}");
            }
        }
        for number in REFUSALS.into_iter().chain(FAILURES) {
            assert_eq!(save("SHIM_UNNAMED", number), "saved.", "unnamed temporary files, {number}");
        }
        for number in FAILURES {
            let reason = std::io::Error::from_raw_os_error(number);
            assert_eq!(save("SHIM_SYNC_FOLDER", number), format!("unsynced: {reason}."));
            for variable in ["SHIM_SYNC_FILE", "SHIM_OPEN_FOLDER", "SHIM_CHMOD"] {
                let outcome = save(variable, number);
                assert!(
                    outcome.starts_with("refused") && outcome.contains(&reason.to_string()),
                    "{variable}: {outcome}"
                );
            }
        }
        println!(
            "proof: a saved file is in place or an error says that it is not | each call refused and failed, by a library before the C \
             library | {count} saves | ok"
        );
        fs::remove_dir_all(folder).expect("removed");
    }
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
            .args(["--ignored", "--exact", "checkpoint_files::writer", "--quiet"])
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
