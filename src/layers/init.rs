//! Initial weights from a seed.

use crate::error::Error;
use crate::gemm::buffers::zeros;
use crate::gemm::panels::panel_len;
use crate::mat::MatRef;
use crate::weights::Affine;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};

/// Distribution of initial weights (He et al. 2015 for ReLU-like activations, Glorot and Bengio 2010 for symmetric ones).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheme {
    /// Normal, variance 2 / inputs.
    HeNormal,
    /// Uniform on ± sqrt(6 / inputs).
    HeUniform,
    /// Normal, variance 2 / (inputs + outputs).
    XavierNormal,
    /// Uniform on ± sqrt(6 / (inputs + outputs)).
    XavierUniform,
    /// All zero.
    Zeros,
}

/// A source of initial parameters: a scheme and a ChaCha8 generator. The same seed gives the same bits on every platform.
#[derive(Debug, Clone)]
pub struct Init {
    scheme: Scheme,
    rng: ChaCha8Rng,
}

impl Init {
    /// From a seed.
    pub fn new(scheme: Scheme, seed: u64) -> Self {
        Self { scheme, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// He initialisation, normal.
    pub fn he(seed: u64) -> Self {
        Self::new(Scheme::HeNormal, seed)
    }

    /// Xavier (Glorot) initialisation, uniform.
    pub fn xavier(seed: u64) -> Self {
        Self::new(Scheme::XavierUniform, seed)
    }

    /// Weights (outputs, inputs) of the scheme times `scale`, bias zero.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the size overflows, [`Error::Memory`] if there is not so much memory.
    pub fn affine(&mut self, inputs: usize, outputs: usize, scale: f32) -> Result<Affine, Error> {
        self.map(inputs, outputs, scale, true)
    }

    /// As [`Init::affine`], with or without a bias.
    pub(crate) fn map(&mut self, inputs: usize, outputs: usize, scale: f32, bias: bool) -> Result<Affine, Error> {
        let overflow = Error::Overflow { operand: "weights", rows: outputs, cols: inputs, strides: (inputs, 1) };
        panel_len("weights", inputs, outputs).map_err(|_| overflow)?;
        let (mut w, bias) = (zeros(inputs * outputs)?, bias.then(|| zeros(outputs)).transpose()?);
        let (fan_in, both) = (inputs as f64, inputs as f64 + outputs as f64);
        let (normal, spread) = match self.scheme {
            Scheme::HeNormal => (true, libm::sqrt(2.0 / fan_in)),
            Scheme::HeUniform => (false, libm::sqrt(6.0 / fan_in)),
            Scheme::XavierNormal => (true, libm::sqrt(2.0 / both)),
            Scheme::XavierUniform => (false, libm::sqrt(6.0 / both)),
            Scheme::Zeros => return Affine::new(MatRef::new(&w, outputs, inputs)?, bias.as_deref()),
        };
        let spread = spread as f32 * scale;
        for w in &mut w {
            let unit: f32 = if normal {
                StandardNormal.sample(&mut self.rng)
            } else {
                let u: f32 = StandardUniform.sample(&mut self.rng);
                2.0 * u - 1.0
            };
            *w = unit * spread;
        }
        Affine::new(MatRef::new(&w, outputs, inputs)?, bias.as_deref())
    }
}
