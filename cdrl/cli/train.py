"""`cdrl train CONFIG`."""

import signal
from typing import Annotated

import typer
from rich.console import Console

from cdrl import config as configuration
from cdrl.cli.config import ConfigArgument, SetOption

__all__ = ["train"]


def train(
    source: ConfigArgument,
    overrides: SetOption = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N|[MIN,MAX]", help="Ray workers; short for cluster.num_workers.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: start Ray here.")] = None,
) -> None:
    """Train a run; the same command resumes it. Ctrl-C or SIGTERM stops it after a checkpoint."""
    shortcuts = {"cluster.num_workers": workers, "cluster.address": address}
    from cdrl.evaluation.reference import QuickScore
    from cdrl.runs import absolute
    from cdrl.training.launch import launch

    given = [f"{path}={value}" for path, value in shortcuts.items() if value is not None]
    config = absolute(configuration.load(source, [*(overrides or ()), *given]))
    console = Console()
    score = QuickScore(config) if config.run.score_samples else None
    outcome = launch(config, score=score, console=Console(stderr=True))
    if not outcome.complete:
        stopped = f"stopped at {outcome.step} of {config.training.num_updates}"
        console.print(f"{stopped}; the same command resumes", highlight=False)
        raise typer.Exit(128 + (outcome.stopped_by or signal.SIGINT))
    console.print(f"complete: run {outcome.record.run_id} at {outcome.step} updates", highlight=False)
    console.print(f"next: cdrl evaluate {outcome.record.run_id}", highlight=False)
