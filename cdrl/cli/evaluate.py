"""`cdrl evaluate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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
    """Score a run's samples at K and K = 0, beside what real images would get; repeated, a killed one goes on."""
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
    show = partial(console.print, highlight=False, soft_wrap=True)
    card = result.card
    for line in card.notes:
        show(f"note: {line}", style="yellow")
    if card.memorisation is not None:
        show(card.memorisation.describe())
    show(card.protocol.describe(), style="dim")
    show(f"± one standard error over images, {card.num_resamples} resamples of seed {card.protocol.seed}", style="dim")
    show(f"score card and pictures: {record.directory / FOLDER}")


def score_table(card: "ScoreCard") -> Table:
    """A row per score: the model at K, the initializer alone, and what real images get, each ± one standard error."""
    first, *columns = card.table[0]
    table = Table(first, *columns, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in card.table[1:]:
        table.add_row(*row)
    return table


def cells(scores: "Scores") -> list[str]:
    """Those of a curve's row."""
    from cdrl.evaluation.protocol import figure

    return [figure(scores[name]) for name in ("frechet", "precision", "recall", "label_accuracy")]


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
