"""Threads of calls: as many as PyTorch's, and the same ones."""

from __future__ import annotations

import pathlib

import torch

from .. import _native


def _share_openmp() -> bool:
    """Calls run on the threads of PyTorch's OpenMP runtime, if that is GCC's: threads of a pool of our own would take turns with them."""
    libraries = pathlib.Path(torch.__file__).parent / "lib"
    return any(_native.use_openmp(str(path)) for path in sorted(libraries.glob("libgomp*.so*")))


SHARES_OPENMP = _share_openmp()
"""Whether they are the same ones."""


def threads() -> int:
    """How many a call uses."""
    return _native.num_threads() or torch.get_num_threads()
