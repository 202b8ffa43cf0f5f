"""Counting what a piece of code launches: the same number on every machine, unlike a time."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["Count"]

_NO_KERNEL = {
    *("detach", "alias", "_unsafe_view"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}


class Count(TorchDispatchMode):
    """Counts tensor operations inside a `with` block; views and allocations are none.

    Attributes:
        operations: how often each operation ran, by its name in aten.
        flops: two for each multiply-add of matrix products and convolutions, forward and backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.flops = 0

    @property
    def kernels(self) -> int:
        """Operations in all: on a GPU each of them launches at least one kernel."""
        return self.operations.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        del types
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _NO_KERNEL:
            self.operations[name] += 1
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out
