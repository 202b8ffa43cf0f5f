"""The real command line, asked what it makes of some arguments without running anything."""

from collections.abc import Sequence
from typing import Any

import typer

from cdrl.cli import groups

__all__ = ["parse"]


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The parameters that `cdrl ARGUMENTS` would run its command with.

    Raises:
        KeyError: no such command.
        A usage error with `exit_code` 2: arguments that the command does not take.
    """
    app = typer.Typer()
    groups.attach(app)
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    name = "cdrl"
    while hasattr(command, "commands"):
        name = rest.pop(0)
        command = command.commands[name]
    return dict(command.make_context(name, rest).params)
