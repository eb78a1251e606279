from collections.abc import Sequence
from typing import Any, final

__all__ = [
    "Function",
    "Packed",
    "ResblockError",
    "__version__",
    "conventions",
    "named_form",
    "num_threads",
    "set_num_threads",
    "stored",
    "use_openmp",
    "xla_targets",
]
__version__: str

class ResblockError(ValueError): ...

def conventions() -> list[str]: ...
def named_form(name: str, d: int, h: int) -> str: ...
def stored(form: str, convention: str) -> list[tuple[str, list[int], bool, tuple[int, int]]]: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def use_openmp(path: str) -> bool: ...
def xla_targets() -> list[tuple[str, Any]]: ...

@final
class Function:
    def __new__(cls, json: str) -> Function: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def tensors(self) -> list[tuple[str, str, int, int]]: ...
    @property
    def record_size(self) -> tuple[int, int]: ...
    def forward(
        self,
        x: Any,
        params: Sequence[Any],
        y: Any,
        record: Any | None = None,
        draw: tuple[int, int, int] | None = None,
        frozen: bool = False,
        threads: int | None = None,
    ) -> None: ...
    def backward(
        self,
        dy: Any,
        record: Any,
        params: Sequence[Any],
        dx: Any | None,
        grads: Sequence[Any | None],
        threads: int | None = None,
    ) -> None: ...
    def update_statistics(self, record: Any, momentum: float, running: Sequence[Any | None]) -> None: ...
    def pack(self, params: Sequence[Any]) -> Packed: ...

@final
class Packed:
    def infer(self, x: Any, y: Any, threads: int | None = None) -> None: ...
