//! Tables: read, checked, split and scaled.

use flate2::read::GzDecoder;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use resblock::{Error, MatRef, rows_of};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// In the binary, so that the example runs from any folder.
const DIGITS: &[u8] = include_bytes!("../data/digits.csv.gz");
/// The split is part of the data set: it does not change with the seed of a network.
const SPLIT_SEED: u64 = 1797;

/// What can be wrong with a table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    #[error("{0}")]
    File(#[from] std::io::Error),
    #[error("{0}")]
    Csv(#[from] csv::Error),
    #[error("no column {0:?}")]
    Label(String),
    #[error("row {row}, column {column}: {value:?} is no finite number")]
    Value { row: usize, column: usize, value: String },
    #[error("a table of {rows} rows and {features} features with {classes} labels is nothing to learn from")]
    Empty { rows: usize, features: usize, classes: usize },
}

/// Rows of features, and the class of each.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    values: Vec<f32>,
    labels: Vec<usize>,
    features: usize,
    classes: usize,
}

impl Table {
    /// The handwritten digits.
    pub(crate) fn digits() -> Result<Self, DataError> {
        Self::read(GzDecoder::new(DIGITS), false, None)
    }

    /// CSV with a header.
    pub(crate) fn open(path: &Path, label: Option<&str>) -> Result<Self, DataError> {
        Self::read(File::open(path)?, true, label)
    }

    /// Labels are any text; classes are numbered in the order of it. The other columns are numbers.
    fn read(text: impl Read, header: bool, label: Option<&str>) -> Result<Self, DataError> {
        let mut reader = csv::ReaderBuilder::new().has_headers(header).from_reader(text);
        let at = match label {
            None => None,
            Some(name) => {
                let found = reader.headers()?.iter().position(|column| column == name);
                Some(found.ok_or_else(|| DataError::Label(name.into()))?)
            }
        };
        let (mut values, mut names) = (Vec::new(), Vec::new());
        for (row, record) in reader.records().enumerate() {
            let record = record?;
            let at = at.unwrap_or(record.len().saturating_sub(1));
            for (column, text) in record.iter().enumerate() {
                if column == at {
                    names.push(text.to_owned());
                    continue;
                }
                let value = text.trim().parse().ok().filter(|value: &f32| value.is_finite());
                values.push(value.ok_or_else(|| DataError::Value { row, column, value: text.into() })?);
            }
        }
        let classes: BTreeSet<&String> = names.iter().collect();
        let number = |name: &String| classes.iter().take_while(|class| **class < name).count();
        let labels: Vec<usize> = names.iter().map(number).collect();
        let (rows, classes) = (labels.len(), classes.len());
        let features = values.len().checked_div(rows).unwrap_or(0);
        if rows < 8 || features == 0 || classes < 2 {
            return Err(DataError::Empty { rows, features, classes });
        }
        Ok(Self { values, labels, features, classes })
    }

    pub(crate) fn features(&self) -> usize {
        self.features
    }

    pub(crate) fn classes(&self) -> usize {
        self.classes
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.features..][..self.features]
    }

    pub(crate) fn labels(&self) -> &[usize] {
        &self.labels
    }

    pub(crate) fn matrix(&self) -> Result<MatRef<'_>, Error> {
        rows_of(&self.values, self.features)
    }

    fn select(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&i| self.row(i).iter().copied()).collect();
        Self { values, labels: rows.iter().map(|&i| self.labels[i]).collect(), ..*self }
    }

    /// Holds out a quarter. Features are centred and divided by their deviation over the other rows; one that is always the same becomes 0.
    pub(crate) fn split(&self) -> Split {
        let mut rows: Vec<usize> = (0..self.len()).collect();
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(SPLIT_SEED));
        let (held_out, train) = rows.split_at(rows.len() / 4);
        let (mut train, mut held_out) = (self.select(train), self.select(held_out));
        for j in 0..self.features {
            let column = || train.values.iter().skip(j).step_by(self.features).map(|&v| f64::from(v));
            let mean = column().sum::<f64>() / train.len() as f64;
            let deviation = (column().map(|v| (v - mean) * (v - mean)).sum::<f64>() / train.len() as f64).sqrt();
            let factor = if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
            for set in [&mut train, &mut held_out] {
                let column = set.values.iter_mut().skip(j).step_by(self.features);
                column.for_each(|v| *v = ((f64::from(*v) - mean) * factor) as f32);
            }
        }
        Split { train, held_out }
    }
}

/// What networks learn from, and what they are measured on.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    pub(crate) train: Table,
    pub(crate) held_out: Table,
}
