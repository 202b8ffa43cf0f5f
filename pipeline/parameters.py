"""What may be asked of a pipeline: known names, types and ranges, looked at before anything runs or is sent."""

import difflib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from cdrl.config import Config, tree_digest
from cdrl.errors import ConfigError

__all__ = ["from_config", "resolve", "split"]

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]"
RANGES: dict[str, tuple[int, int]] = {
    "workers": (0, 10_000),
    "max_bad": (0, 10**9),
    "num_trials": (0, 10_000),
    "trial_updates": (1, 10**9),
    "num_updates": (1, 10**9),
    "max_sets": (0, 100),
    "seed": (0, 2**63 - 1),
}
PATTERNS = {
    "run": (NAME + "{0,57}", "up to 58 letters, digits, - and _"),  # a sweep's name has six more
    "model": (r"[a-z0-9][a-z0-9-]{0,39}", "the `name` of its configuration"),
    "version": (NAME + "{0,63}", "a number, latest, or a run"),
    "address": (r"local|kuberay|https?://[^\s@]+", "local, http://HOST:8265 or kuberay"),
    "config": (r"[^\s-]\S*", "a preset or a YAML file"),
    "source": (r"[^\s-]\S*", "digits, torchvision:NAME, ..."),
    "space": (r"[^\s-]\S*", "what `cdrl tune --space` takes"),
    "data": (r"[^\s-]\S*", "a path or s3://bucket/key"),
    "root": (r"[^\s-]\S*", "a folder"),
    "storage": (r"(?:[^\s-]\S*)?", "empty, a path or s3://bucket/key"),
    "tracking": (r"(?:[^\s-]\S*)?", "empty or the URI of an MLflow server"),
}


def split(pairs: list[str]) -> dict[str, str]:
    """`NAME=VALUE`, each name once.

    Raises:
        ConfigError: it is none.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or name in found:
            raise ConfigError(f"--set {pair!r}: expected PARAMETER=VALUE, each parameter once")
        found[name] = value
    return found


def from_config(config: Config, name: str, source: str | None, place: str) -> dict[str, Any]:
    """What a configuration tells of a pipeline's parameters; the pipeline's own defaults are those of the digits.

    Args:
        name: of the preset or the file.
        source: of the images, if somebody named it.
        place: folder or URI that datasets lie below.

    Raises:
        ConfigError: nothing says where its data come from.
    """
    if source is None and not config.data.uri.endswith("/digits"):
        raise ConfigError(f"config {name}: where do its images come from? Say --set source=torchvision:CIFAR10")
    return {
        "config": name,
        "data": f"{place}/{(source or 'digits').rpartition(':')[2].lower()}",
        "model": config.name,
        "num_updates": config.training.num_updates,
        "trial_updates": min(200, config.training.num_updates),
        "max_sets": config.gates.max_sets,
        "seed": int(f"{datetime.now(UTC):%Y%m%d}"),
    }


def resolve(spec: Mapping[str, Any], asked: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of a compiled pipeline: as asked, else as usual here, else the pipeline's default.

    A `run` that nobody named is named after the model and all other parameters: the same question finds it again.

    Raises:
        ConfigError: a parameter is unknown, of the wrong type, out of range, missing, or holds a password.
    """
    known = spec["root"]["inputDefinitions"]["parameters"]
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            pipeline = spec["pipelineInfo"]["name"]
            raise ConfigError(f"pipeline {pipeline} has no parameter {name!r}{hint}; it has {', '.join(known)}")
    defaults = {name: each["defaultValue"] for name, each in known.items() if "defaultValue" in each}
    chosen = {**defaults, **{name: value for name, value in usual.items() if name in known}, **asked}
    found = {name: _checked(name, known[name]["parameterType"], value) for name, value in chosen.items()}
    if "run" in known and "run" not in found:
        found["run"] = f"{found.get('model') or found['config']}-{tree_digest(found)[:8]}"
        _checked("run", "STRING", found["run"])
    return {name: found[name] for name in known}


def _checked(name: str, kind: str, value: Any) -> Any:
    if kind == "NUMBER_INTEGER":
        low, high = RANGES[name]
        try:
            number = int(value)
            is_whole = number == float(value)
        except ValueError:
            is_whole = False
        if not is_whole or not low <= number <= high:
            raise ConfigError(f"parameter {name}: expected a whole number {low} ... {high}, got {value!r}")
        return number
    text = str(value)
    pattern, expected = PATTERNS[name]
    if not re.fullmatch(pattern, text):
        raise ConfigError(f"parameter {name}: expected {expected}, got {text!r}")
    if "://" in text and urlsplit(text).password:
        raise ConfigError(f"parameter {name}: it holds a password, and many see parameters; use the environment")
    return text
