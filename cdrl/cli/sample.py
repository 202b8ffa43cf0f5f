"""`cdrl sample REF`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cdrl.cli.registry import RootOption, TrackingOption

if TYPE_CHECKING:
    from cdrl.model import Model

__all__ = ["draw", "load_model", "sample"]

COLUMNS = 10


def sample(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="A run, a checkpoint (path or URI), or models:/NAME@champion.")
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Images to draw.")] = 100,
    label: Annotated[str | None, typer.Option(help="Class name; default: a row of each class.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other images.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="w of classifier-free guidance.")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="K, Langevin steps per level.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Where; default: REF-samples.png.")] = None,
    path: Annotated[bool, typer.Option("--path", help="From noise to image: a row each, a level a column.")] = False,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Draw samples with the averaged weights and make a picture of them."""
    target = picture or Path(f"{ref.strip('/').rpartition('/')[2].partition('@')[0]}-samples.png")
    model = load_model(ref, root, tracking)
    draw(model, number, target, label=label, seed=seed, guidance=guidance, steps=steps, path=path)
    Console().print(f"{number} samples: {target}", highlight=False, soft_wrap=True)


def draw(
    model: "Model",
    number: int,
    target: Path,
    *,
    label: str | None = None,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
    path: bool = False,
) -> None:
    """Write a picture of a model's samples; the arguments are the command's options.

    Raises:
        ConfigError: a class that the model does not have, or guidance of an unconditional model.
    """
    import torch

    from cdrl import storage
    from cdrl.config import override
    from cdrl.errors import ConfigError
    from cdrl.method.trace import Trace
    from cdrl.pictures import picture_of, png_bytes

    if guidance and not model.config.data.num_classes:
        raise ConfigError(f"--guidance {guidance:g}: the model is unconditional; leave it out")
    changed = {"num_steps": steps, "guidance": guidance, "batch_size": number if path else None}
    sampling = override(model.config, [f"sampling.{k}={v}" for k, v in changed.items() if v is not None]).sampling
    labels = torch.full((number,), model.label_of(label))
    if label is None and model.config.data.num_classes:
        labels = torch.arange(number) // (1 if path else COLUMNS) % len(model.class_names) + 1
    trace = Trace() if path else None
    x = model.sample(number, labels=labels, seed=seed, sampling=sampling, record=trace)
    columns = COLUMNS
    if trace is not None:
        stages = trace.levels()
        x, columns = torch.stack(stages, dim=1).flatten(0, 1).cpu(), len(stages)
    storage.write_bytes(str(target), png_bytes(picture_of(x, columns)))


def load_model(ref: str, root: str, tracking: str | None) -> "Model":
    """The model of a run, a checkpoint (path or URI) or `models:/NAME@ALIAS`."""
    from cdrl.model import Model
    from cdrl.runs import fetch_model

    if not ref.startswith("models:/"):
        return Model.load(fetch_model(ref, root=root))
    from cdrl.registry.versions import Registry
    from cdrl.tracking.server import default_uri

    return Registry(tracking or default_uri(root)).load(ref)
