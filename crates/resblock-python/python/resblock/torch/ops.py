"""The operations, and their gradients.

Three operators are known to PyTorch: ``resblock::infer``, ``resblock::forward``, which returns y and the record, and ``resblock::backward``. The record
is a tensor of whole numbers, so that nobody differentiates or converts it; its length follows from the number of rows alone. ``torch.compile`` sees the
operators; eager calls go to the same functions past the dispatcher, which is faster (docs/embedding.md).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .. import _native
from ..forms import Formula, describe
from .memory import MEMORY, OUTPUTS
from .threads import threads

View = tuple[int, int, int, int, int]


class Compiled:
    """The compiled formula of a description, and what calls ask of it."""

    def __init__(self, description: str) -> None:
        self.native = native = _native.Function(description)
        self.inputs, self.outputs = native.inputs, native.outputs
        self.tensors = native.tensors
        self.names = [name for name, *_ in self.tensors]
        self.runs = [role.startswith("running") for _, role, *_ in self.tensors]
        self._fixed, self._each = native.record_size

    def record_len(self, rows: int) -> int:
        """Its record's length."""
        return self._fixed + rows * self._each


@lru_cache(maxsize=None)
def compiled(formula: str) -> Compiled:
    """That of a description, once."""
    return Compiled(formula)


_CPU = torch.device("cpu")


def check(name: str, tensor: Tensor) -> None:
    """That a tensor is one that kernels can read."""
    if tensor.dtype is not torch.float32:
        raise TypeError(f"resblock: {name}: expected float32, found {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.device != _CPU:
        raise TypeError(f"resblock: {name}: expected a tensor on the CPU, found one on {tensor.device}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"resblock: {name}: expected a strided tensor, found {tensor.layout}")


def _matrix(tensor: Tensor) -> tuple[Tensor, View]:
    """All leading dimensions as one, and the address. Who calls holds the tensor."""
    if tensor.dim() != 2:
        tensor = tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])
    return tensor, (tensor.data_ptr(), *tensor.shape, *tensor.stride())


def _vector(tensor: Tensor) -> tuple[Tensor, View]:
    tensor = tensor.contiguous()
    count = tensor.numel()
    return tensor, (tensor.data_ptr(), 1, count, count, 1)


def _operands(params: Sequence[Tensor]) -> tuple[list[Tensor], list[View]]:
    """Parameters where they are. Their shapes are seen to by the call itself."""
    held, views = [], []
    for param in params:
        tensor, view = _matrix(param) if param.dim() == 2 else _vector(param)
        held.append(tensor)
        views.append(view)
    return held, views


def _checked(function: Compiled, x: Tensor, params: Sequence[Tensor]) -> None:
    check("x", x)
    for name, param in zip(function.names, params):
        check(name, param)
    if x.dim() == 0 or x.shape[-1] != function.inputs:
        found = tuple(x.shape)
        raise ValueError(f"resblock: x: expected {function.inputs} features in the last dimension, found shape {found}")


def _draw(draw: Tensor | None) -> tuple[int, int, int] | None:
    """Seed and step, from three numbers below 2^31."""
    if draw is None:
        return None
    low, high, step = draw.tolist()
    return low | high << 31, step, 0


def _rows_like(x: Tensor, cols: int) -> Tensor:
    """Room for as many rows as x has, row-major."""
    size = (*x.shape[:-1], cols)
    strides = [cols]
    for n in reversed(size[1:-1]):
        strides.append(strides[-1] * n)
    return MEMORY.take(size, (*reversed(strides[: len(size) - 1]), 1), torch.float32, OUTPUTS)


def _infer(x: Tensor, params: Sequence[Tensor], formula: str) -> Tensor:
    function = compiled(formula)
    _checked(function, x, params)
    packed = _cache.find(formula, function, params)
    y = _rows_like(x, function.outputs)
    (x, x_view), (_, y_view) = _matrix(x), _matrix(y)
    if packed is not None:
        packed.infer(x_view, y_view, threads())
    else:
        held, views = _operands(params)
        function.native.forward(x_view, views, y_view, None, None, False, threads())
        del held
    return y


def _forward(
    x: Tensor,
    params: Sequence[Tensor],
    draw: Tensor | None,
    formula: str,
    frozen: bool,
    make_record: Callable[..., Tensor] = lambda size, dtype: MEMORY.take(size, (1,), dtype),
) -> tuple[Tensor, Tensor]:
    function = compiled(formula)
    _checked(function, x, params)
    y = _rows_like(x, function.outputs)
    (x, x_view), (_, y_view) = _matrix(x), _matrix(y)
    record = make_record((function.record_len(x.shape[0]),), dtype=torch.int32)
    held, views = _operands(params)
    function.native.forward(x_view, views, y_view, _vector(record)[1], _draw(draw), frozen, threads())
    del held
    return y, record


def _dense_strides(param: Tensor) -> tuple[int, ...]:
    """Those of a gradient: the parameter's own, if its elements are dense."""
    if param.dim() == 2 and param.stride() == (1, param.shape[0]):
        return param.stride()
    return (param.shape[1], 1) if param.dim() == 2 else (1,) * param.dim()


def _backward(
    dy: Tensor, record: Tensor, params: Sequence[Tensor], formula: str, need_dx: bool, wanted: Sequence[bool]
) -> list[Tensor]:
    """dx if needed, and the gradients that are wanted, in order."""
    function = compiled(formula)
    check("dy", dy)
    made: list[Tensor] = []
    dx_view = None
    if need_dx:
        made.append(_rows_like(dy, function.inputs))
        dx_view = _matrix(made[0])[1]
    grads: list[View | None] = [None] * len(params)
    for at, (want, param) in enumerate(zip(wanted, params)):
        if want:
            # As the parameter lies, if it is dense: optimisers then go through both in one order.
            size, strides, count = param.shape, _dense_strides(param), param.numel()
            grad = MEMORY.take(size, strides, torch.float32)
            made.append(grad)
            grads[at] = (grad.data_ptr(), *size, *strides) if len(size) == 2 else (grad.data_ptr(), 1, count, count, 1)
    dy, dy_view = _matrix(dy)
    held, views = _operands(params)
    function.native.backward(dy_view, _vector(record)[1], views, dx_view, grads, threads())
    del held
    return made


class _Cache:
    """Packed copies of parameters that have not changed since the last call: the same tensors, at the same address, of the same version."""

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._entries: dict[object, tuple[tuple[object, ...], tuple[weakref.ref[Tensor], ...], _native.Packed | None]] = {}

    def find(self, formula: str, function: Compiled, params: Sequence[Tensor]) -> _native.Packed | None:
        """A packed copy, which is made when the parameters come unchanged for the second time."""
        try:
            state = tuple((p.data_ptr(), p._version, p.stride()) for p in params)
        except RuntimeError:  # Tensors of inference mode have no version: nobody knows whether they have changed.
            return None
        owners = [p if p._base is None else p._base for p in params]  # A view is another object each time.
        key = (formula, tuple(map(id, owners)))
        found = self._entries.get(key)
        if found is not None:
            known, tensors, packed = found
            if known == state and all(ref() is owner for ref, owner in zip(tensors, owners)):
                if packed is None:
                    packed = function.native.pack(_operands(params)[1])
                    self._entries[key] = (known, tensors, packed)
                return packed
        if len(self._entries) >= self._most:
            self.clear()
        self._entries[key] = (state, tuple(map(weakref.ref, owners)), None)
        return None

    def clear(self) -> None:
        """Forgets those whose tensors are gone, or else all."""
        alive = {k: e for k, e in self._entries.items() if all(ref() is not None for ref in e[1])}
        self._entries = alive if len(alive) < self._most else {}


_cache = _Cache()




@torch.library.custom_op("resblock::infer", mutates_args=(), device_types="cpu")
def _op_infer(x: Tensor, params: Sequence[Tensor], formula: str) -> Tensor:
    return _infer(x, params, formula)


@torch.library.custom_op("resblock::forward", mutates_args=(), device_types="cpu")
def _op_forward(
    x: Tensor, params: Sequence[Tensor], draw: Tensor | None, formula: str, frozen: bool
) -> tuple[Tensor, Tensor]:
    # An operator's results are the same for the same arguments, to the last bit: the record's padding too, which nobody writes or reads.
    return _forward(x, params, draw, formula, frozen, torch.zeros)


@torch.library.custom_op("resblock::backward", mutates_args=(), device_types="cpu")
def _op_backward(
    dy: Tensor, record: Tensor, params: Sequence[Tensor], formula: str, need_dx: bool, wanted: Sequence[bool]
) -> list[Tensor]:
    return _backward(dy, record, params, formula, need_dx, wanted)


@torch.library.custom_op("resblock::update_statistics", mutates_args=("running",), device_types="cpu")
def _op_update_statistics(record: Tensor, running: Sequence[Tensor], formula: str, momentum: float) -> None:
    function, rest = compiled(formula), list(running)
    tensors = [_vector(rest.pop(0))[1] if runs else None for runs in function.runs]
    function.native.update_statistics(_vector(record)[1], momentum, tensors)


@_op_infer.register_fake
def _(x, params, formula):
    return x.new_empty((*x.shape[:-1], compiled(formula).outputs))


@_op_forward.register_fake
def _(x, params, draw, formula, frozen):
    function = compiled(formula)
    y = x.new_empty((*x.shape[:-1], function.outputs))
    return y, x.new_empty(function.record_len(math.prod(x.shape[:-1])), dtype=torch.int32)


@_op_backward.register_fake
def _(dy, record, params, formula, need_dx, wanted):
    made = [dy.new_empty((*dy.shape[:-1], compiled(formula).inputs))] if need_dx else []
    return made + [p.new_empty_strided(p.shape, _dense_strides(p)) for want, p in zip(wanted, params) if want]


def _setup(ctx, inputs, output):
    _, params, _, formula, _ = inputs
    ctx.save_for_backward(output[1], *params)
    ctx.formula = formula
    ctx.set_materialize_grads(False)


def _gradients(ctx, dy, _):
    if dy is None:
        return None, [None] * len(ctx.needs_input_grad[1]), None, None, None
    record, *params = ctx.saved_tensors
    need_dx, wanted = ctx.needs_input_grad[0], list(ctx.needs_input_grad[1])
    made = torch.ops.resblock.backward(dy, record, params, ctx.formula, need_dx, wanted)
    dx = made.pop(0) if need_dx else None
    return dx, [made.pop(0) if want else None for want in wanted], None, None, None


_op_forward.register_autograd(_gradients, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The same, past the dispatcher."""

    @staticmethod
    def forward(ctx, formula, frozen, draw, x, *params):
        y, record = _forward(x, params, draw, formula, frozen)
        ctx.save_for_backward(record, *params)
        ctx.formula = formula
        ctx.mark_non_differentiable(record)
        ctx.set_materialize_grads(False)  # of the record there is none
        return y, record

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, _):
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        record, *params = ctx.saved_tensors
        need_dx, wanted = ctx.needs_input_grad[3], ctx.needs_input_grad[4:]
        made = _backward(dy, record, params, ctx.formula, need_dx, wanted)
        dx = made.pop(0) if need_dx else None
        return None, None, None, dx, *[made.pop(0) if want else None for want in wanted]


def infer(x: Tensor, params: Sequence[Tensor], formula: str) -> Tensor:
    """y, where no gradient is wanted."""
    return _op_infer(x, params, formula) if torch.compiler.is_compiling() else _infer(x, params, formula)


def forward(x: Tensor, params: Sequence[Tensor], draw: Tensor | None, formula: str, frozen: bool) -> tuple[Tensor, Tensor]:
    """y and the record."""
    if torch.compiler.is_compiling():
        return _op_forward(x, params, draw, formula, frozen)
    return _Eager.apply(formula, frozen, draw, x, *params)


def wants_gradients(x: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether autograd follows a call."""
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in params))


def new_draw() -> Tensor:
    """What masks of a call are drawn from: by PyTorch's generator."""
    return torch.randint(0, 2**31, (3,), dtype=torch.int64)


def fused(
    x: Tensor,
    params: Sequence[Tensor],
    formulas: Formula | Sequence[Formula],
    *,
    training: bool = False,
    keep: str | tuple[int, int] = "all",
) -> Tensor:
    """y = f(x; params), in the manner of ``torch.nn.functional``: parameters are in the order of :attr:`resblock.Function.names`, weights
    (outputs, inputs) of any strides. Gradients reach x and every parameter that requires them; those of others are not computed. ``training``: elements
    are dropped, by PyTorch's generator, and a BatchNorm normalises by the batch; its running averages are left alone.
    """
    formula = describe(formulas, keep)
    if not training and not wants_gradients(x, params):
        return infer(x, params, formula)
    return forward(x, params, new_draw() if training else None, formula, not training)[0]
