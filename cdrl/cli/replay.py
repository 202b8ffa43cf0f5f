"""`cdrl replay RUN --step N`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cdrl.cli.registry import RootOption, TrackingOption

if TYPE_CHECKING:
    from cdrl.training.replay import Replay

__all__ = ["replay"]


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, a unique beginning of it, or its folder.")],
    step: Annotated[int, typer.Option(metavar="N", help="The update: 1 is the run's first.")],
    level: Annotated[int | None, typer.Option(metavar="S", help="Show this noise level alone.")] = None,
    data: Annotated[str | None, typer.Option(metavar="URI", help="The run's dataset, where it moved.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Where; default: RUN-replay-N.png.")] = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Make one update of a run again and look at it: chains, energies, gradients, and the losses beside the logged."""
    from dataclasses import replace

    from cdrl import storage
    from cdrl.cli.evaluate import showing_progress
    from cdrl.errors import ConfigError
    from cdrl.pictures import png_bytes
    from cdrl.runs import RunRecord
    from cdrl.tracking.run import TrackedRun
    from cdrl.training import replay as replaying
    from cdrl.training.replay_plot import replay_plot

    record = RunRecord.read(run, root)
    num_levels = record.config.schedule.num_levels
    if level is not None and not 0 <= level < num_levels:
        raise ConfigError(f"--level: run {record.run_id} has levels 0 ... {num_levels - 1}, got {level}")
    start = replaying.start_before(record, step)
    record.tracking_uri = tracking or record.tracking_uri
    logged = replaying.logged_before(TrackedRun.attach(record), record.config, start, step)
    console = Console()
    where = f"the checkpoint at {start.step}" if start.uri else "the start of the run: no checkpoint is kept before it"
    console.print(f"update {step}: {step - start.step} to make from {where}", highlight=False)
    with showing_progress() as progress:
        also = logged[0] if logged else None
        found = replaying.replay(record, step, start, also=also, uri=data, progress=progress)
    console.print(_comparison(found, logged))
    console.print(_verdict(found, logged), highlight=False, soft_wrap=True)
    if not found.levels:
        console.print("the initializer trains alone here: no chain, no energy, no picture", highlight=False)
        return
    shown = replace(found, levels=tuple(each for each in found.levels if level in (None, each.level)))
    if not shown.levels:
        drawn = ", ".join(str(each.level) for each in found.levels)
        raise ConfigError(f"--level: update {step} has no image of level {level}; its batch has levels {drawn}")
    console.print(_table(shown))
    target = picture or Path(f"{record.run_id}-replay-{step}.png")
    storage.write_bytes(str(target), png_bytes(replay_plot(shown, record.class_names)))
    console.print(f"chains, energies and gradients: {target}", highlight=False, soft_wrap=True)


def _comparison(found: "Replay", logged: tuple[int, dict[str, float]] | None) -> Table:
    """Each metric beside the logged one, with all its digits: they are equal or they are not."""
    at, before = logged or (found.step, {})
    table = Table("", "replayed", "logged", title=f"metrics of update {at}", box=None, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in found.metrics[at].items():
        table.add_row(name, f"{value:.9g}", f"{before[name]:.9g}" if name in before else "-")
    return table


def _verdict(found: "Replay", logged: tuple[int, dict[str, float]] | None) -> str:
    if logged is None:
        return "the run logged nothing between the start and this update: there is nothing to compare with"
    at, before = logged
    differences = {name: abs(value - before[name]) for name, value in found.metrics[at].items()}
    differing = {name: by for name, by in differences.items() if by != 0}  # also where either is no number
    there = "" if at == found.step else f" at update {at}, the last that was logged on the way"
    if not differing:
        return f"all {len(differences)} metrics equal the logged ones exactly{there}"
    worst = max(differing, key=lambda name: differing[name] / max(abs(before[name]), 1e-30))
    return (
        f"{len(differing)} of {len(differences)} metrics differ from the logged ones{there}, most {worst}, by "
        f"{differing[worst]:.3g}; last bits do with several replicas of a pair, another device or another version"
    )


def _table(found: "Replay") -> Table:
    """Means of each level over its n images; |grad f| over the chain as well."""
    table = Table(title=f"update {found.step} by level", box=None, title_justify="left")
    for title in ("level", "n", "f data", "f chain", "gap", "displacement", "loss", "|grad f|"):
        table.add_column(title, justify="right")
    for each in found.levels:
        f_pos, f_neg = each.f_pos.mean().item(), each.f_neg.mean().item()
        rest = (each.displacement, each.loss, each.gradient)
        figures = (f_pos, f_neg, f_pos - f_neg, *(column.mean().item() for column in rest))
        table.add_row(str(each.level), str(len(each.x_0)), *(f"{figure:.3g}" for figure in figures))
    return table
