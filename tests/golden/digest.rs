//! Digests of bits, and the file that holds them.

use crate::common::problem::Trained;
use crate::common::{MapGrad, family};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Where the digests are kept. Lines are `configuration: name=digest ...`; those that begin with # are remarks.
pub(super) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/digests.txt");
pub(super) const FILE: &str = include_str!("digests.txt");

/// The first 64 bits of SHA-256 over little-endian values, in hexadecimal.
pub(super) fn of_bytes(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of f32 bits. Every NaN counts as the one NaN: which one it is, is not promised.
pub(super) fn of<'a>(values: impl IntoIterator<Item = &'a f32>) -> String {
    let canonical = |&v: &f32| if v.is_nan() { f32::NAN } else { v };
    of_bytes(&values.into_iter().flat_map(|v| canonical(v).to_le_bytes()).collect::<Vec<u8>>())
}

/// The digests of one configuration: gradients from zero, and those that go on from other values.
pub(super) fn line(fresh: &Trained, accumulated: &Trained) -> String {
    let dw = of(fresh.grads.iter().flat_map(|g| &g.dw));
    let db = of(fresh.grads.iter().flat_map(|g| &g.db));
    let both = of(accumulated.grads.iter().flat_map(|MapGrad { dw, db }| dw.iter().chain(db)));
    format!("y={} dx={} dw={dw} db={db} accumulated={both}", of(&fresh.y), of(&fresh.dx))
}

/// The digests of a block of any form.
pub(super) fn family_line(fresh: &family::Trained, accumulated: &family::Trained) -> String {
    let grads = [fresh, accumulated].map(|trained| of(&family::flat(&trained.grads)));
    format!("y={} dx={} grads={} accumulated={}", of(&fresh.y), of(&fresh.dx), grads[0], grads[1])
}

/// What is checked in: configuration and digests.
pub(super) fn checked_in() -> BTreeMap<&'static str, &'static str> {
    let lines = FILE.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(": ").expect("configuration: digests")).collect()
}
