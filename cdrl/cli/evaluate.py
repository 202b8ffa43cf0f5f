"""`cdrl evaluate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cdrl.cli.config import SetOption

if TYPE_CHECKING:
    from rich.progress import TaskID

    from cdrl.evaluation.evaluate import Progress
    from cdrl.evaluation.protocol import ScoreCard, Scores

__all__ = ["cells", "evaluate", "score_table", "showing_progress"]


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, a unique beginning of it, or its folder.")],
    which: Annotated[str, typer.Option(metavar="best|last", help="Which checkpoint.")] = "best",
    samples: Annotated[int | None, typer.Option(min=4, help="Images to draw; default: the run's setting.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Ray workers that draw; 1 = this process.")] = 1,
    overrides: SetOption = None,
    root: Annotated[str, typer.Option("--root", metavar="FOLDER", help="The folder of runs.")] = "runs",
) -> None:
    """Score a run's samples at K and at K = 0, beside what real images would get."""
    from cdrl import config as configuration
    from cdrl.errors import ConfigError
    from cdrl.evaluation.run import FOLDER, evaluate_run
    from cdrl.runs import RunRecord

    if which not in ("best", "last"):
        raise ConfigError(f"--which: expected best or last, got {which!r}")
    record = RunRecord.read(run, root)
    asked = list(overrides or ())
    asked += [] if samples is None else [f"evaluation.num_samples={samples}"]
    asked.append(f"cluster.num_workers={workers}")
    config = configuration.override(record.config, asked)
    with showing_progress() as progress:
        result = evaluate_run(record, "best" if which == "best" else "last", config=config, progress=progress)
    console = Console()
    console.print(score_table(result.card))
    console.print(result.card.protocol.describe(), style="dim", highlight=False, soft_wrap=True)
    console.print(f"score card and pictures: {record.directory / FOLDER}", highlight=False, soft_wrap=True)


def score_table(card: "ScoreCard") -> Table:
    """The model at K, the initializer alone, and what real images get."""
    table = Table("", card.protocol.metric, "precision", "recall", "labels", "images", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    num_images = str(card.protocol.num_generated)
    table.add_row(f"K = {card.protocol.sampling.steps_text}", *cells(card.scores), num_images)
    if card.k0 is not None:
        table.add_row("K = 0, initializer alone", *cells(card.k0), num_images)
    table.add_row("real images (floor)", *cells(card.floor), str(card.num_floor))
    return table


def cells(scores: "Scores") -> list[str]:
    shares = [scores["precision"], scores["recall"], scores["label_accuracy"]]
    return [f"{scores['frechet']:.3f}", *("-" if share is None else f"{share:.3f}" for share in shares)]


@contextmanager
def showing_progress() -> Iterator["Progress"]:
    """A callback for `evaluate` behind a bar on the terminal."""
    from rich import progress

    text, bar = progress.TextColumn("{task.description}"), progress.BarColumn()
    counts, eta = progress.MofNCompleteColumn(), progress.TimeRemainingColumn()
    with progress.Progress(text, bar, counts, eta, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done)

        yield show
