"""A training step of models of Hugging Face's and timm's, from their configuration with random weights, before and after ``resblock.torch.swap``: by turns in one
process, medians, and the largest differences of outputs and gradients.

    pip install transformers timm && python examples/swap_models.py --threads 2
"""

import argparse
import copy
import statistics
import time

import timm
import torch
import transformers

import resblock.torch


def models():
    """Base-sized blocks, few layers."""
    sizes = {"vocab_size": 1000, "num_hidden_layers": 4, "num_attention_heads": 12, "hidden_size": 768}
    torch.manual_seed(0)
    yield "BERT 768, 4 layers", transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=3072)), True
    gpt2 = transformers.GPT2Config(vocab_size=1000, n_embd=768, n_layer=4, n_head=12)
    yield "GPT-2 768, 4 layers", transformers.GPT2Model(gpt2), True
    llama = transformers.LlamaConfig(**sizes, intermediate_size=2048, num_key_value_heads=12)
    yield "Llama 768, 4 layers", transformers.LlamaModel(llama), True
    yield "ViT 384, 4 layers", timm.models.vision_transformer.VisionTransformer(embed_dim=384, depth=4, num_heads=6, num_classes=10), False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"PyTorch {torch.__version__}, {args.threads} threads; 2 x 64 tokens or 2 images")
    for name, model, tokens in models():
        model.eval()  # the same numbers from both: no dropout
        swapped = copy.deepcopy(model)
        done = resblock.torch.swap(swapped)
        assert done.replaced and not done.kept, done
        generator = torch.Generator().manual_seed(1)
        x = torch.randint(0, 1000, (2, 64), generator=generator) if tokens else torch.randn(2, 3, 224, 224, generator=generator)

        def output(net):
            return net(input_ids=x).last_hidden_state if tokens else net(x)

        def infer(net):
            with torch.no_grad():
                return output(net)

        def train(net):
            net.zero_grad()
            y = output(net)
            y.square().mean().backward()
            return y

        pair = {"before": model, "after": swapped}
        y = [train(net).detach() for net in pair.values()]
        grads = [[p.grad for p in net.parameters() if p.grad is not None] for net in pair.values()]
        apart = max(float((a - b).abs().max()) for a, b in zip(*grads, strict=True))
        line = f"{name}: outputs differ by {float((y[0] - y[1]).abs().max()):.1e}, gradients by {apart:.1e}"
        for what, step in [("forward", infer), ("training step", train)]:
            times = {key: [] for key in pair}
            for repeat in range(args.repeat + 2):
                for key, net in pair.items():
                    begun = time.perf_counter()
                    step(net)
                    if repeat >= 2:
                        times[key].append(time.perf_counter() - begun)
            before, after = (statistics.median(times[key]) * 1e3 for key in pair)
            line += f"; {what} {before:.1f} ms before, {after:.1f} after, {before / after:.2f}"
        print(line, flush=True)


main()
