//! Files of other formats, told by their first bytes before anything else in them is believed.

use crate::error::checkpoint::CheckpointError;

/// As many bytes as are looked at.
pub(super) const BEGINNING: usize = 64;

/// Most bytes of a header that the format allows.
pub(super) const LONGEST_HEADER: u64 = 100_000_000;

/// What files of other formats begin with.
const FORMATS: [(&[u8], &str); 18] = [
    (b"version https://git-lfs", "a git-lfs pointer: `git lfs pull` fetches the file that it stands for"),
    (b"PK\x03\x04", "a zip archive, as PyTorch's files are"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"GGUF", "GGUF"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ\0", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard"),
    (b"<", "HTML or XML"),
    (b"{", "JSON, as the index of a network in several files is, for `Checkpoint::load_sharded`"),
    (b"[", "JSON"),
    (&[0; 8], "zeros"),
];

fn format(start: &[u8]) -> Option<&'static str> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    FORMATS.iter().find(|(magic, _)| start.starts_with(magic) || text.starts_with(magic)).map(|&(_, name)| name)
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

/// Refuses what does not begin as a safetensors file does: 8 bytes of length, then `{`, perhaps after white space. A length that the
/// format does not allow is believed to be one, wrong, only if these bytes are nothing else that is known. `start` is the first
/// [`BEGINNING`] bytes, or all that there are.
pub(super) fn check(start: &[u8]) -> Result<(), CheckpointError> {
    let start = &start[..start.len().min(BEGINNING)];
    let (len, rest) = start.split_at(start.len().min(8));
    let mut bytes = [0; 8];
    bytes[..len.len()].copy_from_slice(len);
    let length = u64::from_le_bytes(bytes);
    let plausible = length <= LONGEST_HEADER || !(is_text(len) || format(start).is_some());
    let can_be = match rest.trim_ascii_start().first() {
        Some(first) => plausible && *first == b'{',
        None => plausible && (length > 0 || len.len() < 8),
    };
    if can_be {
        return Ok(());
    }
    let begins = start[..start.len().min(32)].escape_ascii();
    let format = format(start).map(|name| format!(" ({name})")).unwrap_or_default();
    let reason = format!("this is not a safetensors file: it begins with \"{begins}\"{format}");
    Err(CheckpointError::Header { reason })
}
