//! The raw numbers.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

/// Ours.
pub(crate) const OURS: &str = "resblock";

/// One measurement.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Row {
    pub(crate) peer: String,
    pub(crate) version: String,
    pub(crate) case: String,
    pub(crate) mode: String,
    pub(crate) act: String,
    pub(crate) threads: usize,
    pub(crate) gflops: f64,
}

/// What is compared: one of the columns of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) mode: &'static str,
    pub(crate) act: &'static str,
    pub(crate) threads: usize,
}

/// The eight kinds.
pub(crate) fn kinds() -> impl Iterator<Item = Kind> {
    let kind = |mode, act| [1, 2].map(|threads| Kind { mode, act, threads });
    [("fwd", "relu"), ("fwd", "gelu"), ("train", "relu"), ("train", "gelu")]
        .into_iter()
        .flat_map(move |(mode, act)| kind(mode, act))
}

/// Ours and the best of the others.
#[derive(Debug)]
pub(crate) struct Duel<'a> {
    pub(crate) ours: f64,
    pub(crate) best: f64,
    pub(crate) peer: &'a str,
}

impl Duel<'_> {
    pub(crate) fn ratio(&self) -> f64 {
        self.ours / self.best
    }
}

pub(crate) struct Race {
    /// How it was measured.
    pub(crate) notes: Vec<(String, String)>,
    pub(crate) rows: Vec<Row>,
    /// Those that ours ran, in the order of the file.
    pub(crate) cases: Vec<String>,
}

impl Race {
    pub(crate) fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let text = fs::read_to_string(path)?;
        let note = |line: &str| {
            let (key, value) = line.strip_prefix("# ")?.split_once(": ")?;
            Some((key.to_owned(), value.to_owned()))
        };
        let notes = text.lines().filter_map(note).collect();
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
        let rows = reader.deserialize().collect::<Result<Vec<Row>, _>>()?;
        let mut cases: Vec<String> = Vec::new();
        for row in rows.iter().filter(|r| r.peer == OURS) {
            if !cases.contains(&row.case) {
                cases.push(row.case.clone());
            }
        }
        Ok(Self { notes, rows, cases })
    }

    /// The number that a note gives.
    pub(crate) fn number(&self, key: &str) -> Result<f64, Box<dyn Error>> {
        let value = self.notes.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let value = value.ok_or_else(|| format!("the CSV has no line `# {key}: ...`"))?;
        Ok(value.split_whitespace().next().unwrap_or(value).parse()?)
    }

    pub(crate) fn of(&self, case: &str, kind: Kind) -> impl Iterator<Item = &Row> {
        self.rows
            .iter()
            .filter(move |r| r.case == case && r.mode == kind.mode && r.act == kind.act && r.threads == kind.threads)
    }

    pub(crate) fn duel(&self, case: &str, kind: Kind) -> Option<Duel<'_>> {
        let ours = self.of(case, kind).find(|r| r.peer == OURS)?.gflops;
        let others = self.of(case, kind).filter(|r| r.peer != OURS);
        let best = others.max_by(|a, b| a.gflops.total_cmp(&b.gflops))?;
        Some(Duel { ours, best: best.gflops, peer: &best.peer })
    }

    /// The others, with their versions.
    pub(crate) fn peers(&self) -> BTreeMap<&str, &str> {
        self.rows.iter().filter(|r| r.peer != OURS).map(|r| (r.peer.as_str(), r.version.as_str())).collect()
    }
}

pub(crate) fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.into_iter().fold((0.0, 0), |(sum, count), v| (sum + v.ln(), count + 1));
    (count > 0).then(|| (sum / f64::from(count)).exp())
}
