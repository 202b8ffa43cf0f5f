"""From a preset's name or a YAML file, with overrides, to a checked `Config`. A preset or file may name a `base`."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cdrl.config.schema import Config
from cdrl.errors import ConfigError

__all__ = ["load", "override", "presets", "validate"]


def presets() -> dict[str, str]:
    """Preset names with the first comment line of each file."""
    files = sorted(resources.files("cdrl").joinpath("presets").iterdir(), key=lambda file: file.name)
    named = {file.name.removesuffix(".yaml"): file.read_text() for file in files if file.name.endswith(".yaml")}
    return {name: text.splitlines()[0].lstrip("# ") for name, text in named.items()}


def load(source: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Resolve a preset name or a YAML file, then `a.b=value` overrides (values are YAML), to a Config.

    Raises:
        ConfigError: unknown preset, unreadable file, unknown key (with the nearest valid one), wrong type or range.
    """
    return validate(_overridden(_read(source), overrides), where=source)


def override(config: Config, overrides: list[str] | tuple[str, ...]) -> Config:
    """The configuration with `a.b=value` overrides, e.g. a finished run's for another evaluation.

    Raises:
        ConfigError: as `load`.
    """
    return validate(_overridden(config.model_dump(mode="json"), overrides), where="--set")


def validate(tree: dict[str, Any], where: str) -> Config:
    """Check a tree of plain values against the schema.

    Raises:
        ConfigError: naming the full path, what was found and, for an unknown key, the nearest valid name.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def _overridden(tree: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    for setting in overrides:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {setting!r}: expected a.b=value")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # a ValueError: what looks like a date and is none
            raise ConfigError(f"--set {path}: {text!r} is not YAML: {_one_line(error)}") from None
        tree = _merge(tree, _nest(path.split("."), value))
    return tree


def _read(source: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    if source in above:
        raise ConfigError(f"{source}: its base leads back to itself: {' -> '.join([*above, source])}")
    known = presets()
    path = Path(source)
    if source in known:
        text = resources.files("cdrl").joinpath("presets", f"{source}.yaml").read_text()
    elif path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text()
        except OSError as error:
            raise ConfigError(f"{source}: cannot read the file: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{source}: not a text file in UTF-8") from None
    else:
        nearest = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"presets: {', '.join(known)}"
        raise ConfigError(f"{source!r} is neither a preset nor a .yaml file; {hint}")
    try:
        tree = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected a mapping of settings, got {type(tree).__name__}")
    base = tree.pop("base", None)
    return tree if base is None else _merge(_read(str(base), (*above, source)), tree)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both_trees = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_trees else value
    return merged


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else _nest(path[1:], value)}


def _explain(error: Any) -> str:
    branches = ("tuple[", "literal[", "float", "int", "constrained")  # pydantic's names for the branches of a union
    path = [str(part) for part in error["loc"] if not str(part).startswith(branches)]
    dotted = ".".join(path)
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(path[-1], _fields(path[:-1]), n=1)
        valid = f"did you mean {nearest[0]!r}?" if nearest else f"valid here: {', '.join(_fields(path[:-1]))}"
        return f"{dotted}: unknown setting; {valid}"
    got = "" if isinstance(error["input"], dict) or error["type"] == "secret" else f", got {error['input']!r}"
    return f"{dotted}: {error['msg'].removeprefix('Value error, ')}{got}".removeprefix(": ")


def _fields(path: list[str]) -> list[str]:
    model: type[BaseModel] = Config
    for part in path:
        default = model.model_fields[part].default if part in model.model_fields else None
        if not isinstance(default, BaseModel):
            return []
        model = type(default)
    return list(model.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
