"""What a layer computes, as data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Union

from . import _native

Activation = Union[str, "tuple[str, float]"]
"""``identity``, ``relu``, ``gelu``, ``gelu_tanh``, ``silu``, ``tanh``, ``sigmoid``, ``relu_squared``, ``mish``, ``hardswish``, ``softplus``; or
``("leaky_relu", slope)``, ``("silu_beta", beta)``, ``("elu", alpha)``."""


class Skip(str, Enum):
    """What a block adds to its branch."""

    IDENTITY = "identity"
    """y = x + G(x)."""
    NONE = "none"
    """y = G(x)."""
    PROJECTION = "projection"
    """y = x Ws^T + bs + G(x), where the width changes."""


@dataclass(frozen=True)
class Norm:
    """A norm: ``kind`` is ``layer``, ``rms`` or ``batch``."""

    kind: str
    epsilon: float = 1e-5
    gain: bool = True
    shift: bool = True

    @classmethod
    def layer(cls, epsilon: float = 1e-5) -> Norm:
        """LayerNorm, with gain and shift."""
        return cls("layer", epsilon)

    @classmethod
    def rms(cls, epsilon: float = 1e-5) -> Norm:
        """RMSNorm, with a gain."""
        return cls("rms", epsilon, shift=False)

    @classmethod
    def batch(cls, epsilon: float = 1e-5) -> Norm:
        """BatchNorm, with gain and shift."""
        return cls("batch", epsilon)


@dataclass(frozen=True)
class BranchScale:
    """What the branch is multiplied by: ``constant``, or learned from ``value`` on: one number (``scalar``) or one for each output (``vector``)."""

    kind: str = "constant"
    value: float = 1.0


@dataclass(frozen=True)
class Dropout:
    """Probabilities to drop: elements of h, elements of the branch, the branch of a whole row."""

    hidden: float = 0.0
    branch: float = 0.0
    depth: float = 0.0


@dataclass(frozen=True)
class BlockForm:
    """A residual block of two weight layers in any of the forms that people train.

    ::

        n = a(N1(x)),  z = n W1^T + b1,  h = phi(N2(z))  or, gated,  h = phi(z) * (n W3^T + b3),  F = N4(drop(h) W2^T + b2), dropped itself
        r = alpha S(x) + lambda F,  y = p(r)  or  N3(r)

    N1 to N4: ``pre_norm``, ``inner_norm``, ``post_norm``, ``branch_norm``; a, phi, p: ``pre_activation``, ``activation``, ``post_activation``;
    S, alpha: ``skip``, ``skip_scale``; lambda: ``branch_scale``.
    """

    inputs: int
    hidden: int
    outputs: int | None = None
    """As many as inputs, unless said."""
    biases: bool = True
    activation: Activation = "gelu"
    gated: bool = False
    pre_norm: Norm | None = None
    pre_activation: Activation = "identity"
    inner_norm: Norm | None = None
    post_norm: Norm | None = None
    branch_norm: Norm | None = None
    post_activation: Activation = "identity"
    skip: Skip = Skip.IDENTITY
    skip_scale: float = 1.0
    branch_scale: BranchScale = BranchScale()
    dropout: Dropout = Dropout()
    init_scales: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def named(cls, name: str, d: int, h: int) -> BlockForm:
        """A published block on d features with h hidden ones: ``gpt2``, ``vit``, ``bert``, ``llama``, ``t5``, ``cait``, ``sandwich``, ``rezero``,
        ``tabular``, ``resnet_v1``, ``resnet_v2``. Settings that differ: ``dataclasses.replace(form, ...)``."""
        return _block_of(json.loads(_native.named_form(name, d, h)))

    @classmethod
    def gpt2(cls, d: int, h: int) -> BlockForm:
        """Pre-LayerNorm, tanh GELU."""
        return cls.named("gpt2", d, h)

    @classmethod
    def vit(cls, d: int, h: int) -> BlockForm:
        """Pre-LayerNorm, GELU."""
        return cls.named("vit", d, h)

    @classmethod
    def bert(cls, d: int, h: int) -> BlockForm:
        """Post-LayerNorm, GELU."""
        return cls.named("bert", d, h)

    @classmethod
    def llama(cls, d: int, h: int) -> BlockForm:
        """Pre-RMSNorm, SwiGLU, no biases."""
        return cls.named("llama", d, h)

    @classmethod
    def t5(cls, d: int, h: int) -> BlockForm:
        """Pre-RMSNorm, GEGLU, no biases."""
        return cls.named("t5", d, h)

    @classmethod
    def tabular(cls, d: int, h: int, dropout: Dropout = Dropout()) -> BlockForm:
        """BatchNorm, ReLU, dropout."""
        return dataclasses.replace(cls.named("tabular", d, h), dropout=dropout)


@dataclass(frozen=True)
class Linear:
    """y = phi(x W^T + b) (+ x)."""

    inputs: int
    outputs: int
    bias: bool = True
    activation: Activation = "identity"
    residual: bool = False


@dataclass(frozen=True)
class NormLayer:
    """y = phi(N(x))."""

    width: int
    norm: Norm
    activation: Activation = "identity"


Formula = Union[BlockForm, Linear, NormLayer]


def _activation(activation: Activation) -> object:
    return activation if isinstance(activation, str) else {activation[0]: activation[1]}


def _activation_of(value: object) -> Activation:
    return value if isinstance(value, str) else next(iter(value.items()))  # type: ignore[attr-defined]


def _fields(form: Formula) -> dict[str, object]:
    """The fields as the core reads them."""
    fields: dict[str, object] = {}
    for field in dataclasses.fields(form):
        value = getattr(form, field.name)
        if field.name.endswith("activation"):
            value = _activation(value)
        elif isinstance(value, BranchScale):
            value = {value.kind: value.value}
        elif isinstance(value, Enum):
            value = value.value
        elif dataclasses.is_dataclass(value):
            value = dataclasses.asdict(value)  # type: ignore[arg-type]
        fields[field.name] = value
    if isinstance(form, BlockForm) and form.outputs is None:
        fields["outputs"] = form.inputs
    return fields


def _block_of(fields: dict[str, object]) -> BlockForm:
    made = dict(fields)
    for name, value in fields.items():
        if name.endswith("activation"):
            made[name] = _activation_of(value)
        elif name.endswith("norm") and value is not None:
            made[name] = Norm(**value)  # type: ignore[arg-type]
    made["branch_scale"] = BranchScale(*next(iter(fields["branch_scale"].items())))  # type: ignore[attr-defined]
    made["dropout"] = Dropout(**fields["dropout"])  # type: ignore[arg-type]
    made["skip"] = Skip(fields["skip"])
    made["init_scales"] = tuple(fields["init_scales"])  # type: ignore[arg-type]
    return BlockForm(**made)  # type: ignore[arg-type]


_KINDS = {BlockForm: "block", Linear: "linear", NormLayer: "norm"}


def describe(formulas: Formula | Sequence[Formula], keep: str | tuple[int, int] = "all") -> str:
    """Formulas, one after the other, as the core reads them: JSON that is the same for the same formulas."""
    formulas = [formulas] if type(formulas) in _KINDS else list(formulas)  # type: ignore[arg-type]
    for formula in formulas:
        if type(formula) not in _KINDS:
            raise TypeError(f"formula: expected a BlockForm, Linear or NormLayer, found {type(formula).__name__}")
    kept = keep if isinstance(keep, str) else {"within": {"bytes": keep[0], "rows": keep[1]}}
    return json.dumps({"formulas": [{_KINDS[type(f)]: _fields(f)} for f in formulas], "keep": kept}, allow_nan=True)


def block_json(form: BlockForm) -> str:
    """A form by itself as the core reads it."""
    return json.dumps(_fields(form))
