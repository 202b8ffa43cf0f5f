"""`cdrl submit -- COMMAND`: the same command here, on a Ray cluster, or on a cluster made for it."""

import os
import sys
from typing import Annotated

import typer

from cdrl.errors import ConfigError

__all__ = ["submit"]


def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="A command line of cdrl, without `cdrl`.")
    ],
    address: Annotated[
        str, typer.Option(envvar="CDRL_ADDRESS", metavar="WHERE", help="local, http://HOST:8265 or kuberay.")
    ] = "local",
) -> None:
    """Run a command of cdrl where you say; it is checked before anything is sent."""
    from cdrl.cli.commands import checked

    checked(command)
    if address == "local":
        _become(command)
    raise ConfigError(f"--address {address!r}: expected local, http://HOST:8265 or kuberay")


def _become(command: list[str]) -> None:
    """Run the command in this process's place: its output, exit code and signals are this one's."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "cdrl.cli", *command])
