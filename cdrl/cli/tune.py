"""`cdrl tune CONFIG --space SPACE` and `cdrl tune --sampling RUN`."""

import signal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from cdrl.cli.config import SetOption
from cdrl.cli.tune_sampling import NUM_CANDIDATES, tune_sampling
from cdrl.errors import ConfigError
from cdrl.runs import Which

__all__ = ["tune"]

OF_A_RUN = "With --sampling"
NOT_BOTH = "expected CONFIG --space SPACE, to train, or --sampling RUN, to search the sampler of a trained run"


def tune(
    source: Annotated[str | None, typer.Argument(metavar="CONFIG", help="A preset's name or a YAML file.")] = None,
    space: Annotated[
        str | None,
        typer.Option("--space", metavar="SPACE", help="What is searched: schedules, steps, ... or a YAML file."),
    ] = None,
    overrides: SetOption = None,
    num_trials: Annotated[
        int | None,
        typer.Option("--num-trials", min=0, metavar="N", help="Trials, or settings of the sampler; default: enough."),
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
    sampling: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Search the sampler of this run, without training.", rich_help_panel=OF_A_RUN),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=4, help="Images at each setting; default: 2000.", rich_help_panel=OF_A_RUN)
    ] = None,
    confirm: Annotated[
        int | None,
        typer.Option(
            min=5,
            help="Images to confirm with, of a fresh seed; default: the run's setting.",
            rich_help_panel=OF_A_RUN,
        ),
    ] = None,
    which: Annotated[
        Which | None, typer.Option(help="Which checkpoint; default: best.", rich_help_panel=OF_A_RUN)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Ray workers that draw; default: this process.", rich_help_panel=OF_A_RUN),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="FOLDER", help="The folder of runs; default: runs.", rich_help_panel=OF_A_RUN),
    ] = None,
) -> None:
    """Search settings with many short runs on Ray Tune, or with --sampling those of a trained run's sampler.

    The same command continues what was interrupted.
    """
    of_a_sweep: dict[str, str | int | None] = {"searcher": searcher, "scheduler": scheduler, "name": name}
    of_a_sweep |= {"warm-start": warm_start, "parallel": parallel}
    of_a_run: dict[str, str | int | None] = {"samples": samples, "confirm": confirm, "which": which}
    of_a_run |= {"workers": workers, "root": root}
    if (source is None) == (sampling is None):
        raise ConfigError(NOT_BOTH)
    for other, value in (of_a_run if sampling is None else of_a_sweep).items():
        if value is not None:
            goes_with = "--sampling RUN" if sampling is None else "CONFIG"
            raise ConfigError(f"--{other} goes with {goes_with}; {NOT_BOTH}")
    if sampling is not None:
        tune_sampling(
            sampling,
            space=None if space is None else Path(space),
            candidates=NUM_CANDIDATES if num_trials is None else num_trials,
            samples=samples,
            confirm=confirm,
            which=which or "best",
            workers=workers or 1,
            overrides=overrides or (),
            root=root or "runs",
        )
    elif source is not None and space is not None:
        choices = {"num_trials": num_trials, "searcher": searcher, "scheduler": scheduler}
        _sweep(source, space, tuple(overrides or ()), name, warm_start, choices, parallel)
    else:
        raise ConfigError(f"--space SPACE is missing; {NOT_BOTH}")


def _sweep(
    source: str,
    space: str,
    overrides: tuple[str, ...],
    name: str | None,
    warm_start: str | None,
    choices: dict[str, Any],
    parallel: int | None,
) -> None:
    from cdrl.errors import JobFailed
    from cdrl.tuning.run import run_sweep
    from cdrl.tuning.sweep import build_sweep

    sweep = build_sweep(source, space, overrides, name=name, warm_start=warm_start, choices=choices)
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
