"""`cdrl compose REF`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cdrl.cli.registry import RootOption, TrackingOption
from cdrl.cli.sampling import (
    DenoiseOption,
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
    from cdrl.model import Model

__all__ = ["compose"]


def compose(
    ref: RefArgument,
    label: Annotated[
        list[str],
        typer.Option(metavar="CLASS[=W]", help="A class and its w, repeatable; W is 0 if left out, below -1 repels."),
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Images in each row of the picture.")] = 16,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    step_multiplier: MultiplierOption = None,
    denoise: DenoiseOption = None,
    noise_scale: NoiseOption = None,
    picture: PictureOption = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Draw from the product of several classes, each with the weight 1 + w, beside each class alone.

    All rows of the picture start from the same noise; a class alone has no guidance.
    """
    import torch

    from cdrl import storage
    from cdrl.errors import ConfigError
    from cdrl.pictures import png_bytes, to_uint8
    from cdrl.sheets import labelled

    target = picture_place(picture, ref, "compose")
    model = load_model(ref, root, tracking)
    if not model.config.data.num_classes or len(model.config.data.shape) != 3:
        raise ConfigError(f"{ref}: expected a conditional model of images; this one has no classes or draws points")
    composition = _composition(label, model)
    sampling = sampling_of(
        model.config,
        steps=steps,
        step_multiplier=step_multiplier,
        denoise=denoise,
        noise_scale=noise_scale,
        guidance="0",
    )
    shown = {_name(composition, model): model.sample(number, composition=composition, seed=seed, sampling=sampling)}
    for c in composition:
        alone = model.sample(number, labels=c, seed=seed, sampling=sampling)
        shown[f"{model.class_names[c - 1]} alone"] = alone
    content = labelled(to_uint8(torch.stack(list(shown.values()))), list(shown))
    storage.write_bytes(str(target), png_bytes(content))
    Console().print(f"{number} samples of {next(iter(shown))}: {target}", highlight=False, soft_wrap=True)


def _composition(texts: list[str], model: "Model") -> dict[int, float]:
    """Label -> w of `CLASS` or `CLASS=W`."""
    from cdrl.errors import ConfigError

    found: dict[int, float] = {}
    for text in texts:
        name, equals, weight = text.rpartition("=")
        if text in model.class_names or not equals:
            name, weight = text, "0"
        try:
            w = float(weight)
        except ValueError:
            raise ConfigError(f"--label {text}: expected a number after '=', such as {name}=1.5") from None
        label = model.label_of(name)
        if not label or label in found:
            raise ConfigError(f"--label {text}: expected the name of a class, each once")
        found[label] = w
    return found


def _name(composition: dict[int, float], model: "Model") -> str:
    """`3 + 8`, `3 + 2.5 x 8`, `3 - 1 x 1`."""
    parts = []
    for label, w in composition.items():
        sign, size = ("-" if 1 + w < 0 else "+"), f"{abs(1 + w):g} x "
        parts.append(f"{sign} {'' if w == 0 else size}{model.class_names[label - 1]}")
    return " ".join(parts).removeprefix("+ ")
