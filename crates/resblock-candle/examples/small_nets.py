#!/usr/bin/env python3
"""The steps of small_nets.rs in PyTorch. Wants torch."""

import argparse
import statistics
import time

import torch

NETS = [
    ("Twin-Q, 2 x 24-256-256-1, 64 rows", [24, 256, 256, 1], torch.nn.ReLU, 64, 2),
    ("DQN, 8-64-64-4, 64 rows", [8, 64, 64, 4], torch.nn.ReLU, 64, 1),
    ("HIGGS, 28-5x300-1 tanh, 100 rows", [28, 300, 300, 300, 300, 300, 1], torch.nn.Tanh, 100, 1),
]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--seconds", type=float, default=3)
options = parser.parse_args()
torch.set_num_threads(options.threads)
print(f"PyTorch {torch.__version__}, {options.threads} threads; medians of a training step in µs: eager, its fused AdamW")
for name, widths, phi, batch, count in NETS:
    x, target = torch.randn(batch, widths[0]), torch.randn(batch, widths[-1])
    medians = []
    for fused in (False, True):
        nets = []
        for _ in range(count):
            layers = []
            for i, o in zip(widths, widths[1:]):
                layers += [torch.nn.Linear(i, o), phi()]
            nets.append(torch.nn.Sequential(*layers[:-1]))
        adam = torch.optim.AdamW([p for net in nets for p in net.parameters()], lr=1e-3, fused=fused)
        times = []
        until = time.perf_counter() + options.seconds / 2
        while time.perf_counter() < until:
            start = time.perf_counter()
            adam.zero_grad()
            sum(torch.nn.functional.mse_loss(net(x), target) for net in nets).backward()
            adam.step()
            times.append((time.perf_counter() - start) * 1e6)
        medians.append(statistics.median(times))
    print(f"{name:36} " + " ".join(f"{m:9.1f}" for m in medians))
