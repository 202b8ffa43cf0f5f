"""`cdrl tune --sampling RUN`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from cdrl.runs import Which

if TYPE_CHECKING:
    from cdrl.tuning.sampling_card import Row, SearchCard

__all__ = ["ranking_table", "tune_sampling"]

NUM_CANDIDATES = 24
NUM_SHOWN = 15
USUAL_IMAGES = {"inception": 5000}  # more than its features; for the others 2000, of fewer the errors are too large


def tune_sampling(
    run: str,
    *,
    space: Path | None = None,
    candidates: int = NUM_CANDIDATES,
    samples: int | None = None,
    confirm: int | None = None,
    which: Which = "best",
    workers: int = 1,
    overrides: Sequence[str] = (),
    root: str = "runs",
) -> None:
    """Search the sampler's settings of a trained run, and tell what was found."""
    from cdrl import config as configuration
    from cdrl.cli.evaluate import showing_progress
    from cdrl.errors import TrackingError
    from cdrl.runs import RunRecord
    from cdrl.tuning.sampling import Search, sampling_search
    from cdrl.tuning.sampling_card import SearchCard
    from cdrl.tuning.sampling_result import commands, keep, track
    from cdrl.tuning.sampling_space import read_space
    from cdrl.tuning.sampling_start import usual_space

    record = RunRecord.read(run, root)
    config = configuration.override(record.config, [*overrides, f"cluster.num_workers={workers}"])
    num_images = samples or USUAL_IMAGES.get(config.evaluation.extractor, 2000)
    search = Search(
        config=config,
        space=usual_space(config) if space is None else read_space(space, config),
        num_proposals=candidates,
        num_images=num_images,
        num_confirming=confirm or max(config.evaluation.num_samples, 2 * num_images),
        which=which,
    )
    console = Console(highlight=False, soft_wrap=True)
    try:
        with showing_progress() as progress:
            found = sampling_search(record, search, progress)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on, and what was scored is not drawn again")
        raise typer.Exit(130) from None
    card = SearchCard.of(record, search, found)
    folder = keep(card, found.turns.shown, record, config.sampling)
    console.print(ranking_table(card))
    console.print(f"the run's own: {card.own.candidate.protocol.describe()}", style="dim")
    console.print(f"[bold]{card.summary}[/]")
    for line in commands(record, card.chosen.candidate.sampling, which) if card.chosen is not None else []:
        console.print(line, markup=False)
    console.print(f"ranking, picture and best.yaml: {folder}")
    try:
        track(card, record)
    except TrackingError as error:
        console.print(f"not in MLflow: {error}; the same command sends it", style="yellow", markup=False)


def ranking_table(card: "SearchCard") -> Table:
    """The best of the ranking, and the confirmation with more images below it."""
    metric = card.own.candidate.protocol.metric
    table = Table("setting", metric, "worse than own by", "gradients", "ms", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in card.rows[:NUM_SHOWN]:
        _add(table, row, "the run's own" if row == card.own else "")
    if left_out := len(card.rows) - NUM_SHOWN:
        if left_out > 0:
            table.add_row(f"... and {left_out} more in ranking.json", style="dim")
    table.add_section()
    for row in card.confirmed:
        note = f"again, {row.candidate.protocol.num_generated} images"
        _add(table, row, note + (", chosen" if row == card.chosen else ""))
    return table


def _add(table: Table, row: "Row", note: str) -> None:
    from cdrl.evaluation.protocol import figure

    candidate, style = row.candidate, "green" if row.is_within else ""
    name = row.setting + (f" ({note})" if note else "")
    if row.difference is None:
        table.add_row(name, "failed", candidate.failure[:40], str(candidate.gradients), "", style="red")
        return
    gap = figure(row.difference.value, row.difference.error) if row.difference.error else "-"
    ms = f"{1000 * (candidate.seconds or 0.0):.1f}"
    table.add_row(name, figure(candidate.frechet, candidate.error), gap, str(candidate.gradients), ms, style=style)
