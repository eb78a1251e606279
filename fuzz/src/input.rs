//! The pieces that cases are made of: sizes at edges and extremes, floats of every kind, places of a matrix in a slice.

use crate::common::{EDGES, Layout, Rng};
use arbitrary::{Arbitrary, Result, Unstructured};
use resblock::Activation;

/// A size, a stride or an index: mostly small, else anything, with the neighbours of powers of two and of the largest before all.
#[derive(Debug, Clone, Copy)]
pub struct Extent(pub usize);

impl Arbitrary<'_> for Extent {
    fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        let near = usize::from(u8::arbitrary(u)?);
        Ok(Self(match u.int_in_range(0..=15)? {
            0 => usize::MAX - near,
            1 => (isize::MAX as usize / 4).wrapping_add(near) - 128,
            2 => (1usize << (near % usize::BITS as usize)).wrapping_add(usize::arbitrary(u)? % 5).wrapping_sub(2),
            3 => usize::arbitrary(u)?,
            4..=7 => near,
            _ => near % 20,
        }))
    }
}

/// A width or a number of rows of a small matrix, often at the edge of a vector, a panel or a tile.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub usize);

impl Arbitrary<'_> for Size {
    fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        let byte = usize::from(u8::arbitrary(u)?);
        Ok(Self(EDGES.get(byte).copied().unwrap_or(byte % 50)))
    }
}

/// Numbers: ordinary ones of a seed, values that must propagate as IEEE 754 says strewn in, and any bits at any places.
#[derive(Debug, Clone, Arbitrary)]
pub struct Values {
    seed: u64,
    /// One in so many is special; 0: none is.
    rarity: u8,
    bits: Vec<(u16, u32)>,
}

impl Values {
    /// `len` numbers, others for each `stream`.
    pub(crate) fn fill(&self, stream: u64, len: usize) -> Vec<f32> {
        let mut rng = Rng::new(self.seed ^ (stream << 32));
        let mut values = match self.rarity {
            0 => rng.vec(len),
            rarity => rng.wild(len, rarity.into()),
        };
        for (i, &(at, bits)) in self.bits.iter().enumerate().take(len) {
            // The streams take turns, so that each can get the strange number that another must not have.
            if i as u64 % 8 == stream % 8 {
                values[usize::from(at) % len] = f32::from_bits(bits);
            }
        }
        values
    }
}

/// A number to be used as a setting: usual ones, special ones, any bits.
#[derive(Debug, Clone, Copy)]
pub struct Number(pub f32);

impl Arbitrary<'_> for Number {
    fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        const OFTEN: [f32; 12] =
            [0.0, -0.0, 1.0, 0.9, 0.999, 0.01, 1e-3, 1e-8, -1.0, f32::INFINITY, f32::NAN, f32::from_bits(1)];
        let choice = usize::from(u8::arbitrary(u)? % 16);
        OFTEN.get(choice).map_or_else(|| u32::arbitrary(u).map(|bits| Self(f32::from_bits(bits))), |&x| Ok(Self(x)))
    }
}

/// An activation, with any slope.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Phi {
    Identity,
    Relu,
    LeakyRelu(Number),
    Gelu,
    GeluTanh,
    Silu,
    Tanh,
    Sigmoid,
    ReluSquared,
    SiluBeta(Number),
    Mish,
    Hardswish,
    Elu(Number),
    Softplus,
}

impl From<Phi> for Activation {
    fn from(phi: Phi) -> Self {
        match phi {
            Phi::Identity => Activation::Identity,
            Phi::Relu => Activation::Relu,
            Phi::LeakyRelu(slope) => Activation::LeakyRelu(slope.0),
            Phi::Gelu => Activation::Gelu,
            Phi::GeluTanh => Activation::GeluTanh,
            Phi::Silu => Activation::Silu,
            Phi::Tanh => Activation::Tanh,
            Phi::Sigmoid => Activation::Sigmoid,
            Phi::ReluSquared => Activation::ReluSquared,
            Phi::SiluBeta(beta) => Activation::SiluBeta(beta.0),
            Phi::Mish => Activation::Mish,
            Phi::Hardswish => Activation::Hardswish,
            Phi::Elu(alpha) => Activation::Elu(alpha.0),
            Phi::Softplus => Activation::Softplus,
        }
    }
}

/// Where a matrix lies: with which strides, and how far from the start of its memory. Without any room before and after, the
/// address sanitizer sees every access outside.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Place {
    kind: u8,
    gap: u8,
    margin: u8,
}

impl Place {
    pub(crate) fn margin(self) -> usize {
        usize::from(self.margin % 33)
    }

    /// For an output: no two elements in one place.
    pub(crate) fn output(self) -> Layout {
        let gap = usize::from(self.gap % 19);
        match self.kind % 8 {
            0..=2 => Layout::Tight,
            3 | 4 => Layout::Padded(gap),
            5 | 6 => Layout::Transposed(gap),
            _ => Layout::Spread(gap),
        }
    }

    /// For an input: rows and columns may overlap or repeat.
    pub(crate) fn input(self) -> Layout {
        let gap = usize::from(self.gap);
        match self.kind / 8 % 8 {
            0 => Layout::SameRow,
            1 => Layout::SameCol,
            2 => Layout::Constant,
            3 => Layout::Strides(gap % 37, gap / 37),
            _ => self.output(),
        }
    }
}
