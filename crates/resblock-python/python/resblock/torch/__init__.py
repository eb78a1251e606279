"""Fused residual blocks for PyTorch on the CPU, with gradients, in eager mode and under ``torch.compile``.

    >>> import torch, resblock.torch
    >>> block = resblock.torch.Fused(resblock.BlockForm.gpt2(64, 256))  # x + W2 gelu(W1 LN(x) + b1) + b2
    >>> block(torch.randn(2, 16, 64)).sum().backward()

``swap(model)`` puts them in the place of the feed-forward blocks of a model of Hugging Face's or timm's, and ``unswap(model)`` takes them out again.
"""

from .module import Fused
from .ops import fused
from .swap import Swapped, swap, unswap

__all__ = ["Fused", "Swapped", "fused", "swap", "unswap"]
