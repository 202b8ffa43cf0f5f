"""`cdrl tune CONFIG --space SPACE`."""

import signal
from typing import Annotated, Literal

import typer
from rich.console import Console

from cdrl.cli.config import SetOption

__all__ = ["tune"]


def tune(
    source: Annotated[str, typer.Argument(metavar="CONFIG", help="A preset's name or a YAML file.")],
    space: Annotated[
        str, typer.Option("--space", metavar="SPACE", help="What is searched: schedules, steps, ... or a YAML file.")
    ],
    overrides: SetOption = None,
    num_trials: Annotated[
        int | None, typer.Option("--num-trials", min=1, metavar="N", help="Trials in all; default: the space's.")
    ] = None,
    searcher: Annotated[
        Literal["random", "grid", "tpe"] | None, typer.Option(help="Who proposes trials; default: the space's.")
    ] = None,
    scheduler: Annotated[
        Literal["fifo", "asha", "pbt"] | None, typer.Option(help="Who ends trials early; default: the space's.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="SWEEP", help="Folder of the sweep; default: made of its settings.")
    ] = None,
    warm_start: Annotated[
        str | None, typer.Option("--warm-start", metavar="CHECKPOINT", help="A run or a checkpoint to begin with.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trials at a time; default: as many as fit.")
    ] = None,
) -> None:
    """Search settings with many short runs on Ray Tune; the same command continues a sweep that was interrupted."""
    from cdrl.errors import JobFailed
    from cdrl.tuning.run import run_sweep
    from cdrl.tuning.sweep import build_sweep

    choices = {"num_trials": num_trials, "searcher": searcher, "scheduler": scheduler}
    sweep = build_sweep(source, space, overrides or (), name=name, warm_start=warm_start, choices=choices)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    try:
        ranking = run_sweep(sweep, parallel=parallel, console=Console(stderr=True))
    except KeyboardInterrupt:
        console.print(f"stopped: sweep {sweep.name}; the same command continues it")
        raise typer.Exit(128 + signal.SIGINT) from None
    console.print(ranking.text())
    if ranking.best is None:
        cause = next((place.cause for place in ranking.places if place.cause), "none ran")
        raise JobFailed(f"sweep {sweep.name}: no trial has a score: {cause}; the same command tries failed ones again")
    console.print(f"results: {sweep.directory}")
    console.print(f"next: cdrl train {sweep.directory / 'best.yaml'}")
