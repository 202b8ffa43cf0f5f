"""Which file holds which command."""

import typer

from cdrl.cli import config, data

__all__ = ["attach"]


def attach(app: typer.Typer) -> None:
    """Hang every command group on the root."""
    app.add_typer(config.app, name="config")
    app.add_typer(data.app, name="data")
