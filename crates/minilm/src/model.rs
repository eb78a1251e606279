//! The encoder of BERT in candle, its feed-forward blocks by candle or by resblock; its linear layers, too, if one likes.

use candle_core::{D, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder, linear, ops};
use resblock_candle::resblock::{Activation, BlockForm, Convention, Norm};
use resblock_candle::{Formula, Fused};

pub(crate) const WIDTH: usize = 384;
const HIDDEN: usize = 1536;
const LAYERS: usize = 6;
const HEADS: usize = 12;
const EPSILON: f64 = 1e-12;

/// Whose feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Blocks {
    /// Candle's operations.
    Candle,
    /// One fused operation of resblock each.
    Resblock,
    /// The same, and the linear layers and the norms of attention by resblock, too.
    All,
}

/// A LayerNorm after a skip.
enum PostNorm {
    Candle { gain: Tensor, shift: Tensor },
    Resblock(Fused),
}

impl PostNorm {
    fn new(blocks: Blocks, vb: &VarBuilder<'_>) -> Result<Self> {
        if blocks == Blocks::All {
            return Fused::build(Formula::norm(WIDTH, Norm::layer(EPSILON as f32)), vb.clone()).map(Self::Resblock);
        }
        Ok(Self::Candle { gain: vb.get(WIDTH, "weight")?, shift: vb.get(WIDTH, "bias")? })
    }

    /// Candle's fused norm has no gradient (`candle_nn::ops::layer_norm` ends in `apply_op3_no_bwd`), so in training it is taken apart. Ours has one.
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let (gain, shift) = match self {
            Self::Resblock(norm) => return norm.forward(x),
            Self::Candle { gain, shift } => (gain, shift),
        };
        if !train {
            return ops::layer_norm(&x.contiguous()?, gain, shift, EPSILON as f32);
        }
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let n = centred.broadcast_div(&(variance + EPSILON)?.sqrt()?)?;
        n.broadcast_mul(gain)?.broadcast_add(shift)
    }
}

/// x Wᵀ + b.
enum Map {
    Candle(Linear),
    Resblock(Fused),
}

impl Map {
    /// Several maps of the same x as one, one under the other.
    fn new(blocks: Blocks, names: &[&str], vb: &VarBuilder<'_>) -> Result<Self> {
        let outputs = WIDTH * names.len();
        let all = |shape: &[usize], name: &str| -> Result<Tensor> {
            Tensor::cat(&names.iter().map(|map| vb.pp(map).get(shape, name)).collect::<Result<Vec<_>>>()?, 0)
        };
        let (weight, bias) = (all(&[WIDTH, WIDTH], "weight")?, all(&[WIDTH], "bias")?);
        if blocks == Blocks::All {
            let formula = Formula::linear(WIDTH, outputs, Activation::Identity);
            return Fused::new(formula, vec![weight, bias]).map(Self::Resblock);
        }
        Ok(Self::Candle(Linear::new(weight, Some(bias))))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Candle(map) => map.forward(x),
            Self::Resblock(map) => map.forward(x),
        }
    }
}

/// LN(x + attention(x)).
struct Attention {
    /// Query, key and value.
    inputs: Map,
    out: Map,
    norm: PostNorm,
}

impl Attention {
    fn new(blocks: Blocks, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            inputs: Map::new(blocks, &["self.query", "self.key", "self.value"], vb)?,
            out: Map::new(blocks, &["output.dense"], vb)?,
            norm: PostNorm::new(blocks, &vb.pp("output.LayerNorm"))?,
        })
    }

    /// `mask`: (batch, 1, 1, tokens), 0 where a token is and very negative where none is.
    fn forward(&self, x: &Tensor, mask: &Tensor, train: bool) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let inputs = self.inputs.forward(x)?.reshape((batch, tokens, 3, HEADS, WIDTH / HEADS))?;
        let heads = |which: usize| inputs.narrow(2, which, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let (query, key, value) = (heads(0)?, heads(1)?, heads(2)?);
        let scale = 1.0 / ((WIDTH / HEADS) as f64).sqrt();
        let scores = (query.matmul(&key.transpose(2, 3)?)? * scale)?.broadcast_add(mask)?;
        // The fused softmax has no gradient either.
        let weights = if train { ops::softmax(&scores, D::Minus1)? } else { ops::softmax_last_dim(&scores)? };
        let mixed = weights.matmul(&value)?.transpose(1, 2)?.reshape((batch, tokens, WIDTH))?;
        self.norm.forward(&x.add(&self.out.forward(&mixed)?)?, train)
    }
}

/// LN(x + W2 gelu(W1 x + b1) + b2).
enum FeedForward {
    Candle { up: Linear, down: Linear, norm: PostNorm },
    Resblock(Fused),
}

impl FeedForward {
    fn new(blocks: Blocks, vb: &VarBuilder<'_>) -> Result<Self> {
        match blocks {
            Blocks::Candle => Ok(Self::Candle {
                up: linear(WIDTH, HIDDEN, vb.pp("intermediate.dense"))?,
                down: linear(HIDDEN, WIDTH, vb.pp("output.dense"))?,
                norm: PostNorm::new(blocks, &vb.pp("output.LayerNorm"))?,
            }),
            Blocks::Resblock | Blocks::All => {
                let form = BlockForm::bert(WIDTH, HIDDEN);
                Fused::load(form, &Convention::bert(), vb.clone()).map(Self::Resblock)
            }
        }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::Candle { up, down, norm } => {
                norm.forward(&x.add(&down.forward(&up.forward(x)?.gelu_erf()?)?)?, train)
            }
            Self::Resblock(block) => block.forward(x),
        }
    }
}

/// Sentences to vectors.
pub(crate) struct Encoder {
    words: Tensor,
    positions: Tensor,
    kind: Tensor,
    norm: PostNorm,
    layers: Vec<(Attention, FeedForward)>,
}

/// The parameters that fine-tuning trains: those of the feed-forward blocks.
pub(crate) fn is_trained(name: &str) -> bool {
    name.starts_with("encoder.layer.") && !name.contains(".attention.")
}

impl Encoder {
    pub(crate) fn new(blocks: Blocks, vb: &VarBuilder<'_>) -> Result<Self> {
        let embeddings = vb.pp("embeddings");
        let layer = |i: usize| -> Result<_> {
            let vb = vb.pp(format!("encoder.layer.{i}"));
            Ok((Attention::new(blocks, &vb.pp("attention"))?, FeedForward::new(blocks, &vb)?))
        };
        Ok(Self {
            words: embeddings.get((30522, WIDTH), "word_embeddings.weight")?,
            positions: embeddings.get((512, WIDTH), "position_embeddings.weight")?,
            kind: embeddings.get((2, WIDTH), "token_type_embeddings.weight")?.narrow(0, 0, 1)?,
            norm: PostNorm::new(blocks, &embeddings.pp("LayerNorm"))?,
            layers: (0..LAYERS).map(layer).collect::<Result<_>>()?,
        })
    }

    /// The mean of the tokens' vectors, for each sentence. `ids` and `mask`: (batch, tokens), 1 where a token is.
    pub(crate) fn forward(&self, ids: &Tensor, mask: &Tensor, train: bool) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        let words = self.words.index_select(&ids.flatten_all()?, 0)?.reshape((batch, tokens, WIDTH))?;
        let x = words.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?.broadcast_add(&self.kind)?;
        let mut x = self.norm.forward(&x, train)?;
        let bias = ((mask.unsqueeze(1)?.unsqueeze(1)? - 1.0)? * 1e9)?;
        for (attention, feed_forward) in &self.layers {
            x = feed_forward.forward(&attention.forward(&x, &bias, train)?, train)?;
        }
        let sums = x.broadcast_mul(&mask.unsqueeze(2)?)?.sum(1)?;
        sums.broadcast_div(&mask.sum_keepdim(1)?)
    }

    /// The same of length 1, as this model is used to compare sentences.
    pub(crate) fn embed(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let means = self.forward(ids, mask, false)?;
        means.broadcast_div(&means.sqr()?.sum_keepdim(1)?.sqrt()?)
    }
}
