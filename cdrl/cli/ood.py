"""`cdrl ood REF`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cdrl.cli.registry import RootOption, TrackingOption

if TYPE_CHECKING:
    from cdrl.evaluation.detection import Detection
    from cdrl.evaluation.ood import OodCard

__all__ = ["ood", "ood_table"]

AGAINST = ["noise", "gaussian", "inverted", "shuffled"]
SCORES = ["log_density", "gradient_norm", "typicality"]


def ood(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="A run, a checkpoint (path or URI), or models:/NAME@champion.")
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="SET", help=f"{', '.join(AGAINST)} or a dataset's URI; repeatable. Default: those four."),
    ] = None,
    score: Annotated[
        list[str] | None, typer.Option(metavar="SCORE", help=f"{', '.join(SCORES)}; repeatable. Default: all.")
    ] = None,
    level: Annotated[str, typer.Option(metavar="S|all", help="Noise level, 0 the least; or 0,2,4.")] = "all",
    complexity: Annotated[
        bool, typer.Option("--complexity", help="Also the log-density plus PNG code length, and that length alone.")
    ] = False,
    images: Annotated[int, typer.Option("--images", "-n", min=10, help="Images of each set at most.")] = 500,
    draws: Annotated[int, typer.Option(min=0, help="Noise draws per image and level; 0 = no noise.")] = 0,
    label: Annotated[str | None, typer.Option(help="Class that the densities are given; default: none.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sets, the noise and the error bars.")] = 0,
    data: Annotated[
        str | None, typer.Option(metavar="URI", help="The model's dataset; default: where it was trained on.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Where; default: REF-ood.png. The figures go beside it, as JSON.")
    ] = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """How well the model's densities tell its held-out images from others: AUROC and AUPR per score and level."""
    from cdrl import storage
    from cdrl.cli.evaluate import showing_progress
    from cdrl.cli.sample import load_model
    from cdrl.errors import ConfigError
    from cdrl.evaluation.ood import evaluate_ood
    from cdrl.evaluation.ood_picture import ood_picture
    from cdrl.pictures import png_bytes

    target = picture or Path(f"{ref.strip('/').rpartition('/')[2].partition('@')[0]}-ood.png")
    if target.suffix != ".png":
        raise ConfigError(f"--picture {target}: expected a name that ends in .png")
    levels = None if level == "all" else _levels(level)
    model = load_model(ref, root, tracking)
    with showing_progress() as progress:
        result = evaluate_ood(
            model,
            against or AGAINST,
            uri=data,
            levels=levels,
            scores=score or SCORES,
            complexity=complexity,
            num_images=images,
            num_draws=draws,
            label=label,
            seed=seed,
            progress=progress,
        )
    figures = target.with_suffix(".json")
    storage.write_bytes(str(figures), result.card.model_dump_json(indent=1).encode())
    storage.write_bytes(str(target), png_bytes(ood_picture(result)))
    console = Console(soft_wrap=True)
    console.print(ood_table(result.card))
    lengths = [f"{_short(r.against)} {_cell(r.detection)}" for r in result.card.rows if r.score == "code_length"]
    if lengths:
        console.print(f"code length alone: {', '.join(lengths)}", highlight=False)
    caption = f"AUROC ± standard error, AUPR; {result.card.num_images} held-out images. A coin gets .5 and their share"
    console.print(caption, style="dim", highlight=False)
    console.print(f"figures: {figures}\npicture: {target}", highlight=False)


def ood_table(card: "OodCard") -> Table:
    """A line for each set and level; in each score's column AUROC ± its standard error, then AUPR."""
    rows = [row for row in card.rows if row.level is not None]
    scores = list(dict.fromkeys(row.score for row in rows))
    cells = {(row.against, row.level, row.score): _cell(row.detection) for row in rows}
    table = Table("against", "level", *scores, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for against in card.num_outliers:
        for level in dict.fromkeys(row.level for row in rows):
            table.add_row(_short(against), str(level), *(cells[against, level, score] for score in scores))
    return table


def _cell(detection: "Detection") -> str:
    shown = (f"{detection.auroc:.3f}", f"{detection.auroc_error:.3f}", f"{detection.aupr:.2f}")
    return "{}±{} {}".format(*(number.removeprefix("0") for number in shown))


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _levels(text: str) -> list[int]:
    from cdrl.errors import ConfigError

    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or len(set(levels)) < len(levels):
        raise ConfigError(f"--level {text}: expected all, a level such as 0, or different levels such as 0,2,4")
    return levels
