"""`cdrl density REF`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cdrl.cli.registry import RootOption, TrackingOption

if TYPE_CHECKING:
    from cdrl.evaluation.density import LevelDensity

__all__ = ["density"]


def density(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="A run, a checkpoint (path or URI), or models:/NAME@champion.")
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=2_000, help="Samples to draw, twice.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other samples.")] = 0,
    data: Annotated[str | None, typer.Option(metavar="URI", help="The run's dataset, where it moved.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Where; default: REF-density.png. A .json goes beside it.")
    ] = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Compare a model of points in the plane with the exact density of its data, level by level."""
    from cdrl import storage
    from cdrl.cli.evaluate import showing_progress
    from cdrl.cli.sample import load_model
    from cdrl.data import Dataset, Manifest
    from cdrl.data.points import LAWS
    from cdrl.evaluation.density import check_plane, compare
    from cdrl.evaluation.density_plot import density_plot
    from cdrl.evaluation.held_out import check_data
    from cdrl.pictures import png_bytes

    target = picture or Path(f"{ref.strip('/').rpartition('/')[2].partition('@')[0]}-density.png")
    model = load_model(ref, root, tracking)
    check_plane(model)
    uri = data or model.config.data.uri
    check_data(model, uri, Manifest.read(uri))
    points = Dataset.of(model.config.data, uri=uri)
    law = LAWS.get(points.manifest.source)
    radius = float(abs(points.images(range(len(points)))).max())
    with showing_progress() as progress:
        levels = compare(model, law, radius, number=number, seed=seed, progress=progress)
    console = Console()
    console.print(_table(levels))
    if law is None:
        console.print(f"{uri}: the law of {points.manifest.source!r} is not known: the model's density alone")
    report = {
        "reference": ref,
        "model": model.digest,
        "name": model.config.name,
        "step": model.step,
        "law": points.manifest.source if law else None,
        "num_samples": number,
        "seed": seed,
        "levels": [_numbers(level) for level in levels],
    }
    storage.write_bytes(str(target.with_suffix(".json")), json.dumps(report, indent=1).encode())
    storage.write_bytes(str(target), png_bytes(density_plot(levels)))
    console.print(f"densities: {target}, {target.with_suffix('.json')}", highlight=False, soft_wrap=True)


def _numbers(level: "LevelDensity") -> dict[str, Any]:
    names = ("level", "half_side", "log_z_nats", "kl_nats", "recovery_kl_nats", "score_error", "mmd2")
    return {name: getattr(level, name) for name in names}


def _table(levels: "list[LevelDensity]") -> Table:
    """A row per level, noisiest first, as the sampler goes."""
    captions = list(levels[0].mmd2 or {})
    columns = [f"1000 MMD²\n{caption}" for caption in captions]
    table = Table("level", "KL, nats", "recovery KL", "score error", *columns, box=None)
    for column in table.columns:
        column.justify = "right"
    for level in reversed(levels):
        distances = [f"{1000 * value:.2f}" for value in (level.mmd2 or {}).values()]
        errors = (level.kl_nats, level.recovery_kl_nats, level.score_error)
        shown = ["-" if value is None else f"{value:.3f}" for value in errors]
        table.add_row(str(level.level), *shown, *distances)
    return table
