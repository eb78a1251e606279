"""Fused blocks in the place of the feed-forward blocks of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..forms import Activation, BlockForm, Dropout, Norm, Skip, describe
from . import ops


class _NoFit(Exception):
    """Why a block is left as it is."""


@dataclass
class Swapped:
    """What :func:`swap` has done."""

    replaced: list[str] = field(default_factory=list)
    """The layers whose feed-forward block is a fused one now."""
    kept: dict[str, str] = field(default_factory=dict)
    """Those that are as they were, and why."""


def _activation(act: nn.Module | Callable[[Tensor], Tensor]) -> Activation:
    name = type(act).__name__ if isinstance(act, nn.Module) else getattr(act, "__name__", "?")
    if isinstance(act, nn.GELU):
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    if isinstance(act, nn.LeakyReLU):
        return ("leaky_relu", act.negative_slope)
    if isinstance(act, nn.ELU):
        return ("elu", act.alpha)
    known: dict[str, Activation] = {
        "GELUActivation": "gelu",
        "NewGELUActivation": "gelu_tanh",
        "GELUTanh": "gelu_tanh",
        "FastGELUActivation": "gelu_tanh",
        "QuickGELUActivation": ("silu_beta", 1.702),
        "SiLU": "silu",
        "SiLUActivation": "silu",
        "ReLU": "relu",
        "ReLUSquaredActivation": "relu_squared",
        "Tanh": "tanh",
        "Sigmoid": "sigmoid",
        "Mish": "mish",
        "MishActivation": "mish",
        "Hardswish": "hardswish",
        "LinearActivation": "identity",
        "Identity": "identity",
    }
    if name not in known:
        raise _NoFit(f"its activation, {name}, is not known")
    return known[name]


def _norm(norm: nn.Module) -> tuple[Norm, list[str]]:
    """A norm, and the names of its parameters."""
    if isinstance(norm, nn.LayerNorm):
        if len(norm.normalized_shape) != 1:
            raise _NoFit("its norm is over several dimensions")
        names = [name for name in ("weight", "bias") if getattr(norm, name) is not None]
        return Norm("layer", norm.eps, gain="weight" in names, shift="bias" in names), names
    if type(norm).__name__.endswith("RMSNorm") and getattr(norm, "weight", None) is not None:
        epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        return Norm.rms(torch.finfo(torch.float32).eps if epsilon is None else epsilon), ["weight"]
    raise _NoFit(f"its norm, {type(norm).__name__}, is not known")


def _map(module: nn.Module) -> tuple[int, int, bool]:
    """(inputs, outputs) of an affine map, and whether it has a bias."""
    if type(module) is nn.Linear:
        outputs, inputs = module.weight.shape
    elif type(module).__name__ == "Conv1D":
        inputs, outputs = module.weight.shape
    else:
        raise _NoFit(f"{type(module).__name__} is no affine map that is known")
    return inputs, outputs, module.bias is not None


def _weight(module: nn.Module) -> Tensor:
    """Its weights, (outputs, inputs)."""
    return module.weight.t() if type(module).__name__ == "Conv1D" else module.weight


def _p(module: nn.Module | None) -> float:
    return module.p if isinstance(module, nn.Dropout) else 0.0


class _Place(nn.Module):
    """In the place of a module: has all that it has, under the same names, and by default lets its first argument through."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        for name, parameter in original.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.train(original.training)
        # Not registered: all that it has is here already. A tuple, which modules do not look into.
        self.originals = (original,)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """x."""
        return x


class _Block(_Place):
    """In the place of the last module of a feed-forward block: does all of it."""

    def __init__(self, original: nn.Module, form: BlockForm, norm: nn.Module, maps: Sequence[nn.Module], plain: Callable[..., Tensor]) -> None:
        super().__init__(original)
        _, self.norm_names = _norm(norm)
        # The maps in the order of calls: W1, W3, W2.
        self.parts = (norm, *maps)
        self.plain, self.formula = plain, describe(form)
        self.drops = any(vars(form.dropout).values())

    def forward(self, *arguments: Tensor) -> Tensor:
        """The last argument is the input of the block."""
        x = arguments[-1]
        norm, *maps = self.parts
        params: list[Tensor] = []
        for part in maps:
            params.append(_weight(part))
            if part.bias is not None:
                params.append(part.bias)
        params += [getattr(norm, name) for name in self.norm_names]
        # What kernels cannot read, what is to be cast, and what others listen to, goes the way it went before.
        plain = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        plain = plain or any(p.dtype != torch.float32 or p.device.type != "cpu" for p in params)
        plain = plain or any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in self.parts)
        if plain:
            return self.plain(*self.originals, norm, x)
        if ops.wants_gradients(x, params) or self.training and self.drops:
            draw = ops.new_draw() if self.training and self.drops else None
            return ops.forward(x, params, draw, self.formula, False)[0]
        return ops.infer(x, params, self.formula)


def _plain_pre_norm(mlp: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    return mlp(norm(x))


def _pre_norm(layer: nn.Module, norm: str, mlp: str, first: str, second: str, third: str | None, act: str, drops: tuple[str | None, str | None]) -> None:
    """A layer that computes x + mlp(norm(x)): the norm lets x through, the mlp does both."""
    norm_module, module = getattr(layer, norm), getattr(layer, mlp)
    names = [first, third, second] if third else [first, second]
    for name in names:
        if not hasattr(module, name):
            raise _NoFit(f"its feed-forward block, {type(module).__name__}, has no {name}")
    maps = [getattr(module, name) for name in names]
    inputs, hidden, bias = _map(maps[0])
    if any(_map(m)[2] != bias for m in maps):
        raise _NoFit("only some of its maps have biases")
    if isinstance(getattr(module, "norm", None), nn.Module) and type(module.norm) is not nn.Identity:
        raise _NoFit("there is a norm between its maps")
    hidden_drop, branch_drop = (_p(getattr(module, name, None)) if name else 0.0 for name in drops)
    form = BlockForm(
        inputs,
        hidden,
        _map(maps[-1])[1],
        biases=bias,
        activation=_activation(getattr(module, act)),
        gated=third is not None,
        pre_norm=_norm(norm_module)[0],
        skip=Skip.NONE,  # The layer adds it itself.
        dropout=Dropout(hidden_drop, branch_drop),
    )
    block = _Block(module, form, norm_module, maps, _plain_pre_norm)
    setattr(layer, norm, _Place(norm_module))
    setattr(layer, mlp, block)


class _PlainPostNorm:
    """What a layer of BERT's does: of the first module it has the original."""

    def __init__(self, intermediate: nn.Module) -> None:
        self.intermediate = intermediate

    def __call__(self, output: nn.Module, _: nn.Module, x: Tensor) -> Tensor:
        return output(self.intermediate(x), x)


def _post_norm(layer: nn.Module) -> None:
    """A layer of BERT's: ``output(intermediate(x), x)`` is LN(x + F(x)). The first lets x through, the second does all."""
    intermediate, output = layer.intermediate, layer.output
    maps = [intermediate.dense, output.dense]
    inputs, hidden, _ = _map(maps[0])
    form = BlockForm(
        inputs,
        hidden,
        activation=_activation(intermediate.intermediate_act_fn),
        post_norm=_norm(output.LayerNorm)[0],
        dropout=Dropout(branch=_p(output.dropout)),
    )
    block = _Block(output, form, output.LayerNorm, maps, _PlainPostNorm(intermediate))
    layer.intermediate, layer.output = _Place(intermediate), block


def _llama(layer: nn.Module) -> None:
    _pre_norm(layer, "post_attention_layernorm", "mlp", "gate_proj", "down_proj", "up_proj", "act_fn", (None, None))


def _gpt2(layer: nn.Module) -> None:
    _pre_norm(layer, "ln_2", "mlp", "c_fc", "c_proj", None, "act", (None, "dropout"))


def _timm_vit(layer: nn.Module) -> None:
    _pre_norm(layer, "norm2", "mlp", "fc1", "fc2", None, "act", ("drop1", "drop2"))


_LAYERS: dict[tuple[str, str], Callable[[nn.Module], None]] = {
    ("transformers.", "BertLayer"): _post_norm,
    ("transformers.", "RobertaLayer"): _post_norm,
    ("transformers.", "ElectraLayer"): _post_norm,
    ("transformers.", "GPT2Block"): _gpt2,
    ("transformers.", "LlamaDecoderLayer"): _llama,
    ("transformers.", "MistralDecoderLayer"): _llama,
    ("transformers.", "Qwen2DecoderLayer"): _llama,
    ("timm.models.vision_transformer", "Block"): _timm_vit,
}
"""The layers that are known: where their class is from, its name, and how they are swapped."""


def swap(model: nn.Module) -> Swapped:
    """Puts fused blocks in the place of the feed-forward blocks of a model, in place: of Hugging Face's BERT, RoBERTa, ELECTRA, GPT-2, Llama, Mistral and
    Qwen2, and of timm's ViT. Parameters are the same objects under the same names, so optimisers and ``state_dict`` go on as they were; dropout is
    drawn anew, with the same probabilities.

    A call on other tensors than float32 on the CPU, under autocast, or whose parts have hooks goes through the old modules.
    """
    done = Swapped()
    for name, layer in list(model.named_modules()):
        for (source, kind), change in _LAYERS.items():
            if type(layer).__name__ != kind or not type(layer).__module__.startswith(source):
                continue
            if any(isinstance(child, _Place) for child in layer.children()):
                done.kept[name] = "it is swapped already"
                continue
            try:
                change(layer)
                done.replaced.append(name)
            except _NoFit as reason:
                done.kept[name] = str(reason)
    return done


def unswap(model: nn.Module) -> int:
    """Puts back what :func:`swap` took out, and returns of how many layers."""
    layers = 0
    for layer in list(model.modules()):
        places = [(name, child) for name, child in layer.named_children() if isinstance(child, _Place)]
        for name, place in places:
            place.originals[0].train(place.training)
            setattr(layer, name, place.originals[0])
        layers += bool(places)
    return layers
