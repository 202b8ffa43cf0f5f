"""The real command line, asked what it makes of some arguments without running anything."""

from cdrl.cli.commands import parse

__all__ = ["parse"]
