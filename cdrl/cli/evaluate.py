"""`cdrl evaluate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cdrl.cli.config import SetOption
from cdrl.cli.places import RootOption, TrackingOption

if TYPE_CHECKING:
    from rich.progress import TaskID

    from cdrl.evaluation.evaluate import Progress
    from cdrl.evaluation.protocol import ScoreCard, Scores

__all__ = ["cells", "evaluate", "score_table", "show_card", "showing_progress"]


def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|VERSION", help="A run's id, a unique beginning of it, or its folder; or models:/NAME@champion."
        ),
    ],
    which: Annotated[str, typer.Option(metavar="best|last", help="Which checkpoint.")] = "best",
    samples: Annotated[int | None, typer.Option(min=4, help="Images to draw; default: the run's setting.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Ray workers that draw; 1 = this process.")] = 1,
    overrides: SetOption = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Of a version: where card and pictures go.")
    ] = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Score a run's samples at K and K = 0, beside what real images would get; repeated, a killed one goes on.

    A version's card goes into a folder of its own: the one that it was registered with stays what it is.
    """
    from cdrl import config as configuration
    from cdrl.errors import ConfigError
    from cdrl.evaluation.evaluate import evaluate as measure
    from cdrl.evaluation.run import FOLDER, evaluate_run
    from cdrl.model import Model
    from cdrl.registry.load import opened
    from cdrl.runs import RunRecord

    if which not in ("best", "last"):
        raise ConfigError(f"--which: expected best or last, got {which!r}")
    is_version = run.startswith("models:/")
    if is_version != (to is not None):
        raise ConfigError("--to FOLDER goes with a version, models:/NAME@champion, and only with one")
    asked = list(overrides or ())
    asked += [] if samples is None else [f"evaluation.num_samples={samples}"]
    asked.append(f"cluster.num_workers={workers}")
    if to is not None:
        with opened(run, root=root, tracking=tracking) as package, showing_progress() as progress:
            result = measure(package, configuration.override(Model.load(package).config, asked), progress=progress)
        result.write(to)
        show_card(result.card, to)
        return
    record = RunRecord.read(run, root)
    config = configuration.override(record.config, asked)
    with showing_progress() as progress:
        result = evaluate_run(record, "best" if which == "best" else "last", config=config, progress=progress)
    show_card(result.card, record.directory / FOLDER)


def show_card(card: "ScoreCard", folder: Path) -> None:
    """A score card with what has to be known about it, and where it lies."""
    console = Console()
    console.print(score_table(card))
    show = partial(console.print, highlight=False, soft_wrap=True)
    for line in card.notes:
        show(f"note: {line}", style="yellow")
    if card.memorisation is not None:
        show(card.memorisation.describe())
    show(card.protocol.describe(), style="dim")
    show(f"± one standard error over images, {card.num_resamples} resamples of seed {card.protocol.seed}", style="dim")
    show(f"score card and pictures: {folder}")


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
