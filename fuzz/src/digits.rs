//! The digits file: bytes that are no gzip, gzip that is no CSV, CSV that is no digits, and the real file with faults in it. The
//! parser gives an error or 1797 images within their ranges, the ones that the text holds.

use crate::data::{CLASSES, Digits, PIXELS};
use arbitrary::Arbitrary;
use flate2::read::GzDecoder;
use std::io::Read;
use std::sync::OnceLock;

#[derive(Debug, Arbitrary)]
pub enum Case {
    Archive(Vec<u8>),
    Text(Vec<u8>),
    /// The real text with other bytes at some places, bytes put in or taken out, and cut off somewhere.
    Edited {
        edits: Vec<Edit>,
        cut: Option<u32>,
    },
    /// The real archive with other bytes at some places.
    Damaged(Vec<(u16, u8)>),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Edit {
    Replace(u32, u8),
    Insert(u32, u8),
    Remove(u32, u8),
    Repeat(u32, u16),
}

const ARCHIVE: &[u8] = include_bytes!("../../examples/data/digits.csv.gz");

fn text() -> &'static [u8] {
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut text = Vec::new();
        GzDecoder::new(ARCHIVE).read_to_end(&mut text).expect("the archive of the example");
        text
    })
}

pub fn run(case: &Case) {
    match case {
        Case::Archive(bytes) => check(Digits::read(&bytes[..]).ok(), None),
        Case::Text(bytes) => check(Digits::parse(&bytes[..]).ok(), Some(bytes)),
        Case::Edited { edits, cut } => {
            let mut text = text().to_vec();
            for edit in edits.iter().take(16) {
                edit.apply(&mut text);
            }
            if let Some(cut) = cut {
                text.truncate(*cut as usize % (text.len() + 1));
            }
            check(Digits::parse(&text[..]).ok(), Some(&text));
        }
        Case::Damaged(places) => {
            let mut archive = ARCHIVE.to_vec();
            for &(at, byte) in places {
                let at = usize::from(at) % archive.len();
                archive[at] = byte;
            }
            check(Digits::read(&archive[..]).ok(), None);
        }
    }
}

impl Edit {
    fn apply(self, text: &mut Vec<u8>) {
        let (Edit::Replace(at, _) | Edit::Insert(at, _) | Edit::Remove(at, _) | Edit::Repeat(at, _)) = self;
        let at = at as usize % text.len().max(1);
        let range = |count: usize, len: usize| at..(at + count).min(len);
        match self {
            _ if text.is_empty() => {}
            Edit::Replace(_, byte) => text[at] = byte,
            Edit::Insert(_, byte) => text.insert(at, byte),
            Edit::Remove(_, count) => drop(text.drain(range(count.into(), text.len()))),
            Edit::Repeat(_, count) => {
                let again = text[range(count.into(), text.len())].to_vec();
                text.splice(at..at, again);
            }
        }
    }
}

/// What was accepted is within its ranges, and what a plain reading of the text gives, if the text is plain: digits, commas
/// and line feeds.
fn check(digits: Option<Digits>, text: Option<&[u8]>) {
    let plain = text.filter(|text| text.iter().all(|b| b.is_ascii_digit() || b",\n".contains(b)));
    let naive = plain.and_then(naive);
    if let Some(digits) = &digits {
        assert_eq!(digits.len(), 1797);
        assert!(digits.labels().iter().all(|&label| label < CLASSES));
        assert!((0..CLASSES).all(|class| digits.labels().contains(&class)));
        assert!((0..digits.len()).all(|i| digits.image(i).iter().all(|p| (0.0..=16.0).contains(p))));
    }
    if plain.is_some() {
        let found = digits.map(|d| (0..d.len()).map(|i| (d.image(i).to_vec(), d.labels()[i])).collect::<Vec<_>>());
        assert!(found == naive, "accepted {}, expected {}", found.is_some(), naive.is_some());
    }
}

/// Images and labels of a plain text, or none if anything is wrong with it.
fn naive(text: &[u8]) -> Option<Vec<(Vec<f32>, usize)>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut rows = Vec::new();
    for line in text.split('\n').filter(|line| !line.is_empty()) {
        let fields: Vec<u8> = line.split(',').map(|field| field.parse().ok()).collect::<Option<_>>()?;
        let (&label, pixels) = fields.split_last()?;
        if pixels.len() != PIXELS || pixels.iter().any(|&p| p > 16) || usize::from(label) >= CLASSES {
            return None;
        }
        rows.push((pixels.iter().map(|&p| f32::from(p)).collect(), label.into()));
    }
    let complete = rows.len() == 1797 && (0..CLASSES).all(|class| rows.iter().any(|&(_, label)| label == class));
    complete.then_some(rows)
}
