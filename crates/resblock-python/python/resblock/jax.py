"""Fused residual blocks for JAX on the CPU, with gradients, under ``jit``: custom calls of XLA's on XLA's own threads.

    >>> import jax, jax.numpy as jnp, resblock.jax
    >>> block = resblock.jax.Fused(resblock.BlockForm.gpt2(64, 256))  # x + W2 gelu(W1 LN(x) + b1) + b2
    >>> params = block.init(seed=1)
    >>> loss = lambda params, x: block(params, x).sum()
    >>> grads = jax.jit(jax.grad(loss))(params, jnp.ones((2, 64)))
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from . import _native
from .forms import Formula
from .function import Function

for _name, _target in _native.xla_targets():
    jax.ffi.register_ffi_target(_name, _target, platform="cpu")

Array = jax.Array


def _threads() -> np.int64:
    return np.int64(_native.num_threads())


class Fused:
    """One formula, or several one after the other, as a function of parameters and x.

    x has any leading dimensions; its last one is the features. Parameters are a dictionary by name, float32, weights (outputs, inputs). Gradients reach x
    and all parameters that are learned. ``vmap`` goes through its elements one after the other: leading dimensions of x are faster.
    """

    def __init__(self, formulas: Formula | Sequence[Formula], keep: str | tuple[int, int] = "all") -> None:
        self.function = Function(formulas, keep)

        @functools.partial(jax.custom_vjp, nondiff_argnums=())
        def call(x: Array, draw: Array, params: tuple[Array, ...]) -> Array:
            return self._forward(x, draw, params, recorded=False)[0]

        def forward(x: Array, draw: Array, params: tuple[Array, ...]) -> tuple[Array, tuple[Array, tuple[Array, ...]]]:
            y, record = self._forward(x, draw, params, recorded=True)
            return y, (record, params)

        def backward(kept: tuple[Array, tuple[Array, ...]], dy: Array) -> tuple[object, ...]:
            record, params = kept
            return self._backward(dy, record, params)

        call.defvjp(forward, backward)
        self._call = call

    @property
    def names(self) -> list[str]:
        """The parameters."""
        return self.function.names

    def init(self, seed: int = 0) -> dict[str, Array]:
        """New parameters."""
        return {name: jnp.asarray(value) for name, value in zip(self.names, self.function.init(seed))}

    def __call__(self, params: dict[str, Array], x: Array, *, key: Array | None = None) -> Array:
        """y. ``key``: of ``jax.random``, what elements are dropped by; without one nothing is dropped. A BatchNorm normalises by the running
        averages."""
        missing = [name for name in self.names if name not in params]
        if missing:
            raise ValueError(f"resblock: params: there is no {missing[0]}")
        ordered = tuple(params[name] for name in self.names)
        for name, shape, p in zip(self.names, self.function.shapes, ordered):
            if p.dtype != jnp.float32:
                raise TypeError(f"resblock: {name}: expected float32, found {p.dtype}")
            if p.shape != shape:
                raise ValueError(f"resblock: {name}: expected shape {shape}, found {p.shape}")
        if x.dtype != jnp.float32:
            raise TypeError(f"resblock: x: expected float32, found {x.dtype}")
        if x.ndim == 0 or x.shape[-1] != self.function.inputs:
            raise ValueError(f"resblock: x: expected {self.function.inputs} features in the last dimension, found shape {x.shape}")
        draw = jnp.zeros(0, jnp.uint32) if key is None else jax.random.bits(key, (3,), jnp.uint32)
        return self._call(x, draw, ordered)

    def _forward(self, x: Array, draw: Array, params: tuple[Array, ...], recorded: bool) -> tuple[Array, ...]:
        lead = x.shape[:-1]
        results = [jax.ShapeDtypeStruct((*lead, self.function.outputs), jnp.float32)]
        drawn = draw.size > 0
        # What is dropped is dropped in recorded passes alone.
        if recorded or drawn:
            results.append(jax.ShapeDtypeStruct((self.function.record_len(math.prod(lead)),), jnp.float32))
        call = jax.ffi.ffi_call("resblock_forward", results, vmap_method="sequential")
        draw = draw if drawn else jnp.zeros(3, jnp.uint32)
        return tuple(
            call(
                x,
                draw,
                *params,
                formula=self.function.description,
                drawn=np.int64(drawn),
                frozen=np.int64(1),
                threads=_threads(),
            )
        )

    def _backward(self, dy: Array, record: Array, params: tuple[Array, ...]) -> tuple[object, ...]:
        learned = [not role.startswith("running") for role in self.function.roles]
        results = [jax.ShapeDtypeStruct((*dy.shape[:-1], self.function.inputs), jnp.float32)]
        results += [jax.ShapeDtypeStruct(p.shape, jnp.float32) for p, learns in zip(params, learned) if learns]
        call = jax.ffi.ffi_call("resblock_backward", results, vmap_method="sequential")
        dx, *grads = call(dy, record, *params, formula=self.function.description, threads=_threads())
        rest = iter(grads)
        return dx, None, tuple(next(rest) if learns else jnp.zeros_like(p) for p, learns in zip(params, learned))
