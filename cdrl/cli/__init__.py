"""The command line: one small file per group of commands. Heavy libraries load inside a command, never at start-up."""

import os
import sys

import typer
from rich.console import Console
from rich.markup import escape

from cdrl.errors import CdrlError

__all__ = ["app", "main"]

app = typer.Typer(
    name="cdrl",
    help="Train, score and ship cooperative diffusion recovery likelihood models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point `cdrl`: one line on standard error and exit code 2 for the user's mistakes, 1 for failures."""
    from cdrl.cli import groups

    groups.attach(app)
    try:
        app(prog_name="cdrl")  # also where it was started as `python -m cdrl.cli`
    except CdrlError as error:
        if os.environ.get("CDRL_TRACEBACK"):
            raise
        line = escape(" ".join(str(error).split()))
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {line}", highlight=False)
        sys.exit(error.exit_code)
