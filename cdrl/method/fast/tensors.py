"""Functions over all tensors inside frozen dataclasses and tuples."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["map_tensors", "tensors_of"]

Tree = TypeVar("Tree")


def map_tensors(tree: Tree, function: Callable[[Tensor], Any]) -> Tree:
    """The same structure with `function` of every tensor; whatever is neither tensor nor structure stays."""
    result: Any = tree
    if isinstance(tree, Tensor):
        result = function(tree)
    elif isinstance(tree, tuple):
        parts = [map_tensors(part, function) for part in tree]
        result = type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    elif is_dataclass(tree) and not isinstance(tree, type):
        named = {field.name: map_tensors(getattr(tree, field.name), function) for field in fields(tree)}
        result = replace(tree, **named)
    return result


def tensors_of(tree: object) -> list[Tensor]:
    """Every tensor of a structure, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(tree, keep)
    return found
