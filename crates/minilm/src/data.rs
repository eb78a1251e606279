//! Definitions from WordNet, by what they are of; and numbers that another language draws alike.

use candle_core::{Device, Result, Tensor};
use serde::Serialize;
use std::path::Path;
use tokenizers::Tokenizer;

/// Lexicographer files of WordNet (lexnames(5WN)): the number in data.noun, and what its nouns are.
const CLASSES: [(&str, &str); 12] = [
    ("05", "animal"),
    ("06", "artifact"),
    ("08", "body"),
    ("10", "communication"),
    ("12", "feeling"),
    ("13", "food"),
    ("15", "location"),
    ("18", "person"),
    ("20", "plant"),
    ("23", "quantity"),
    ("27", "substance"),
    ("28", "time"),
];
pub(crate) const CLASS_COUNT: usize = CLASSES.len();

/// A definition: its tokens and its class.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Gloss {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) class: u32,
}

/// Definitions to learn from and, held out, to be tested with.
#[derive(Debug, Serialize)]
pub(crate) struct Glosses {
    pub(crate) train: Vec<Gloss>,
    pub(crate) test: Vec<Gloss>,
}

type Refused = Box<dyn std::error::Error + Send + Sync>;

/// So many of each class, evenly spaced over all definitions of 4 to 20 words; every fourth is held out.
pub(crate) fn glosses(folder: &Path, per_class: usize) -> std::result::Result<Glosses, Refused> {
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))?;
    let text = std::fs::read_to_string(folder.join("data.noun"))?;
    let mut all = Glosses { train: Vec::new(), test: Vec::new() };
    for (class, (number, _)) in CLASSES.iter().enumerate() {
        let of_class = text.lines().filter(|line| line.split(' ').nth(1) == Some(number));
        let definitions: Vec<&str> = of_class
            .filter_map(|line| line.split_once(" | "))
            .map(|(_, gloss)| gloss.split(['"', ';']).next().unwrap_or_default().trim())
            .filter(|gloss| (4..=20).contains(&gloss.split(' ').count()))
            .collect();
        if definitions.is_empty() {
            return Err(format!("data.noun has no definition of class {number}").into());
        }
        for at in 0..per_class {
            let text = definitions[at * definitions.len() / per_class];
            let mut encoding = tokenizer.encode(text, true)?;
            encoding.truncate(64, 0, tokenizers::TruncationDirection::Right);
            let ids = encoding.get_ids()[..encoding.get_attention_mask().iter().sum::<u32>() as usize].to_vec();
            let gloss = Gloss { text: text.into(), ids, class: class as u32 };
            if at % 4 == 3 { all.test.push(gloss) } else { all.train.push(gloss) }
        }
    }
    Ok(all)
}

/// The tokens of sentences, padded to the longest, their mask, and their classes.
pub(crate) fn batch(glosses: &[&Gloss]) -> Result<(Tensor, Tensor, Tensor)> {
    let tokens = glosses.iter().map(|gloss| gloss.ids.len()).max().unwrap_or(0);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for gloss in glosses {
        let padding = tokens - gloss.ids.len();
        ids.extend(gloss.ids.iter().copied().chain(std::iter::repeat_n(0, padding)));
        mask.extend(gloss.ids.iter().map(|_| 1f32).chain(std::iter::repeat_n(0.0, padding)));
    }
    let classes: Vec<u32> = glosses.iter().map(|gloss| gloss.class).collect();
    let (shape, cpu) = ((glosses.len(), tokens), &Device::Cpu);
    Ok((Tensor::from_vec(ids, shape, cpu)?, Tensor::from_vec(mask, shape, cpu)?, Tensor::new(classes, cpu)?))
}

/// SplitMix64 (Steele, Lea, Flood 2014): a few lines in any language.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [-1, 1), of 24 bits.
    pub(crate) fn unit(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1 << 24) as f32).mul_add(2.0, -1.0)
    }

    /// 0 to n - 1 in some order (Fisher and Yates).
    pub(crate) fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        order
    }
}
