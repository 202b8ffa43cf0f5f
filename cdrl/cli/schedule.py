"""`cdrl schedule show|plot`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cdrl import config as configuration
from cdrl.cli.config import ConfigArgument, SetOption

if TYPE_CHECKING:
    from cdrl.method.schedule import Schedule

__all__ = ["app"]

app = typer.Typer(help="Look at the noise levels of a configuration.", no_args_is_help=True)


@app.command()
def show(source: ConfigArgument, overrides: SetOption = None) -> None:
    """Print every constant of every level."""
    schedule = _schedule(source, overrides)
    tr = schedule.constants
    levels = _table(
        f"{source}: {schedule.num_levels} levels",
        {
            "t": range(schedule.num_levels + 1),
            "logsnr_t": schedule.logsnr.tolist(),
            "alpha_t": [*tr.alpha_s[:1].tolist(), *tr.alpha_t.tolist()],
            "sigma_t": [*tr.sigma_s[:1].tolist(), *tr.sigma_t.tolist()],
        },
    )
    s = tr.step_size.sqrt()
    transitions = _table(
        "transitions from t to s = t - 1 = level",
        {"level": range(schedule.num_levels)}
        | {
            name: getattr(tr, name).tolist()
            for name in ("alpha_ts", "sigma_ts", "scale", "sigma_post", "step_size", "loss_weight")
        }
        | {"s = sqrt(step_size)": s.tolist(), "s/sigma_ts": (s / tr.sigma_ts).tolist()},
    )
    console = Console()
    for table in (levels, transitions):
        width = max(console.width, console.measure(table, options=console.options.update(width=200)).maximum)
        Console(width=width).print(table, "")  # columns that are cut off would say nothing


@app.command()
def plot(
    source: ConfigArgument,
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Where; default: NAME-schedule.png.")] = None,
    overrides: SetOption = None,
) -> None:
    """Draw signal, noise, step size and loss weight, level by level."""
    from cdrl import storage
    from cdrl.pictures import png_bytes
    from cdrl.plots import schedule_plot

    schedule = _schedule(source, overrides)
    target = picture or Path(f"{Path(source).stem}-schedule.png")
    storage.write_bytes(str(target), png_bytes(schedule_plot(schedule)))
    Console().print(f"{schedule.num_levels} levels: {target}", highlight=False, soft_wrap=True)


def _table(title: str, columns: dict[str, Sequence[float]]) -> Table:
    table = Table(*columns, title=title, title_justify="left", box=None)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(f"{value:.5g}" for value in row))
    return table


def _schedule(source: str, overrides: list[str] | None) -> "Schedule":
    from cdrl.build import build_schedule

    return build_schedule(configuration.load(source, overrides or ()).schedule)
