"""JAX with our call against JAX's own operations, jitted, by turns in one process: medians, and theirs over ours.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python examples/race_jax.py    # one thread
    python examples/race_jax.py                                                            # all of them
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import resblock
import resblock.jax

SHAPES = [(64, 384, 1536, 1), (256, 256, 256, 1), (1, 768, 3072, 1), (64, 64, 64, 50)]
FORMS = {"pre-LN GELU": resblock.BlockForm.vit, "SwiGLU": resblock.BlockForm.llama}


def plain(form, depth):
    """The same in JAX's own operations, with our parameters."""

    def block(p, x):
        e = form.pre_norm.epsilon
        if form.gated:
            n = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + e) * p["pre_norm.gain"]
            h = jax.nn.silu(n @ p["first.weight"].T) * (n @ p["third.weight"].T)
            return x + h @ p["second.weight"].T
        centred = x - x.mean(-1, keepdims=True)
        n = centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + e) * p["pre_norm.gain"] + p["pre_norm.shift"]
        h = jax.nn.gelu(n @ p["first.weight"].T + p["first.bias"], approximate=False)
        return x + h @ p["second.weight"].T + p["second.bias"]

    def net(params, x):
        for layer in range(depth):
            prefix = f"layers.{layer}." if depth > 1 else ""
            x = block({k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}, x)
        return x

    return net


def race(calls, seconds):
    times = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            jax.block_until_ready(call())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            begun = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(all) * 1e6 for name, all in times.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    resblock.set_num_threads(cores if cores > 1 else 1)
    print(f"JAX {jax.__version__}, {cores} cores")
    ratios = {"forward": [], "train": []}
    for kind, make in FORMS.items():
        for n, d, h, depth in SHAPES:
            form = make(d, h)
            fused = resblock.jax.Fused([form] * depth)
            params = {k: v / np.sqrt(depth) if k.endswith("weight") else v for k, v in fused.init(1).items()}
            x = jnp.asarray(np.random.default_rng(0).normal(size=(n, d)).astype(np.float32))
            nets = {"ours": fused, "theirs": plain(form, depth)}

            def step(net):
                def both(params, x):
                    y, back = jax.vjp(net, params, x)
                    return back(y)

                return jax.jit(both)

            difference = float(jnp.abs(nets["ours"](params, x) - nets["theirs"](params, x)).max())
            forward = {name: (lambda f=jax.jit(net): f(params, x)) for name, net in nets.items()}
            train = {name: (lambda f=step(net): f(params, x)) for name, net in nets.items()}
            for what, calls in [("forward", forward), ("train", train)]:
                found = race(calls, args.seconds)
                ratios[what].append(found["theirs"] / found["ours"])
                print(f"{kind:12} ({n},{d},{h}) x {depth:2} {what:8} ours {found['ours']:9.1f} us; theirs over ours {ratios[what][-1]:.2f}; differ by {difference:.1e}", flush=True)
    for what, all in ratios.items():
        print(f"geometric mean, {what}: {statistics.geometric_mean(all):.2f}")
    form = resblock.BlockForm(128, 128, activation="relu")
    fused, x = resblock.jax.Fused(form), jnp.ones((1, 128))
    params = fused.init(1)
    core, plain_params, plain_x = fused.function, [np.asarray(p) for p in fused.init(1).values()], np.ones((1, 128), np.float32)
    forward, both = jax.jit(fused), jax.jit(lambda p, x: jax.vjp(fused, p, x)[1](x))
    found = race({"NumPy": lambda: core(plain_x, plain_params, threads=1), "forward": lambda: forward(params, x), "forward and backward": lambda: both(params, x)}, 1)
    print("border at (1,128,128), us: " + ", ".join(f"{name} {time:.1f}" for name, time in found.items()))


main()
