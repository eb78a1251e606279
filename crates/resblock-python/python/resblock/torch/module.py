"""The module."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _native
from ..forms import BlockForm, Formula, block_json, describe
from . import ops


class Fused(nn.Module):
    """One formula, or several one after the other, as one operation.

    x has any leading dimensions; its last one is the features. ``names``: how parameters are named and laid out in ``state_dict``: the crate's own names, or
    those of another library (:func:`resblock.conventions`: ``gpt2``, ``bert``, ``llama``, ...), of a single block. In training mode elements are dropped, by
    PyTorch's generator, and BatchNorms normalise by the batch and bring their running averages up to date with ``momentum``.

    Parameters stay PyTorch's and are read at every call. Where no gradient is wanted, a copy is packed when they come unchanged for the second time,
    by address and version: who writes to them behind PyTorch's back (through ``.data`` or NumPy) calls :func:`Fused.refresh`.
    """

    def __init__(
        self,
        formulas: Formula | Sequence[Formula],
        *,
        names: str | None = None,
        keep: str | tuple[int, int] = "all",
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.formulas: tuple[Formula, ...] = tuple(formulas) if isinstance(formulas, Sequence) else (formulas,)
        self.momentum = momentum
        self._formula = describe(self.formulas, keep)
        native = ops.compiled(self._formula)
        self._runs = native.runs
        self._has_statistics = any(native.runs)
        self._drops = any(isinstance(f, BlockForm) and any(vars(f.dropout).values()) for f in self.formulas)
        if names is None:
            whole = [(name, (rows, cols) if role == "weight" else (cols,), False, (0, 1)) for name, role, rows, cols in native.tensors]
        elif len(self.formulas) == 1 and isinstance(self.formulas[0], BlockForm):
            whole = _native.stored(block_json(self.formulas[0]), names)
        else:
            raise ValueError("names: those of other libraries are of a single block")
        # The module that has each parameter, its name there, whether it is transposed, and which piece of it is meant, of how many.
        self._stored: list[tuple[nn.Module, str, bool, int, int]] = []
        for (path, shape, transposed, piece), (_, role, _, _) in zip(whole, native.tensors):
            self._stored.append((*self._register(path, role, tuple(shape)), transposed, *piece))
        self.reset_parameters()

    def _register(self, path: str, role: str, shape: tuple[int, ...]) -> tuple[nn.Module, str]:
        *folders, name = path.split(".")
        at: nn.Module = self
        for folder in folders:
            if not hasattr(at, folder):
                at.add_module(folder, nn.Module())
            at = getattr(at, folder)
        if hasattr(at, name):
            return at, name  # a piece of what is there
        if role.startswith("running"):
            at.register_buffer(name, torch.empty(shape))
            if name == "running_var":
                at.register_buffer("num_batches_tracked", torch.tensor(0))
        else:
            at.register_parameter(name, nn.Parameter(torch.empty(shape)))
        return at, name

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """New parameters: weights by He et al. 2015, times the form's ``init_scales``; the rest as each role begins."""
        native = ops.compiled(self._formula)
        for (name, role, rows, cols), param in zip(native.tensors, self.parameters_in_order()):
            form = self.formulas[int(name.split(".")[1]) if len(self.formulas) > 1 else 0]
            scales = form.init_scales if isinstance(form, BlockForm) else (1.0, 1.0)
            if role == "weight":
                param.normal_(0.0, scales[".second." in f".{name}"] * math.sqrt(2.0 / max(cols, 1)))
            elif role == "scale" and isinstance(form, BlockForm):
                param.fill_(form.branch_scale.value)
            else:
                param.fill_(1.0 if role in ("gain", "running_var") else 0.0)

    def parameters_in_order(self) -> list[Tensor]:
        """Parameters and running averages in the order of calls: weights (outputs, inputs), views of what is stored."""
        found = []
        for module, name, transposed, piece, count in self._stored:
            tensor: Tensor = getattr(module, name)
            if transposed:
                tensor = tensor.t()
            if count > 1:
                tensor = tensor.chunk(count)[piece]
            found.append(tensor)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """y."""
        params = self.parameters_in_order()
        batch_matters = self.training and (self._drops or self._has_statistics)
        if not batch_matters and not ops.wants_gradients(x, params):
            return ops.infer(x, params, self._formula)
        draw = ops.new_draw() if self.training and self._drops else None
        if not (self.training and self._has_statistics):
            return ops.forward(x, params, draw, self._formula, not self.training)[0]
        running = [p for p, is_running in zip(params, self._runs) if is_running]
        # A graph keeps the averages of its own time: these go on.
        params = [p.clone() if is_running else p for p, is_running in zip(params, self._runs)]
        y, record = ops.forward(x, params, draw, self._formula, False)
        torch.ops.resblock.update_statistics(record, running, self._formula, self.momentum)
        for name, buffer in self.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.add_(1)
        return y

    @staticmethod
    def refresh() -> None:
        """Forgets all packed copies."""
        ops._cache._entries.clear()

    def extra_repr(self) -> str:
        """The formulas."""
        return ", ".join(map(repr, self.formulas))
