"""Formulas as functions of NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from . import _native
from .forms import BlockForm, Formula, describe

Array = npt.NDArray[np.float32]


class Function:
    """One formula, or several one after the other, compiled: a function of x and of parameters, which the caller keeps.

    x has any leading dimensions; its last one is the features. Arrays are float32; strides are read as they are, where all leading dimensions together
    have one. Calls release the GIL. ``keep``: what forward records: ``"all"``, ``"inputs"`` (backward computes the rest again; the same bits) or
    (bytes, rows).
    """

    def __init__(self, formulas: Formula | Sequence[Formula], keep: str | tuple[int, int] = "all") -> None:
        self.formulas: tuple[Formula, ...] = tuple(formulas) if isinstance(formulas, Sequence) else (formulas,)
        self.description = describe(self.formulas, keep)
        self._native = _native.Function(self.description)

    @property
    def inputs(self) -> int:
        """Features of x."""
        return self._native.inputs

    @property
    def outputs(self) -> int:
        """Features of y."""
        return self._native.outputs

    @property
    def names(self) -> list[str]:
        """The parameters, in the order of calls."""
        return [name for name, *_ in self._native.tensors]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Their shapes: weights are (outputs, inputs)."""
        return [(rows, cols) if role == "weight" else (cols,) for _, role, rows, cols in self._native.tensors]

    @property
    def roles(self) -> list[str]:
        """What each is: ``weight``, ``bias``, ``gain``, ``shift``, ``scale``, ``running_mean``, ``running_var``."""
        return [role for _, role, *_ in self._native.tensors]

    def record_len(self, rows: int) -> int:
        """Floats of the record of so many rows."""
        fixed, each = self._native.record_size
        return fixed + rows * each

    def init(self, seed: int = 0) -> list[Array]:
        """New parameters: weights by He et al. 2015, times the form's ``init_scales``; the rest as each role begins."""
        rng = np.random.default_rng(seed)
        made: list[Array] = []
        for name, role, rows, cols in self._native.tensors:
            form = self.formulas[int(name.split(".")[1]) if len(self.formulas) > 1 else 0]
            if role == "weight":
                second = 1 if ".second." in f".{name}" else 0
                scale = form.init_scales[second] if isinstance(form, BlockForm) else 1.0
                values = rng.normal(0.0, scale * math.sqrt(2.0 / max(cols, 1)), (rows, cols)).astype(np.float32)
            elif role == "scale" and isinstance(form, BlockForm):
                values = np.full(cols, form.branch_scale.value, np.float32)
            else:
                values = np.full(cols, 1.0 if role in ("gain", "running_var") else 0.0, np.float32)
            made.append(values)
        return made

    def __call__(self, x: Array, params: Sequence[Array], *, threads: int | None = None) -> Array:
        """y, and nothing is recorded."""
        rows, y = self._rows(x)
        self._native.forward(rows, self._checked(params), self._flat(y), threads=threads)
        return y

    def forward(
        self,
        x: Array,
        params: Sequence[Array],
        *,
        draw: tuple[int, int, int] | None = None,
        frozen: bool = False,
        threads: int | None = None,
    ) -> tuple[Array, Array]:
        """y and the record that backward reads, any number of times. ``draw``: what masks of dropout are drawn from: (seed, step, first row of the
        batch); without one nothing is dropped. ``frozen``: BatchNorms normalise by their running averages."""
        rows, y = self._rows(x)
        record = np.empty(self.record_len(len(rows)), np.float32)
        self._native.forward(rows, self._checked(params), self._flat(y), record, draw, frozen, threads)
        return y, record

    def backward(
        self,
        dy: Array,
        record: Array,
        params: Sequence[Array],
        *,
        wanted: Sequence[bool] | None = None,
        need_dx: bool = True,
        threads: int | None = None,
    ) -> tuple[Array | None, list[Array | None]]:
        """dx, and the gradient of each parameter that is learned and wanted, else None."""
        dy = np.asarray(dy)
        if dy.ndim == 0 or dy.shape[-1] != self.outputs:
            raise ValueError(f"dy: expected {self.outputs} features in the last dimension, found shape {dy.shape}")
        rows = _rows_of(dy)
        dx = np.empty((*dy.shape[:-1], self.inputs), np.float32) if need_dx else None
        wanted = [True] * len(self.names) if wanted is None else wanted
        grads: list[Array | None] = [
            np.empty(shape, np.float32) if want and not role.startswith("running") else None
            for shape, role, want in zip(self.shapes, self.roles, wanted, strict=True)
        ]
        flat = None if dx is None else dx.reshape(-1, self.inputs)
        self._native.backward(rows, record, self._checked(params), flat, grads, threads)
        return dx, grads

    def update_statistics(self, record: Array, params: Sequence[Array], momentum: float = 0.1) -> None:
        """Brings running averages among the parameters up to date, in place, with the batch of a recorded pass."""
        running = [p if role.startswith("running") else None for p, role in zip(params, self.roles, strict=True)]
        self._native.update_statistics(record, momentum, running)

    def pack(self, params: Sequence[Array]) -> Packed:
        """The function with a copy of parameters that do not change, laid out as kernels like them best. The same bits."""
        return Packed(self, self._native.pack(self._checked(params)))

    def _checked(self, params: Sequence[Array]) -> list[Array]:
        params = [np.asarray(p) for p in params]
        for name, shape, p in zip(self.names, self.shapes, params):
            if p.shape != shape and not (p.size == 1 and math.prod(shape) == 1):
                raise ValueError(f"{name}: expected shape {shape}, found {p.shape}")
        return [p if p.ndim == 2 or p.flags.c_contiguous else np.ascontiguousarray(p) for p in params]

    def _rows(self, x: Array) -> tuple[Array, Array]:
        x = np.asarray(x)
        if x.ndim == 0 or x.shape[-1] != self.inputs:
            raise ValueError(f"x: expected {self.inputs} features in the last dimension, found shape {x.shape}")
        return _rows_of(x), np.empty((*x.shape[:-1], self.outputs), np.float32)

    def _flat(self, y: Array) -> Array:
        return y.reshape(-1, self.outputs)


class Packed:
    """A :class:`Function` with its parameters."""

    def __init__(self, function: Function, native: _native.Packed) -> None:
        self.function, self._native = function, native

    def __call__(self, x: Array, *, threads: int | None = None) -> Array:
        """y."""
        rows, y = self.function._rows(x)
        self._native.infer(rows, self.function._flat(y), threads)
        return y


def _rows_of(x: Array) -> Array:
    """All leading dimensions as one: a view where they have one stride, which is not negative; else a copy."""
    x = x.reshape(-1, x.shape[-1]) if x.size else np.empty((math.prod(x.shape[:-1]), x.shape[-1]), x.dtype)
    return np.ascontiguousarray(x) if any(stride < 0 or stride % 4 for stride in x.strides) else x
