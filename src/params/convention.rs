//! What other libraries call the parameters of a block, and how they lay them out.

use super::name::{Part, Role};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// How another library stores a parameter: its name, relative to that of the block, the orientation of a matrix, and which piece of a fused
/// tensor it is.
///
/// ```
/// use resblock::{Role, Stored};
/// let up = Stored::new("mlp.gate_up_proj.weight").piece_of(1, 2); // the second half of its outputs
/// assert_eq!(up.dims(Role::Weight, (256, 64)), [512, 64]);
/// assert_eq!(Stored::new("mlp.c_fc.weight").transposed().dims(Role::Weight, (256, 64)), [64, 256]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    name: Cow<'static, str>,
    transposed: bool,
    /// Which one, of how many.
    piece: (usize, usize),
}

impl Stored {
    /// A tensor of its own; if it is a matrix, (outputs, inputs), as PyTorch's `Linear` has it.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), transposed: false, piece: (0, 1) }
    }

    /// The same as a matrix (inputs, outputs), as GPT-2's `Conv1D` and TensorFlow's `Dense` have it. Of all else than weights it changes nothing.
    pub fn transposed(mut self) -> Self {
        self.transposed = true;
        self
    }

    /// The same as piece `index` of a tensor of `count` equal pieces, one after the other along the outputs: gate and up in one matrix.
    pub fn piece_of(mut self, index: usize, count: usize) -> Self {
        self.piece = (index, count);
        self
    }

    /// Its name, relative to that of the block: `mlp.c_fc.weight`, say.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a matrix is stored (inputs, outputs).
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Which piece of the tensor it is, and how many there are: (0, 1) is the whole.
    pub fn piece(&self) -> (usize, usize) {
        self.piece
    }

    /// The shape of the whole tensor as stored, for a parameter of this role whose own shape is (outputs, inputs) or, of all but weights,
    /// (1, length).
    pub fn dims(&self, role: Role, (rows, cols): (usize, usize)) -> Vec<usize> {
        let whole = |outputs: usize| outputs.saturating_mul(self.piece.1);
        match (role, self.transposed) {
            (Role::Weight, false) => vec![whole(rows), cols],
            (Role::Weight, true) => vec![cols, whole(rows)],
            _ => vec![whole(cols)],
        }
    }
}

/// What another library calls the parameters of one block, and how it lays them out: a [`Stored`] for each part and role. There are those of
/// published models, and [`Convention::new`] for one's own.
///
/// ```
/// use resblock::{BlockForm, Convention, Part, Role, Stored};
///
/// let own = Convention::new().with_module(Part::First, "up").with_module(Part::Second, "down").with(
///     Part::PreNorm,
///     Role::Gain,
///     Stored::new("scale"),
/// );
/// assert_eq!(own.stored(Part::Second, Role::Bias).map(Stored::name), Some("down.bias"));
///
/// // What to fetch for a block from a file of GPT-2, in the order of `Block::from_parts`.
/// let gpt2 = Convention::gpt2();
/// for (tensor, shape) in BlockForm::gpt2(768, 3072).tensors() {
///     let stored = gpt2.stored(tensor.place.part, tensor.role).expect("a name");
///     println!("{tensor}: h.0.{} {:?}", stored.name(), stored.dims(tensor.role, shape));
/// }
/// ```
///
/// The names are those of Hugging Face transformers 5.24, timm 1.0.31, rtdl_revisiting_models 0.0.2 and PyTorch 2.
///
/// Of a norm there may be a name for more than one place, `norm2` before the branch and after the skip alike: the form of the block says which it
/// is. A block has one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Convention {
    rows: BTreeMap<(Part, Role), Stored>,
}

impl Convention {
    /// No names yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with `stored` for this part and role, in place of what there was.
    pub fn with(mut self, part: Part, role: Role, stored: Stored) -> Self {
        self.rows.insert((part, role), stored);
        self
    }

    /// The same with the parameters of a part as a module of PyTorch has them: `weight` and `bias` of a map, (outputs, inputs), or of a norm, which
    /// may have `running_mean` and `running_var`, too. Not of [`Part::Branch`], which is no module.
    pub fn with_module(self, part: Part, module: &str) -> Self {
        let names: &[(Role, &str)] = match part {
            Part::PreNorm | Part::InnerNorm | Part::PostNorm | Part::BranchNorm | Part::Norm => &[
                (Role::Gain, "weight"),
                (Role::Shift, "bias"),
                (Role::RunningMean, "running_mean"),
                (Role::RunningVariance, "running_var"),
            ],
            Part::Branch => &[],
            _ => &[(Role::Weight, "weight"), (Role::Bias, "bias")],
        };
        let named =
            |all: Self, &(role, name): &(Role, &str)| all.with(part, role, Stored::new(format!("{module}.{name}")));
        names.iter().fold(self, named)
    }

    /// The same with every matrix that it has so far (inputs, outputs).
    pub fn transposed(mut self) -> Self {
        self.rows.values_mut().for_each(|stored| stored.transposed = true);
        self
    }

    /// How the parameter of this part and role is stored, if there is a name for it.
    pub fn stored(&self, part: Part, role: Role) -> Option<&Stored> {
        self.rows.get(&(part, role))
    }

    /// `GPT2Block` of Hugging Face transformers: `ln_2`, `mlp.c_fc`, `mlp.c_proj`, matrices (inputs, outputs). Fits [`crate::BlockForm::gpt2`];
    /// `h.{}.` or `transformer.h.{}.` before it.
    pub fn gpt2() -> Self {
        Self::layers("mlp.c_fc", "mlp.c_proj").transposed().with_module(Part::PreNorm, "ln_2")
    }

    /// `BertLayer` of Hugging Face transformers, and of models built alike (RoBERTa, MiniLM): `intermediate.dense`, `output.dense`,
    /// `output.LayerNorm`. Fits [`crate::BlockForm::bert`]; `encoder.layer.{}.` or `bert.encoder.layer.{}.` before it.
    pub fn bert() -> Self {
        Self::layers("intermediate.dense", "output.dense").with_module(Part::PostNorm, "output.LayerNorm")
    }

    /// `LlamaDecoderLayer` of Hugging Face transformers, and of models built alike (Mistral, Qwen2): `post_attention_layernorm`, `mlp.gate_proj`,
    /// `mlp.up_proj`, `mlp.down_proj`. Fits [`crate::BlockForm::llama`]; `model.layers.{}.` before it.
    pub fn llama() -> Self {
        Self::layers("mlp.gate_proj", "mlp.down_proj")
            .with_module(Part::Third, "mlp.up_proj")
            .gain("post_attention_layernorm.weight")
    }

    /// `Phi3DecoderLayer` of Hugging Face transformers: as [`Convention::llama`], without biases, and with gate and up in one matrix,
    /// `mlp.gate_up_proj`, the gate first. Fits [`crate::BlockForm::llama`]; `model.layers.{}.` before it.
    pub fn phi3() -> Self {
        let fused = |piece| Stored::new("mlp.gate_up_proj.weight").piece_of(piece, 2);
        Self::new()
            .with(Part::First, Role::Weight, fused(0))
            .with(Part::Third, Role::Weight, fused(1))
            .with(Part::Second, Role::Weight, Stored::new("mlp.down_proj.weight"))
            .gain("post_attention_layernorm.weight")
    }

    /// `T5Block` of the encoder in Hugging Face transformers, of T5 v1.1, whose feed-forward is gated: `layer.1.layer_norm`,
    /// `layer.1.DenseReluDense` with `wi_0` (the gate), `wi_1` and `wo`, no biases. Fits [`crate::BlockForm::t5`]; `encoder.block.{}.` before it.
    ///
    /// The first T5 is not gated and has `layer.1.DenseReluDense.wi.weight`, for [`Convention::with`] to put in the place of `wi_0`.
    pub fn t5_encoder() -> Self {
        Self::t5("layer.1")
    }

    /// That of the decoder, where cross-attention is `layer.1`, and this is `layer.2`: otherwise as [`Convention::t5_encoder`]; `decoder.block.{}.`
    /// before it.
    pub fn t5_decoder() -> Self {
        Self::t5("layer.2")
    }

    /// `ViTLayer` of Hugging Face transformers, by the names in its files and in its code up to version 4: `layernorm_after`,
    /// `intermediate.dense`, `output.dense`. Fits [`crate::BlockForm::vit`]; `vit.encoder.layer.{}.` or `encoder.layer.{}.` before it.
    pub fn vit() -> Self {
        Self::layers("intermediate.dense", "output.dense").with_module(Part::PreNorm, "layernorm_after")
    }

    /// `Block` of timm's `vision_transformer`: `norm2`, `mlp.fc1`, `mlp.fc2`, and `ls2.gamma` where it has a LayerScale. Fits
    /// [`crate::BlockForm::vit`] and, with LayerScale, [`crate::BlockForm::cait`]; `blocks.{}.` before it.
    pub fn timm_vit() -> Self {
        Self::timm().with(Part::Branch, Role::Scale, Stored::new("ls2.gamma"))
    }

    /// `LayerScaleBlock` of timm's CaiT: `norm2`, `mlp.fc1`, `mlp.fc2`, `gamma_2`. Fits [`crate::BlockForm::cait`]; `blocks.{}.` before it.
    pub fn cait() -> Self {
        Self::timm().with(Part::Branch, Role::Scale, Stored::new("gamma_2"))
    }

    /// `ConvNextLayer` of Hugging Face transformers behind its depthwise convolution: `layernorm`, `pwconv1`, `pwconv2`,
    /// `layer_scale_parameter`. Fits [`crate::BlockForm::cait`] with [`crate::Skip::None`], as the skip goes around the convolution, too;
    /// `encoder.stages.0.layers.{}.` before it.
    pub fn convnext() -> Self {
        Self::layers("pwconv1", "pwconv2").with_module(Part::PreNorm, "layernorm").with(
            Part::Branch,
            Role::Scale,
            Stored::new("layer_scale_parameter"),
        )
    }

    /// `torch.nn.TransformerEncoderLayer` of PyTorch: `linear1`, `linear2`, `norm2`, which is the norm before the branch (`norm_first`) or after the
    /// skip, as the block has it. Fits [`crate::BlockForm::bert`] and [`crate::BlockForm::vit`], but its ε is 1e-5, and its activation ReLU, unless it is
    /// told otherwise; `layers.{}.` before it.
    pub fn torch_encoder() -> Self {
        Self::layers("linear1", "linear2").with_module(Part::PreNorm, "norm2").with_module(Part::PostNorm, "norm2")
    }

    /// A block of `ResNet` in `rtdl_revisiting_models`, for tables (Gorishniy et al. 2021): `normalization` with its running averages, `linear1`,
    /// `linear2`. Fits [`crate::BlockForm::tabular`]; `blocks.{}.` before it. `normalization.num_batches_tracked`, which PyTorch counts beside,
    /// belongs to no parameter.
    pub fn tabular() -> Self {
        Self::layers("linear1", "linear2").with_module(Part::PreNorm, "normalization")
    }

    fn layers(first: &str, second: &str) -> Self {
        Self::new().with_module(Part::First, first).with_module(Part::Second, second)
    }

    /// With an RMSNorm before the branch.
    fn gain(self, name: &'static str) -> Self {
        self.with(Part::PreNorm, Role::Gain, Stored::new(name))
    }

    fn timm() -> Self {
        Self::layers("mlp.fc1", "mlp.fc2").with_module(Part::PreNorm, "norm2")
    }

    fn t5(layer: &str) -> Self {
        let name = |name| Stored::new(format!("{layer}.{name}.weight"));
        Self::new()
            .with(Part::First, Role::Weight, name("DenseReluDense.wi_0"))
            .with(Part::Third, Role::Weight, name("DenseReluDense.wi_1"))
            .with(Part::Second, Role::Weight, name("DenseReluDense.wo"))
            .with(Part::PreNorm, Role::Gain, name("layer_norm"))
    }
}
