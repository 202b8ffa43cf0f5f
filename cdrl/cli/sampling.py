"""What the commands that draw samples have in common: their options, the model, where pictures go."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cdrl.config import Config, SamplingConfig
    from cdrl.model import Model

__all__ = [
    "DenoiseOption",
    "GuidanceOption",
    "MultiplierOption",
    "NoiseOption",
    "PictureOption",
    "RefArgument",
    "SeedOption",
    "StepsOption",
    "load_model",
    "numbers",
    "picture_place",
    "sampling_of",
]

RefArgument = Annotated[
    str, typer.Argument(metavar="REF", help="A run, a checkpoint (path or URI), or models:/NAME@champion.")
]
StepsOption = Annotated[
    str | None,
    typer.Option(metavar="K", help="Langevin steps: one number, or one for each level from 0 on, as 8,8,4,4,2,2."),
]
MultiplierOption = Annotated[
    str | None, typer.Option(metavar="M", help="Factor on the Langevin step: one number, or one for each level.")
]
DenoiseOption = Annotated[
    float | None, typer.Option(metavar="0|1|2", help="Final denoise: off, consistent, or twice as the release has it.")
]
GuidanceOption = Annotated[
    str | None, typer.Option(metavar="W", help="w of classifier-free guidance: one number, or one for each level.")
]
NoiseOption = Annotated[float | None, typer.Option(help="Factor on the noise of the chains.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Another seed, other images.")]
PictureOption = Annotated[Path | None, typer.Option(metavar="PNG", help="Where; default: REF-COMMAND.png.")]


def picture_place(picture: Path | None, ref: str, what: str) -> Path:
    """Where a picture goes: the place that was asked for, or a name made of the model's.

    Raises:
        ConfigError: the name does not end in .png.
    """
    from cdrl.errors import ConfigError

    if picture is not None and picture.suffix != ".png":
        raise ConfigError(f"--picture {picture}: expected a name that ends in .png")
    return picture or Path(f"{ref.strip('/').rpartition('/')[2].partition('@')[0]}-{what}.png")


def sampling_of(
    config: "Config",
    *,
    steps: str | None = None,
    step_multiplier: str | None = None,
    denoise: float | None = None,
    noise_scale: float | None = None,
    guidance: str | None = None,
    batch_size: int | None = None,
) -> "SamplingConfig":
    """A configuration's sampling with the options that were given.

    Raises:
        ConfigError: a value out of range, as many as there are levels expected, or guidance of an unconditional model.
    """
    from cdrl import config as configuration
    from cdrl.errors import ConfigError

    weights = _one_or_each("--guidance", guidance, float)
    if weights and not config.data.num_classes:
        raise ConfigError(f"--guidance {guidance}: the model is unconditional; leave it out")
    asked: dict[str, Any] = {
        "num_steps": _one_or_each("--steps", steps, int),
        "step_multiplier": _one_or_each("--step-multiplier", step_multiplier, float),
        "denoise_scale": denoise,
        "noise_scale": noise_scale,
        "guidance": weights,
        "batch_size": batch_size,
    }
    tree = config.model_dump(mode="json")
    tree["sampling"] |= {name: value for name, value in asked.items() if value is not None}
    return configuration.validate(tree, where="options").sampling


def numbers(option: str, text: str, kind: type[int] | type[float] = float) -> list[float]:
    """The numbers of `1,2,3`.

    Raises:
        ConfigError: what is written there is none.
    """
    from cdrl.errors import ConfigError

    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option} {text}: expected {what} with commas between them") from None


def load_model(ref: str, root: str, tracking: str | None) -> "Model":
    """The model of a run, a checkpoint (path or URI) or `models:/NAME@ALIAS`, on a GPU where there is one."""
    from cdrl.config import ComputeConfig
    from cdrl.model import usual_device
    from cdrl.registry.load import load

    quick = ComputeConfig(compile="never")  # which takes longer than a few images
    return load(ref, usual_device(), root=root, tracking=tracking, compute=quick)


def _one_or_each(option: str, text: str | None, kind: type[int] | type[float]) -> float | list[float] | None:
    values = [] if text is None else numbers(option, text, kind)
    return values if len(values) > 1 else next(iter(values), None)
