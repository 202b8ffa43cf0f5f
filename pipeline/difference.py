"""How two compiled pipelines differ, line by line."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cdrl.errors import ConfigError

__all__ = ["difference", "read"]

Documents = list[dict[str, Any]]


def read(path: Path) -> Documents:
    """A compiled pipeline's documents.

    Raises:
        ConfigError: there is none.
    """
    try:
        found = [each for each in yaml.safe_load_all(path.read_text()) if each]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        found = []
    if not found or not all(isinstance(each, dict) for each in found) or "root" not in found[0]:
        raise ConfigError(f"{path}: not a compiled pipeline; `python -m pipeline compile` makes one")
    return found


def difference(a: Documents, b: Documents, names: tuple[str, str]) -> Iterator[str]:
    """Lines of a unified diff of what both say, whatever the order it stands in; none if they say the same."""
    return difflib.unified_diff(_lines(a), _lines(b), *names, lineterm="", n=2)


def _lines(documents: Documents) -> list[str]:
    """A line for each value, with the way to it: the way says what a changed line belongs to."""
    pairs = zip(("pipeline", "platform"), documents, strict=False)  # the second only if Kubernetes is asked for more
    return [line for way, each in pairs for line in _leaves(each, way)]


def _leaves(tree: Any, way: str) -> Iterator[str]:
    if isinstance(tree, dict) and tree:
        for key in sorted(tree):
            yield from _leaves(tree[key], f"{way}.{key}")
    elif isinstance(tree, list) and tree:
        for number, each in enumerate(tree):
            yield from _leaves(each, f"{way}[{number}]")
    else:
        yield f"{way}: {tree!r}"
