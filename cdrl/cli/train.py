"""`cdrl train CONFIG`, `cdrl train RUN --levels 3`."""

import signal
from typing import Annotated

import typer
from rich.console import Console

from cdrl import config as configuration
from cdrl.cli.config import SetOption

__all__ = ["train"]


def train(
    source: Annotated[
        str, typer.Argument(metavar="CONFIG|RUN", help="A preset's name or a YAML file; with --levels a finished run.")
    ],
    overrides: SetOption = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N|[MIN,MAX]", help="Ray workers; short for cluster.num_workers.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: start Ray here.")] = None,
    levels: Annotated[
        str | None, typer.Option(metavar="L,...", help="Train these levels of a finished run again, into the run.")
    ] = None,
) -> None:
    """Train a run; the same command resumes it. Ctrl-C or SIGTERM stops it after a checkpoint."""
    shortcuts = {"cluster.num_workers": workers, "cluster.address": address}
    from cdrl.evaluation.reference import QuickScore
    from cdrl.runs import RunRecord, absolute
    from cdrl.training.again import train_again
    from cdrl.training.launch import launch

    given = [*(overrides or ()), *(f"{path}={value}" for path, value in shortcuts.items() if value is not None)]
    record = RunRecord.read(source) if levels is not None else None
    config = absolute(configuration.override(record.config, given) if record else configuration.load(source, given))
    console = Console()
    score = QuickScore(config) if config.run.score_samples else None
    told = Console(stderr=True)
    if record is None:
        outcome = launch(config, score=score, console=told)
    else:
        outcome = train_again(record, config, _numbers(str(levels)), score=score, console=told)
    if not outcome.complete:
        stopped = f"stopped at {outcome.step} of {config.training.num_updates}"
        console.print(f"{stopped}; the same command resumes", highlight=False)
        raise typer.Exit(128 + (outcome.stopped_by or signal.SIGINT))
    run_id = record.run_id if record else outcome.record.run_id
    what = f"levels {levels} of run {run_id}" if record else f"run {run_id}"
    console.print(f"complete: {what} at {outcome.step} updates", highlight=False)
    console.print(f"next: cdrl evaluate {run_id}", highlight=False)


def _numbers(text: str) -> list[int]:
    from cdrl.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--levels {text!r}: expected numbers such as 3 or 0,1") from None
