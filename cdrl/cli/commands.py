"""A `cdrl` command line as data: what the real parser makes of it, without running it."""

from collections.abc import Sequence
from typing import Any

import typer

from cdrl import config as configuration
from cdrl.config import Config
from cdrl.errors import ConfigError

__all__ = ["checked", "on_cluster", "parse"]

UsageError: type[Any] = typer.BadParameter.__bases__[0]
"""Of click, which typer may bring along under a name of its own."""


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The parameters that `cdrl ARGUMENTS` would run its command with.

    Raises:
        KeyError: no such command.
        A usage error with `exit_code` 2: arguments that the command does not take.
    """
    return _leaf(arguments)[1]


def checked(arguments: Sequence[str]) -> Config | None:
    """Look at a user's command before it travels; returns the configuration where it trains a preset.

    Raises:
        ConfigError: no such command, arguments that it does not take, or a preset with settings that it does not take.
    """
    line = f"`cdrl {' '.join(arguments)}`"
    try:
        command, given = _leaf(arguments)
    except KeyError as error:
        raise ConfigError(f"{line}: no command {error.args[0]!r}; `cdrl --help` lists them") from None
    except UsageError as error:
        raise ConfigError(f"{line}: {error.format_message()}; see `cdrl {arguments[0]} --help`") from None
    # a file may exist only where the command will run, a preset is the same everywhere
    if command != "train" or given["source"] not in configuration.presets():
        return None
    workers = [f"cluster.num_workers={given['workers']}"] if given["workers"] else []
    return configuration.load(given["source"], [*(given["overrides"] or ()), *workers])


def on_cluster(arguments: Sequence[str]) -> list[str]:
    """The same command for a machine of a Ray cluster: where it would start Ray, it takes the one that is there."""
    given = parse(arguments)
    settings = given.get("overrides") or ()
    if any(setting.startswith("cluster.address=") for setting in settings) or given.get("workers") in (0, 1):
        return list(arguments)
    if "address" in given:
        return list(arguments) + (["--address", "auto"] if given["address"] is None else [])
    takes = "workers" in given and "overrides" in given
    return list(arguments) + (["--set", "cluster.address=auto"] if takes else [])


def _leaf(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A command's name without its groups, and its parameters."""
    from cdrl.cli import groups

    app = typer.Typer()
    groups.attach(app)
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    name = "cdrl"
    while hasattr(command, "commands"):
        name = rest.pop(0) if rest else ""
        command = command.commands[name]
    return name, dict(command.make_context(name, rest).params)
