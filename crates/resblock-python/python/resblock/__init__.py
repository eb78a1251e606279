"""Fused SIMD, multithreaded CPU kernels for residual blocks, forward and backward, with the same bits on every CPU and thread count.

    >>> import numpy as np, resblock
    >>> block = resblock.Function(resblock.BlockForm.gpt2(64, 256))
    >>> params = block.init(seed=1)
    >>> y, record = block.forward(np.ones((2, 64), np.float32), params)
    >>> dx, grads = block.backward(np.ones_like(y), record, params)

PyTorch is served by ``resblock.torch``, JAX by ``resblock.jax``.
"""

from ._native import ResblockError, __version__, conventions, num_threads, set_num_threads
from .forms import BlockForm, BranchScale, Dropout, Linear, Norm, NormLayer, Skip
from .function import Function

__all__ = [
    "BlockForm",
    "BranchScale",
    "Dropout",
    "Function",
    "Linear",
    "Norm",
    "NormLayer",
    "ResblockError",
    "Skip",
    "__version__",
    "conventions",
    "num_threads",
    "set_num_threads",
]
