"""Which file holds which command."""

import typer

from cdrl.cli import config

__all__ = ["attach"]


def attach(app: typer.Typer) -> None:
    """Hang every command group on the root."""
    app.add_typer(config.app, name="config")
