"""The pages of the reference, written from the command line's own help, the configuration's schema and the presets."""

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import typer
from typer.cli import get_docs_for_click

from cdrl.cli import groups
from cdrl.config import Config, presets

__all__ = ["pages"]

BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
TYPES = {"boolean": "true or false", "integer": "whole number", "number": "number", "string": "text", "null": "null"}


def pages() -> dict[str, str]:
    """Markdown of each page by its place below `docs/`."""
    return {
        "reference/commands.md": commands(),
        "reference/configuration.md": configuration(),
        "reference/presets.md": shipped(),
    }


def commands() -> str:
    """Every command with its arguments and options, as `--help` shows them."""
    app = typer.Typer(name="cdrl")
    groups.attach(app)
    root = _shown(typer.main.get_command(app))
    text = get_docs_for_click(obj=root, ctx=typer.Context(root), name="cdrl")
    text = text[text.index("## ") :]  # the root's own part is this page
    for noise, instead in (
        (r"^\* `--help`.*\n", ""),
        (r"^\*\*Commands\*\*:\n\n(\*.*\n)+\n?", ""),  # each has its own part below
        (r"^\*\*(Usage|Arguments|Options)\*\*:\n\n", ""),
        (r"^\$ cdrl", "cdrl"),
        (r"<(int|float) range>", r"<\1>"),
        (r"\n{3,}", "\n\n"),
        (r"^(\*.*\n)\n(?=\*)", r"\1"),  # arguments and options are one list
    ):
        text = re.sub(noise, instead, text, flags=re.MULTILINE)
    lead = "Written from the commands' own help: `cdrl COMMAND --help` says the same."
    return f"# Commands\n\n{lead} Exit codes: 2 for a mistake of the user's, 1 for a failure.\n\n{text}"


def configuration() -> str:
    """Every setting with its default, what it accepts and what it is."""
    schema = Config.model_json_schema()
    lead = (
        "# Configuration\n\n"
        "Written from the schema. A setting is changed in a YAML file that names a preset as its `base`, or for one\n"
        "command: `--set schedule.num_levels=4`. The defaults are those of the paper's unconditional CIFAR-10 run; a\n"
        "[preset](presets.md) lists what it has otherwise, and `cdrl config show PRESET` prints the whole of it.\n"
    )
    return "\n".join([lead, *_sections(schema, schema, "", {})])


def shipped() -> str:
    """Every preset as its file says it."""
    lead = "# Presets\n\nEach lists only what differs from its `base`, or from the [defaults](configuration.md)."
    texts = {name: resources.files("cdrl").joinpath("presets", f"{name}.yaml").read_text() for name in presets()}
    parts = [
        f"## {name}\n\n{what[:1].upper()}{what[1:]}.\n\n```yaml\n{texts[name].partition(chr(10))[2]}```"
        for name, what in presets().items()
    ]
    return "\n\n".join([lead, *parts]) + "\n"


def _shown(command: Any) -> Any:
    """The command without those below it that are hidden from users."""
    if hasattr(command, "commands"):
        command.commands = {name: _shown(inner) for name, inner in command.commands.items() if not inner.hidden}
    return command


def _sections(root: dict[str, Any], section: dict[str, Any], path: str, defaults: dict[str, Any]) -> Iterator[str]:
    """A table of the section's own settings, then the sections below it."""
    rows, below = [], []
    for name, setting in section["properties"].items():
        key = f"{path}.{name}".lstrip(".")
        default = defaults.get(name, setting.get("default"))
        inner = _inner(root, setting)
        if inner is None:
            what = str(setting.get("description", "")).replace("|", "\\|")
            shown = "required" if name in section.get("required", ()) else f"`{_plain(default)}`"
            rows.append(f"| `{key}` | {shown} | {_accepts(setting)} | {what} |")
        else:
            optional = " `null` leaves it out." if {"type": "null"} in setting.get("anyOf", ()) else ""
            below += [f"\n## {key}\n\n{inner['description']}{optional}\n", *_sections(root, inner, key, default or {})]
    if rows:
        yield "\n".join(["| setting | default | accepts | what it is |", "|---|---|---|---|", *rows])
    yield from below


def _inner(root: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a setting is, where it is one."""
    for branch in (setting, *setting.get("anyOf", ())):
        if "$ref" in branch:
            named: dict[str, Any] = root["$defs"][branch["$ref"].rpartition("/")[2]]
            return named if "properties" in named else None
    return None


def _plain(value: Any) -> str:
    """The value as YAML has it, on one line."""
    return value if isinstance(value, str) else json.dumps(value)


def _accepts(setting: dict[str, Any]) -> str:
    """In words: type, range, choices."""
    if branches := setting.get("anyOf") or setting.get("oneOf"):
        return " or ".join(dict.fromkeys(_accepts(branch) for branch in branches))
    if "const" in setting or "enum" in setting:
        return " or ".join(f"`{_plain(choice)}`" for choice in setting.get("enum", [setting.get("const")]))
    kind = setting.get("type")
    if kind == "array":
        items = setting.get("prefixItems") or [setting.get("items", {})]
        each = " and ".join(dict.fromkeys(_accepts(item) for item in items))
        return "list of " + re.sub(r"^(list|whole number|number|text)", r"\1s", each)
    if kind == "object":
        return f"mapping of names to: {_accepts(setting.get('additionalProperties', {}))}"
    bounds = [f"{words} {setting[bound]:g}" for bound, words in BOUNDS.items() if bound in setting]
    bounds += [f"as `{setting['pattern']}`".replace("|", "\\|")] if "pattern" in setting else []
    return " ".join([TYPES.get(str(kind), "any value"), ", ".join(bounds)]).strip()
