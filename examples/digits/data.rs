//! The digits: read, checked, split and scaled.

use flate2::read::GzDecoder;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use resblock::{Error, MatRef};
use std::io::Read;

/// Pixels of an image.
pub(crate) const PIXELS: usize = 8 * 8;
/// Digits.
pub(crate) const CLASSES: usize = 10;
const ROWS: usize = 1797;
const BRIGHTEST: u8 = 16;

/// Bytes: a row of three digits and a comma for each field takes 260, and there are 1797.
const LONGEST_TEXT: u64 = 1 << 20;

/// In the binary, so that the example runs from any folder.
const ARCHIVE: &[u8] = include_bytes!("../data/digits.csv.gz");

/// The split is part of the data set: it must not change with the seed of a net.
const SPLIT_SEED: u64 = 1797;

/// What can be wrong with the data.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    /// Not gzip, not CSV, rows of several lengths, or a field that is no small integer.
    #[error("digits.csv.gz: {0}")]
    Csv(#[from] csv::Error),
    #[error("digits.csv.gz, row {row}: expected {} fields, found {found}", PIXELS + 1)]
    Fields { row: usize, found: usize },
    #[error("digits.csv.gz, row {row}, column {column}: {value} is above {max}")]
    Value { row: usize, column: usize, value: u8, max: u8 },
    #[error("digits.csv.gz: expected {ROWS} rows, found {0}")]
    Rows(usize),
    #[error("digits.csv.gz: more than {ROWS} rows")]
    TooMany,
    #[error("digits.csv.gz: no row is a {0}")]
    Class(usize),
}

/// Images, one a row, and what they show.
#[derive(Debug, Clone, Default)]
pub(crate) struct Digits {
    pixels: Vec<f32>,
    labels: Vec<usize>,
}

impl Digits {
    /// Reads gzipped CSV, as [`Digits::parse`] does.
    pub(crate) fn read(archive: impl Read) -> Result<Self, DataError> {
        Self::parse(GzDecoder::new(archive))
    }

    /// Reads and checks CSV without a header: 64 pixels of 0 to 16 and a label of 0 to 9 in each row.
    pub(crate) fn parse(text: impl Read) -> Result<Self, DataError> {
        let mut digits = Self::default();
        // A few bytes of gzip can stand for gigabytes: neither a long text nor a long line of it may fill the memory.
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.take(LONGEST_TEXT));
        for (row, record) in reader.deserialize::<Vec<u8>>().enumerate() {
            let record = record?;
            if row == ROWS {
                return Err(DataError::TooMany);
            }
            let Some((&label, pixels)) = record.split_last().filter(|(_, pixels)| pixels.len() == PIXELS) else {
                return Err(DataError::Fields { row, found: record.len() });
            };
            if let Some(column) = pixels.iter().position(|&p| p > BRIGHTEST) {
                return Err(DataError::Value { row, column, value: pixels[column], max: BRIGHTEST });
            }
            if usize::from(label) >= CLASSES {
                return Err(DataError::Value { row, column: PIXELS, value: label, max: CLASSES as u8 - 1 });
            }
            digits.push(pixels.iter().map(|&p| f32::from(p)), label.into());
        }
        if digits.len() != ROWS {
            return Err(DataError::Rows(digits.len()));
        }
        if let Some(missing) = (0..CLASSES).find(|class| !digits.labels.contains(class)) {
            return Err(DataError::Class(missing));
        }
        Ok(digits)
    }

    fn push(&mut self, pixels: impl IntoIterator<Item = f32>, label: usize) {
        self.pixels.extend(pixels);
        self.labels.push(label);
    }

    /// Number of images.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Image `i`.
    pub(crate) fn image(&self, i: usize) -> &[f32] {
        &self.pixels[i * PIXELS..][..PIXELS]
    }

    /// What the images show.
    pub(crate) fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// All images, a row each.
    pub(crate) fn matrix(&self) -> Result<MatRef<'_>, Error> {
        MatRef::new(&self.pixels, self.len(), PIXELS)
    }

    fn select(&self, rows: &[usize]) -> Self {
        let mut chosen = Self::default();
        for &i in rows {
            chosen.push(self.image(i).iter().copied(), self.labels[i]);
        }
        chosen
    }
}

/// What nets learn from, and what they are measured on.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    pub(crate) train: Digits,
    pub(crate) held_out: Digits,
}

impl Split {
    /// Reads the digits and holds out a quarter, the same one always. With `validate`, that quarter is set aside unseen, and a
    /// fifth of the rest is held out in its place.
    pub(crate) fn load(validate: bool) -> Result<Self, DataError> {
        let digits = Digits::read(ARCHIVE)?;
        let mut rows: Vec<usize> = (0..digits.len()).collect();
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(SPLIT_SEED));
        let (mut held_out, mut train) = rows.split_at(rows.len() / 4);
        if validate {
            (held_out, train) = train.split_at(train.len() / 5);
        }
        let mut split = Self { train: digits.select(train), held_out: digits.select(held_out) };
        split.scale();
        Ok(split)
    }

    /// Centres each pixel and divides all by one number, so that they have variance 1 on average. (Dividing each by its own
    /// deviation would blow up pixels near the border, which are almost never lit.) Held-out images have no say in either.
    fn scale(&mut self) {
        let n = self.train.len() as f64;
        let mut mean = [0.0f64; PIXELS];
        for image in self.train.pixels.chunks_exact(PIXELS) {
            mean.iter_mut().zip(image).for_each(|(m, &p)| *m += f64::from(p) / n);
        }
        let squares = self
            .train
            .pixels
            .chunks_exact(PIXELS)
            .flat_map(|image| image.iter().zip(&mean).map(|(&p, m)| (f64::from(p) - m) * (f64::from(p) - m)));
        let deviation = (squares.sum::<f64>() / (n * PIXELS as f64)).sqrt();
        for set in [&mut self.train, &mut self.held_out] {
            for image in set.pixels.chunks_exact_mut(PIXELS) {
                image.iter_mut().zip(&mean).for_each(|(p, m)| *p = ((f64::from(*p) - m) / deviation) as f32);
            }
        }
    }
}
