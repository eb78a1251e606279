#!/usr/bin/env python3
"""The same model, vectors and fine-tuning in PyTorch, to compare with. Wants torch and safetensors.

    minilm embed --dump target/minilm/vectors.json        then   reference.py embed
    minilm finetune --export target/minilm/glosses.json   then   reference.py finetune
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

HEADS, LAYERS, EPSILON, BATCH = 12, 6, 1e-12, 32
MASK = (1 << 64) - 1


class Numbers:
    """SplitMix64, as src/data.rs has it."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def unit(self):
        return (self.next() >> 40) / (1 << 24) * 2 - 1

    def order(self, n):
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.next() % (i + 1)
            order[i], order[j] = order[j], order[i]
        return order


class Encoder(torch.nn.Module):
    def __init__(self, parameters):
        super().__init__()
        self.p = parameters

    def linear(self, name, x):
        return F.linear(x, self.p[name + ".weight"], self.p[name + ".bias"])

    def norm(self, name, x):
        return F.layer_norm(x, (384,), self.p[name + ".weight"], self.p[name + ".bias"], EPSILON)

    def forward(self, ids, mask):
        e = "embeddings."
        x = self.p[e + "word_embeddings.weight"][ids] + self.p[e + "position_embeddings.weight"][: ids.shape[1]]
        x = self.norm(e + "LayerNorm", x + self.p[e + "token_type_embeddings.weight"][0])
        bias = (mask[:, None, None, :] - 1) * 1e9
        for i in range(LAYERS):
            at = f"encoder.layer.{i}."
            split = lambda name: self.linear(at + "attention.self." + name, x).unflatten(2, (HEADS, -1)).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(split("query"), split("key"), split("value"), attn_mask=bias)
            mixed = self.linear(at + "attention.output.dense", mixed.transpose(1, 2).flatten(2))
            x = self.norm(at + "attention.output.LayerNorm", x + mixed)
            h = F.gelu(self.linear(at + "intermediate.dense", x))
            x = self.norm(at + "output.LayerNorm", x + self.linear(at + "output.dense", h))
        return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def batch(all_ids):
    longest = max(map(len, all_ids))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in all_ids])
    mask = torch.tensor([[1.0] * len(ids) + [0.0] * (longest - len(ids)) for ids in all_ids])
    return ids, mask


def embed(options, parameters):
    dump = json.load(open(options.folder + "/vectors.json"))
    theirs = torch.tensor(dump["vectors"])
    batches = [batch(dump["ids"][at : at + BATCH]) for at in range(0, len(dump["ids"]), BATCH)]
    encoder = Encoder(parameters)
    with torch.inference_mode():
        found = torch.cat([F.normalize(encoder(*some)) for some in batches])
        print(f"largest difference of {len(theirs)} vectors: {(found - theirs).abs().max():.1e}")
        kinds = [("eager", encoder)]
        if options.compile:
            kinds.append(("compiled", torch.compile(encoder, dynamic=True)))
        for name, kind in kinds:
            best = 0
            [kind(*some) for some in batches]
            until = time.perf_counter() + options.seconds
            while time.perf_counter() < until:
                start = time.perf_counter()
                for some in batches:
                    F.normalize(kind(*some))
                best = max(best, len(theirs) / (time.perf_counter() - start))
            print(f"sentences a second, {torch.get_num_threads()} threads, best: PyTorch {torch.__version__} {name} {best:.0f}")


def finetune(options, parameters):
    glosses = json.load(open(options.folder + "/glosses.json"))
    train, test = glosses["train"], glosses["test"]
    classes = max(gloss["class"] for gloss in train) + 1
    curves = []
    for seed in range(1, options.seeds + 1):
        p = {name: value.clone() for name, value in parameters.items()}
        trained = [n for n in sorted(p) if n.startswith("encoder.layer.") and ".attention." not in n]
        for name in trained:
            p[name].requires_grad_(True)
        encoder, numbers = Encoder(p), Numbers(seed)
        bound = torch.tensor(1.0) / torch.tensor(384.0).sqrt()
        weight = torch.tensor([numbers.unit() for _ in range(classes * 384)]).mul(bound).reshape(classes, 384)
        weight, bias = weight.requires_grad_(True), torch.zeros(classes, requires_grad=True)
        settings = dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        optimizers = [
            torch.optim.AdamW([p[name] for name in trained], lr=5e-5, **settings),
            torch.optim.AdamW([weight, bias], lr=1e-3, **settings),
        ]
        run = torch.compile(encoder, dynamic=True) if options.compile else encoder
        losses, accuracy, times = [], [], []
        for _ in range(options.epochs):
            order = numbers.order(len(train))
            for at in range(0, len(order) // BATCH * BATCH, BATCH):
                some = [train[i] for i in order[at : at + BATCH]]
                ids, mask = batch([gloss["ids"] for gloss in some])
                labels = torch.tensor([gloss["class"] for gloss in some])
                start = time.perf_counter()
                for one in optimizers:
                    one.zero_grad()
                loss = F.cross_entropy(F.linear(run(ids, mask), weight, bias), labels)
                loss.backward()
                for one in optimizers:
                    one.step()
                times.append((time.perf_counter() - start) * 1e3)
                losses.append(loss.item())
            right = 0
            with torch.inference_mode():
                for at in range(0, len(test), BATCH):
                    some = test[at : at + BATCH]
                    found = F.linear(encoder(*batch([gloss["ids"] for gloss in some])), weight, bias).argmax(1)
                    right += (found == torch.tensor([gloss["class"] for gloss in some])).sum().item()
            accuracy.append(right / len(test))
        name = "pytorch compiled" if options.compile else "pytorch"
        step = statistics.median(times)
        held_out = ", ".join(f"{100 * a:.1f} %" for a in accuracy)
        print(f"{name} seed {seed}: loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last, held out {held_out}, {step:.0f} ms a step")
        curves.append(dict(name=name, seed=seed, losses=losses, accuracy=accuracy, step_ms=step))
    json.dump(curves, open(options.folder + "/pytorch.json", "w"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["embed", "finetune"])
    parser.add_argument("--folder", default="target/minilm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parameters = load_file(options.folder + "/model.safetensors")
    {"embed": embed, "finetune": finetune}[options.command](options, parameters)


main()
