"""`cdrl train CONFIG`."""

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console

from cdrl import config as configuration
from cdrl.cli.config import ConfigArgument, SetOption

__all__ = ["RootOption", "WorkersOption", "overridden", "train"]

WorkersOption = Annotated[int | None, typer.Option("--workers", help="Ray workers; short for cluster.num_workers.")]
RootOption = Annotated[str, typer.Option("--root", help="Folder of runs.")]


def train(
    source: ConfigArgument,
    overrides: SetOption = None,
    workers: WorkersOption = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: start Ray here.")] = None,
) -> None:
    """Train a run; the same command resumes it. Ctrl-C stops it after a checkpoint."""
    shortcuts = {"cluster.num_workers": workers, "cluster.address": address}
    from cdrl.evaluation.reference import QuickScore
    from cdrl.runs import absolute
    from cdrl.training.launch import launch

    config = absolute(overridden(source, overrides, shortcuts))
    console = Console()
    score = QuickScore(config) if config.run.score_samples else None
    outcome = launch(config, score=score, console=Console(stderr=True))
    if not outcome.complete:
        stopped = f"stopped at {outcome.step} of {config.training.num_updates}"
        console.print(f"{stopped}; the same command resumes", highlight=False)
        raise typer.Exit(130)
    console.print(f"complete: run {outcome.record.run_id} at {outcome.step} updates", highlight=False)
    console.print(f"next: cdrl evaluate {outcome.record.run_id}", highlight=False)


def overridden(
    source: str, overrides: list[str] | None, shortcuts: Mapping[str, object | None]
) -> configuration.Config:
    """The configuration with `--set` and those shortcut options that were given; options win."""
    given = [f"{path}={value}" for path, value in shortcuts.items() if value is not None]
    return configuration.load(source, [*(overrides or ()), *given])
