"""`cdrl curve RUN`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cdrl.cli.config import SetOption
from cdrl.runs import Which

if TYPE_CHECKING:
    from cdrl.evaluation.curve import CurveCard

__all__ = ["curve", "curve_table"]


def curve(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, a unique beginning of it, or its folder.")],
    guidance: Annotated[str | None, typer.Option(metavar="W,W,...", help="Weights of guidance.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="K,K,...", help="Langevin steps per level.")] = None,
    step_multiplier: Annotated[str | None, typer.Option(metavar="M,M,...", help="Factors on the step.")] = None,
    denoise: Annotated[str | None, typer.Option(metavar="D,D,...", help="Scales of the final denoise.")] = None,
    noise_scale: Annotated[str | None, typer.Option(metavar="N,N,...", help="Factors on the chains' noise.")] = None,
    which: Annotated[Which, typer.Option(help="Which checkpoint.")] = "best",
    samples: Annotated[
        int | None, typer.Option(min=4, help="Images to draw at each value; default: the run's setting.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Ray workers that draw; 1 = this process.")] = 1,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Where; default: in the run's folder. A JSON goes beside it.")
    ] = None,
    overrides: SetOption = None,
    root: Annotated[str, typer.Option("--root", metavar="FOLDER", help="The folder of runs.")] = "runs",
) -> None:
    """Score a run's samples along one sampling setting: a table, figures with their protocols, a picture."""
    from cdrl import config as configuration
    from cdrl import storage
    from cdrl.cli.evaluate import showing_progress
    from cdrl.cli.sampling import numbers
    from cdrl.errors import ConfigError
    from cdrl.evaluation.curve import Setting, score_curve
    from cdrl.evaluation.curve_picture import curve_picture
    from cdrl.evaluation.run import FOLDER
    from cdrl.pictures import png_bytes
    from cdrl.runs import RunRecord

    options: dict[Setting, tuple[str, str | None]] = {
        "guidance": ("--guidance", guidance),
        "num_steps": ("--steps", steps),
        "step_multiplier": ("--step-multiplier", step_multiplier),
        "denoise_scale": ("--denoise", denoise),
        "noise_scale": ("--noise-scale", noise_scale),
    }
    asked = [(name, option, text) for name, (option, text) in options.items() if text is not None]
    if len(asked) != 1:
        raise ConfigError(f"expected one of {', '.join(option for option, _ in options.values())}; got {len(asked)}")
    setting, option, text = asked[0]
    values = numbers(option, text, int if setting == "num_steps" else float)
    if picture is not None and picture.suffix != ".png":
        raise ConfigError(f"--picture {picture}: expected a name that ends in .png")
    record = RunRecord.read(run, root)
    target = picture or record.directory / FOLDER / f"curve-{option.strip('-')}.png"
    changes = [*(overrides or ()), f"cluster.num_workers={workers}"]
    changes += [] if samples is None else [f"evaluation.num_samples={samples}"]
    config = configuration.override(record.config, changes)
    with showing_progress() as progress:
        found = score_curve(
            record.checkpoint(which), config, setting, values, run_id=record.run_id, which=which, progress=progress
        )
    figures = target.with_suffix(".json")
    storage.write_bytes(str(figures), found.card.model_dump_json(indent=1).encode())
    storage.write_bytes(str(target), png_bytes(curve_picture(found)))
    console = Console(highlight=False, soft_wrap=True)
    console.print(curve_table(found.card))
    console.print(f"first row: {found.card.points[0].protocol.describe()}", style="dim")
    console.print(f"figures: {figures}\npicture: {target}")


def curve_table(card: "CurveCard") -> Table:
    """A row for each value, and what real images get."""
    from cdrl.cli.evaluate import cells
    from cdrl.evaluation.curve import SYMBOLS

    metric = card.points[0].protocol.metric
    table = Table(SYMBOLS[card.setting], metric, "precision", "recall", "labels", "images", "images/s", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for point in card.points:
        number = str(point.protocol.num_generated)
        table.add_row(f"{point.value:g}", *cells(point.scores), number, f"{point.images_per_s:.0f}")
    table.add_row("real images", *cells(card.floor), str(card.num_floor), "")
    return table
