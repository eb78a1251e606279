"""The calls of JAX."""

import ctypes
import pathlib
import subprocess

import numpy as np
import pytest
from conftest import FORMS, noisy, rows

import resblock

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import resblock.jax  # noqa: E402


@pytest.mark.parametrize("jit", [False, True])
def test_bits_are_those_of_the_core(form, jit):
    fused = resblock.jax.Fused(form)
    function, x = fused.function, rows(3, 7, 48)
    plain = noisy(function)
    params = dict(zip(fused.names, map(jnp.asarray, plain)))
    y, record = function.forward(x, plain)
    dy = np.cos(y)
    dx, grads = function.backward(dy, record, plain)

    def both(params, x, dy):
        y, back = jax.vjp(fused, params, x)
        return y, *back(dy)

    found, dparams, dx2 = (jax.jit(both) if jit else both)(params, x, dy)
    assert np.array_equal(found, y) and np.array_equal(dx2, dx)
    assert all(np.array_equal(dparams[name], grad) for name, grad in zip(fused.names, grads))
    assert np.array_equal(jax.jit(fused)(params, x), y)


def test_gradients_are_those_of_jaxs_operations():
    fused = resblock.jax.Fused(FORMS["gpt2"])
    params = dict(zip(fused.names, map(jnp.asarray, noisy(fused.function))))
    x = jnp.asarray(rows(9, 48))

    def own(p, x):
        centred = x - x.mean(-1, keepdims=True)
        n = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["pre_norm.gain"] + p["pre_norm.shift"]
        h = jax.nn.gelu(n @ p["first.weight"].T + p["first.bias"], approximate=True)
        return x + h @ p["second.weight"].T + p["second.bias"]

    loss = lambda f: jax.jit(jax.grad(lambda p, x: jnp.sin(f(p, x)).sum(), argnums=(0, 1)))(params, x)
    for a, b in zip(jax.tree.leaves(loss(fused)), jax.tree.leaves(loss(own)), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max())), np.abs(a - b).max()


def test_vmap_and_dropout():
    form = resblock.BlockForm.gpt2(48, 80)
    fused = resblock.jax.Fused(form)
    params, x = fused.init(1), jnp.asarray(rows(4, 5, 48))
    assert np.array_equal(jax.vmap(lambda x: fused(params, x))(x), fused(params, x))
    import dataclasses

    dropped = resblock.jax.Fused(dataclasses.replace(form, dropout=resblock.Dropout(hidden=0.5)))
    call = jax.jit(lambda key: dropped(params, x, key=key))
    first, again, other = call(jax.random.key(1)), call(jax.random.key(1)), call(jax.random.key(2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(dropped(params, x), fused(params, x))


def test_bad_arrays_are_errors_and_the_host_goes_on():
    fused = resblock.jax.Fused(FORMS["gpt2"])
    params, x = fused.init(1), jnp.asarray(rows(6, 48))
    bad = [
        (TypeError, "x: expected float32", lambda: fused(params, x.astype(jnp.bfloat16))),
        (TypeError, "first.weight: expected float32", lambda: fused({**params, "first.weight": params["first.weight"].astype(jnp.float16)}, x)),
        (ValueError, "x: expected 48 features", lambda: fused(params, x[:, 1:])),
        (ValueError, "first.weight: expected shape", lambda: fused({**params, "first.weight": params["second.weight"]}, x)),
        (ValueError, "there is no pre_norm.gain", lambda: fused({k: v for k, v in params.items() if k != "pre_norm.gain"}, x)),
    ]
    for kind, text, call in bad:
        with pytest.raises(kind, match=text):
            call()
    assert fused(params, x[:0]).shape == (0, 48)
    grads = jax.grad(lambda p: fused(p, x[:0]).sum())(params)
    assert all((g == 0).all() for g in grads.values())
    y = fused(params, x.at[2, 5].set(jnp.nan))
    assert np.isnan(y[2]).all() and np.array_equal(np.delete(y, 2, 0), np.delete(fused(params, x), 2, 0))


def test_errors_of_the_core_come_through_xla():
    result = jax.ShapeDtypeStruct((2, 48), jnp.float32)
    call = jax.ffi.ffi_call("resblock_forward", [result], vmap_method="sequential")
    with pytest.raises(Exception, match="params: expected 6"):
        attributes = {"formula": resblock.jax.Fused(FORMS["gpt2"]).function.description, "threads": np.int64(1)}
        jax.block_until_ready(call(jnp.ones((2, 48)), jnp.zeros(3, jnp.uint32), drawn=np.int64(0), frozen=np.int64(1), **attributes))


def test_structs_are_those_of_the_header_that_jaxlib_ships(tmp_path):
    """Sizes and offsets that the Rust side relies on, by a C compiler."""
    facts = {
        "sizeof(XLA_FFI_Extension_Base)": 24,
        "offsetof(XLA_FFI_Metadata_Extension, metadata)": 24,
        "offsetof(XLA_FFI_Metadata, api_version)": 8,
        "offsetof(XLA_FFI_Metadata, traits)": 32,
        "sizeof(XLA_FFI_Api_Version)": 24,
        "offsetof(XLA_FFI_Buffer, data)": 24,
        "offsetof(XLA_FFI_Buffer, dims)": 40,
        "sizeof(XLA_FFI_Args)": 40,
        "sizeof(XLA_FFI_Attrs)": 48,
        "offsetof(XLA_FFI_CallFrame, args)": 40,
        "offsetof(XLA_FFI_CallFrame, attrs)": 120,
        "offsetof(XLA_FFI_Error_Create_Args, errc)": 24,
        "offsetof(XLA_FFI_ThreadPool_Schedule_Args, data)": 32,
        "offsetof(XLA_FFI_ThreadPool_NumThreads_Args, num_threads)": 24,
        "offsetof(XLA_FFI_Api, XLA_FFI_Error_Create)": 48,
        "offsetof(XLA_FFI_Api, XLA_FFI_Error_Destroy)": 64,
        "offsetof(XLA_FFI_Api, XLA_FFI_ThreadPool_Schedule)": 136,
        "offsetof(XLA_FFI_Api, XLA_FFI_ThreadPool_NumThreads)": 144,
        "XLA_FFI_DataType_F32": 11,
        "XLA_FFI_DataType_S64": 5,
        "XLA_FFI_DataType_U32": 8,
        "XLA_FFI_AttrType_SCALAR": 3,
        "XLA_FFI_AttrType_STRING": 4,
        "XLA_FFI_ExecutionStage_EXECUTE": 3,
        "XLA_FFI_API_MAJOR": 0,
    }
    source = tmp_path / "facts.c"
    lines = [f'_Static_assert({what} == {value}, "{what}");' for what, value in facts.items()]
    source.write_text('#include <stddef.h>\n#include "xla/ffi/api/c_api.h"\n' + "\n".join(lines) + "\n")
    include = pathlib.Path(jax.ffi.include_dir())
    done = subprocess.run(["cc", "-std=c11", "-fsyntax-only", f"-I{include}", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ctypes.sizeof(ctypes.c_void_p) == 8
