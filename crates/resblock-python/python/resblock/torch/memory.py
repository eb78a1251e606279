"""Memory that calls use again: records and gradients.

A training step makes as many bytes of gradients as there are parameters, and frees them. The system's allocator gives such pieces back to the kernel, which
clears their pages at the next step: more time than computing what is in them where batches are small. So pieces stay here while they are free. A
piece is free when no tensor shares its storage any more, in this process or another; those that nobody has asked for in a while are let go.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST = 1 << 16
"""Bytes from which on a piece is kept: smaller ones the allocator keeps itself."""
PATIENCE = 16
"""How many requests for each piece that there is may pass before one that is not asked for goes."""


class _Memory:
    def __init__(self) -> None:
        # By bytes: tensors that own a storage each, and the number of the request that had it last; the longest ago comes first.
        self._pieces: dict[int, deque[tuple[int, Tensor]]] = {}
        self._count = self._requests = 0
        self._lock = threading.Lock()

    def take(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, most: int | None = None) -> Tensor:
        """A tensor of any values, whose elements are dense, in memory that nobody else has. ``most``: how many pieces of its size are kept, for what
        callers may hold without end."""
        length = math.prod(size) * dtype.itemsize
        if length < LEAST:
            return torch.empty_strided(size, stride, dtype=dtype)
        with self._lock:
            self._requests += 1
            pieces = self._pieces.setdefault(length, deque())
            for _ in range(len(pieces)):
                last, owner = pieces.popleft()
                storage = owner.untyped_storage()
                if storage.is_shared():  # Another process may have it, whom nobody counts.
                    self._count -= 1
                    continue
                # The owner's share, and that of the storage object at hand.
                if torch._C._storage_Use_Count(storage._cdata) == 2 and storage.nbytes() == length:
                    break
                pieces.append((last, owner))
            else:
                if most is not None and len(pieces) >= most:
                    return torch.empty_strided(size, stride, dtype=dtype)
                owner = torch.empty(length, dtype=torch.uint8)
                storage = owner.untyped_storage()
                self._count += 1
            pieces.append((self._requests, owner))
            if self._requests % 256 == 0:
                self._let_go(PATIENCE * self._count)
            # Not a view of the owner, so that what is done to one is not seen in the other's version.
            return torch.empty(0, dtype=dtype).set_(storage, 0, size, stride)

    def _let_go(self, patience: int) -> None:
        for length, pieces in list(self._pieces.items()):
            kept = deque(piece for piece in pieces if self._requests - piece[0] <= patience)
            self._count -= len(pieces) - len(kept)
            if kept:
                self._pieces[length] = kept
            else:
                del self._pieces[length]

    def release(self) -> None:
        """Gives back all that is free."""
        with self._lock:
            self._let_go(-1)


MEMORY = _Memory()
"""That of all calls."""
OUTPUTS = 16
"""Outputs and gradients of inputs that are kept, of each size."""
