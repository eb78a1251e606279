//! Files: regular ones are written whole or not at all, and read to their end. No other kind is touched.

use super::foreign::BEGINNING;
use crate::error::Error;
use crate::error::checkpoint::CheckpointError;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// All bytes of a file, as soon as `check` lets its first ones pass. Its size is not believed: that of a file in `/proc` is 0.
pub(super) fn read(path: &Path, check: impl Fn(&[u8]) -> Result<(), CheckpointError>) -> Result<Vec<u8>, Error> {
    let refused = |e: io::Error| CheckpointError::file(path, &e);
    // Before it is opened: a fifo waits for a writer, and a device may do anything.
    regular(&fs::metadata(path).map_err(refused)?).map_err(refused)?;
    let mut file = File::open(path).map_err(refused)?;
    let mut bytes = Vec::new();
    (&file).take(BEGINNING as u64).read_to_end(&mut bytes).map_err(refused)?;
    check(&bytes)?;
    let len = usize::try_from(file.metadata().map_err(refused)?.len()).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(len.saturating_sub(bytes.len())).map_err(|_| Error::Memory { bytes: len })?;
    file.read_to_end(&mut bytes).map_err(refused)?;
    Ok(bytes)
}

/// That this is a regular file.
fn regular(found: &Metadata) -> io::Result<()> {
    match found.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => Err(ErrorKind::IsADirectory.into()),
        kind => Err(io::Error::new(ErrorKind::InvalidInput, format!("{}, not a regular file", name(kind)))),
    }
}

#[cfg(unix)]
fn name(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        _ if kind.is_fifo() => "a fifo",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_char_device() => "a character device",
        _ if kind.is_block_device() => "a block device",
        _ => "something else",
    }
}

#[cfg(not(unix))]
fn name(_: FileType) -> &'static str {
    "something else"
}

/// The regular file that is at `path`, if there is anything.
fn existing(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(found) => regular(&found).map(|()| Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The file to be replaced or made: where a link leads, else the path itself.
fn destination(path: &Path) -> io::Result<PathBuf> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        return fs::canonicalize(path); // an error if it leads nowhere
    }
    let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no name of a file"))?;
    // `Path` does not see the end of "net/" and "net/.", which name a folder.
    if path.as_os_str().as_encoded_bytes().ends_with(name.as_encoded_bytes()) {
        Ok(path.to_path_buf())
    } else {
        Err(ErrorKind::IsADirectory.into())
    }
}

/// Puts `bytes` in the place of what `path` holds, through a temporary file in the same folder.
#[cfg(any(unix, windows))]
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    use std::io::Write;

    let write = || {
        let old = existing(path)?;
        let path = destination(path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let to_sync = open_folder(folder)?;
        let mut builder = tempfile::Builder::new();
        // The same length whatever the file is called, so that its name may be the longest that the file system takes.
        builder.prefix(".resblock-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Nobody else reads it before it has the old file's permissions. A new file gets what the process does not mask out.
            let mode = if old.is_some() { 0o600 } else { 0o666 };
            builder.permissions(fs::Permissions::from_mode(mode));
        }
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        if let Some(old) = old {
            pass_on(&old, file.as_file())?;
        }
        unless_refused(file.as_file().sync_all())?;
        file.persist(&path).map_err(|e| e.error)?;
        Ok(to_sync)
    };
    match write().map_err(|e| CheckpointError::file(path, &e))? {
        Some(folder) => unless_refused(folder.sync_all()).map_err(|e| CheckpointError::unsynced(path, &e)),
        None => Ok(()),
    }
}

#[cfg(not(any(unix, windows)))]
pub(super) fn replace(path: &Path, _: &[u8]) -> Result<(), CheckpointError> {
    let refused = existing(path).and_then(|_| destination(path)).and(Err(ErrorKind::Unsupported.into()));
    refused.map_err(|e: io::Error| CheckpointError::file(path, &e))
}

/// The folder, to be synced; none where there is no such thing, or where it may be written but not opened.
#[cfg(any(unix, windows))]
fn open_folder(folder: &Path) -> io::Result<Option<File>> {
    if !cfg!(unix) {
        return Ok(None);
    }
    match File::open(folder) {
        Ok(folder) => Ok(Some(folder)),
        Err(e) => unless_refused(Err(e)).map(|()| None),
    }
}

/// Gives `file` the owner and the permissions of `old`, as far as this process may and the file system knows any.
#[cfg(any(unix, windows))]
fn pass_on(old: &Metadata, file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            unless_refused(fchown(file, Some(old.uid()), Some(old.gid())))?;
        }
        if new.mode() != old.mode() {
            unless_refused(file.set_permissions(old.permissions()))?;
        }
    }
    let _ = (old, file);
    Ok(())
}

/// What a file system says that does not do such a thing, or lets this process not do it, is no failure; what it says that has tried
/// and failed is one. Of a folder's sync many say it, each in its way: EINVAL, EROFS (fsync(2)), ENOSYS, EOPNOTSUPP, EBADF and, as
/// PostgreSQL's `fsync_fname` knows, EACCES and EISDIR.
#[cfg(any(unix, windows))]
fn unless_refused(result: io::Result<()>) -> io::Result<()> {
    // Without a name in std: EBADF and ENOTTY everywhere, ENOTSUPP of Linux.
    const OTHERS: [i32; 3] = [9, 25, 524];
    let refused = |e: &io::Error| match e.kind() {
        ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::PermissionDenied => true,
        ErrorKind::ReadOnlyFilesystem | ErrorKind::IsADirectory => true,
        _ => cfg!(unix) && e.raw_os_error().is_some_and(|code| OTHERS.contains(&code)),
    };
    result.or_else(|e| if refused(&e) { Ok(()) } else { Err(e) })
}
