"""`cdrl sample REF`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cdrl.cli.registry import RootOption, TrackingOption
from cdrl.cli.sampling import (
    DenoiseOption,
    GuidanceOption,
    MultiplierOption,
    NoiseOption,
    PictureOption,
    RefArgument,
    SeedOption,
    StepsOption,
    load_model,
    picture_place,
    sampling_of,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from cdrl.config import SamplingConfig
    from cdrl.method.trace import Trace
    from cdrl.model import Model

__all__ = ["draw", "load_model", "sample"]

COLUMNS = 10
MAX_TRACED = 40
PANELS = 2  # traces side by side


def sample(
    ref: RefArgument,
    number: Annotated[
        int | None,
        typer.Option("--number", "-n", min=1, help="Images; default: 100, with --path 10, with --trace 4."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Class name; default: a row of each class.")] = None,
    seed: SeedOption = 0,
    guidance: GuidanceOption = None,
    steps: StepsOption = None,
    step_multiplier: MultiplierOption = None,
    denoise: DenoiseOption = None,
    noise_scale: NoiseOption = None,
    picture: PictureOption = None,
    path: Annotated[bool, typer.Option("--path", help="From noise to image: a row each, a level a column.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Every level and every step of each image, and a GIF beside the PNG.")
    ] = False,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Draw samples with the averaged weights and make a picture of them."""
    from cdrl.errors import ConfigError

    target = picture_place(picture, ref, "samples")
    if path and trace:
        raise ConfigError("--path, --trace: expected one of them; the trace holds the path")
    number = number or (10 if path else 4 if trace else 100)
    if trace and number > MAX_TRACED:
        raise ConfigError(f"--number {number}: expected at most {MAX_TRACED} with --trace")
    model = load_model(ref, root, tracking)
    sampling = sampling_of(
        model.config,
        steps=steps,
        step_multiplier=step_multiplier,
        denoise=denoise,
        noise_scale=noise_scale,
        guidance=guidance,
        batch_size=number if path or trace else None,
    )
    draw(model, number, target, label=label, seed=seed, sampling=sampling, path=path, trace=trace)
    moving = f" and {target.with_suffix('.gif')}" if trace else ""
    Console().print(f"{number} samples: {target}{moving}", highlight=False, soft_wrap=True)


def draw(
    model: "Model",
    number: int,
    target: Path,
    *,
    label: str | None = None,
    seed: int = 0,
    sampling: "SamplingConfig | None" = None,
    path: bool = False,
    trace: bool = False,
) -> None:
    """Write a picture of a model's samples.

    Args:
        number: images; with `path` or `trace` they should fit into one batch of `sampling`.
        target: a PNG; the animation of a trace goes beside it, as a GIF.
        label: class name; default: a row of each class.
        sampling: default: the model's own.
        path: a row for each image, a level a column.
        trace: every level and every step of each image.

    Raises:
        ConfigError: a class that the model does not have, or a trace of points.
    """
    import torch

    from cdrl import storage
    from cdrl.errors import ConfigError
    from cdrl.method.trace import Trace
    from cdrl.pictures import png_bytes
    from cdrl.sheets import animation

    if trace and len(model.config.data.shape) != 3:
        raise ConfigError("--trace: the model draws points; --path shows how they move from level to level")
    labels = torch.full((number,), model.label_of(label))
    if label is None and model.config.data.num_classes:
        labels = torch.arange(number) // (1 if path or trace else COLUMNS) % len(model.class_names) + 1
    recorded = Trace() if path or trace else None
    x = model.sample(number, labels=labels, seed=seed, sampling=sampling, record=recorded)
    names = ["", *model.class_names]
    if recorded is None:
        content = _sheet(x, labels, names)
    elif trace:
        storage.write_bytes(str(target.with_suffix(".gif")), animation(recorded, min(number, COLUMNS)))
        content = _traces(recorded, [names[c] for c in labels])
    else:
        content = _path(recorded, [names[c] for c in labels])
    storage.write_bytes(str(target), png_bytes(content))


def _sheet(x: "Tensor", labels: "Tensor", names: list[str]) -> "Image.Image":
    """Ten images a row, each row named by its class."""
    import torch

    from cdrl.pictures import picture_of, to_uint8
    from cdrl.sheets import labelled

    if x.ndim != 4 or len(x) < COLUMNS or not labels.any():
        return picture_of(x, COLUMNS)
    missing = -len(x) % COLUMNS
    images = torch.cat([to_uint8(x), torch.full((missing, *x.shape[1:]), 64, dtype=torch.uint8)])
    return labelled(images.unflatten(0, (-1, COLUMNS)), [names[c] for c in labels[::COLUMNS]])


def _path(trace: "Trace", names: list[str]) -> "Image.Image":
    from cdrl.pictures import scatter
    from cdrl.sheets import level_name, path_sheet

    if trace.stages[0].x.ndim == 4:
        return path_sheet(trace, names if any(names) else [])
    levels = [trace.stages[0].level, *range(trace.stages[0].level - 1, -2, -1)]
    return scatter({level_name(c, trace): x.cpu().numpy() for c, x in zip(levels, trace.levels(), strict=True)})


def _traces(trace: "Trace", names: list[str]) -> "Image.Image":
    from cdrl.sheets import stacked, trace_sheet

    titles = [f"image {number}" + (f", class {name}" if name else "") for number, name in enumerate(names)]
    return stacked([trace_sheet(trace, number, title=title) for number, title in enumerate(titles)], PANELS)
