"""PyTorch with our operation against PyTorch's own, eager and compiled, by turns in one process: medians, and theirs over ours.

    python examples/race_torch.py --threads 1
"""

import argparse
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

import resblock
import resblock.torch

SHAPES = [(64, 384, 1536, 1), (256, 256, 256, 1), (1, 768, 3072, 1), (64, 64, 64, 50)]
FORMS = {"pre-LN GELU": resblock.BlockForm.vit, "SwiGLU": resblock.BlockForm.llama}


class Plain(nn.Module):
    """The same block in PyTorch's own operations."""

    def __init__(self, form: resblock.BlockForm):
        super().__init__()
        d, h = form.inputs, form.hidden
        self.gated = form.gated
        self.norm = nn.RMSNorm(d, form.pre_norm.epsilon) if self.gated else nn.LayerNorm(d, form.pre_norm.epsilon)
        self.first, self.second = nn.Linear(d, h, bias=form.biases), nn.Linear(h, d, bias=form.biases)
        if self.gated:
            self.third = nn.Linear(d, h, bias=form.biases)

    def forward(self, x):
        n = self.norm(x)
        h = F.silu(self.first(n)) * self.third(n) if self.gated else F.gelu(self.first(n))
        return x + self.second(h)


def contenders(form, depth, compiled):
    """Ours, and theirs with the same parameters."""
    ours = resblock.torch.Fused([form] * depth)
    theirs = nn.Sequential(*(Plain(form) for _ in range(depth)))
    for layer, block in enumerate(theirs):
        prefix = f"layers.{layer}." if depth > 1 else ""
        own = dict(ours.named_parameters())
        with torch.no_grad():
            for name, module in [("first", block.first), ("second", block.second), ("third", getattr(block, "third", None))]:
                if module is None:
                    continue
                own[f"{prefix}{name}.weight"].div_(math.sqrt(depth))
                module.weight.copy_(own[f"{prefix}{name}.weight"])
                if module.bias is not None:
                    module.bias.copy_(own[f"{prefix}{name}.bias"])
    all = {"ours": ours, "eager": theirs}
    if compiled:
        all["compiled"] = torch.compile(theirs)
        all["ours compiled"] = torch.compile(ours, fullgraph=True)
    return all


def infer(net, x):
    with torch.no_grad():
        return net(x)


def train(net, x):
    for p in net.parameters():
        p.grad = None
    x = x.detach().requires_grad_()
    y = net(x)
    y.backward(y)
    return x.grad


def race(nets, step, x, seconds):
    """Medians in microseconds, by turns."""
    times = {name: [] for name in nets}
    for net in nets.values():
        for _ in range(3):
            step(net, x)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, net in nets.items():
            begun = time.perf_counter()
            step(net, x)
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(all) * 1e6 for name, all in times.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    columns = ["eager"] if args.eager else ["eager", "compiled", "ours compiled"]
    ratios = {(what, column): [] for what in ("forward", "train") for column in columns}
    print(f"PyTorch {torch.__version__}, {args.threads} threads, ours the same: {resblock.torch.threads.SHARES_OPENMP}")
    for kind, make in FORMS.items():
        for n, d, h, depth in SHAPES:
            x = torch.randn(n, d)
            nets = contenders(make(d, h), depth, not args.eager)
            difference = (nets["ours"](x) - nets["eager"](x)).abs().max().item()
            for what, step in [("forward", infer), ("train", train)]:
                found = race(nets, step, x, args.seconds)
                line = ", ".join(f"{name} {found[name] / found['ours']:.2f}" for name in columns)
                print(f"{kind:12} ({n},{d},{h}) x {depth:2} {what:8} ours {found['ours']:9.1f} us; theirs over ours: {line}; differ by {difference:.1e}", flush=True)
                for name in columns:
                    ratios[what, name].append(found[name] / found["ours"])
    for (what, name), all in ratios.items():
        print(f"geometric mean, {what}, {name} over ours: {statistics.geometric_mean(all):.2f}")
    border()


def border():
    """What the border costs: one row of (1, 128, 128), where there is little else."""
    form = resblock.BlockForm(128, 128, activation="relu")
    core, module = resblock.Function(form), resblock.torch.Fused(form)
    params, x = [p.detach().numpy() for p in module.parameters_in_order()], torch.randn(1, 128)
    plain, dy = x.numpy(), torch.ones(1, 128)
    y, record = core.forward(plain, params, threads=1)
    net = {
        "NumPy, forward": lambda: core(plain, params, threads=1),
        "NumPy, forward and backward": lambda: core.backward(y, core.forward(plain, params, threads=1)[1], params, threads=1),
        "torch, forward": lambda: infer(module, x),
        "torch, forward and backward": lambda: train(module, x),
        "PyTorch's own, forward and backward": lambda: train(own, x),
    }
    own = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
    found = {name: [] for name in net}
    for _ in range(3000):
        for name, call in net.items():
            begun = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - begun)
    print("border at (1,128,128), us: " + ", ".join(f"{name} {statistics.median(all) * 1e6:.1f}" for name, all in found.items()))


main()
