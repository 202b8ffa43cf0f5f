"""`cdrl inpaint REF`."""

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

    from cdrl.model import Model

__all__ = ["inpaint"]

HIDDEN = (70, 110, 190)
"""Colour of what is hidden."""


def inpaint(
    ref: RefArgument,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture of the model's size; repeatable.")
    ] = None,
    from_data: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Instead: so many held-out images of the model's dataset.")
    ] = None,
    mask: Annotated[
        str,
        typer.Option(
            metavar="HIDDEN",
            help="What is hidden: left, right, top, bottom, centre, random:0.5 (a share of the pixels), "
            "or a picture that is black there.",
        ),
    ] = "right",
    candidates: Annotated[int, typer.Option(min=1, help="Completions of each image.")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each level is left; more agree better.")] = 4,
    fixed_noise: Annotated[bool, typer.Option("--fixed-noise", help="One noise on known pixels throughout.")] = False,
    label: Annotated[str | None, typer.Option(help="Class of all images; default: none.")] = None,
    own_label: Annotated[bool, typer.Option("--own-label", help="The class of each image in the dataset.")] = False,
    guidance: GuidanceOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    step_multiplier: MultiplierOption = None,
    denoise: DenoiseOption = None,
    noise_scale: NoiseOption = None,
    data: Annotated[str | None, typer.Option(metavar="URI", help="The dataset, if it has moved.")] = None,
    picture: PictureOption = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Hide a part of images and draw it anew; the rest stays as it is.

    The picture has a row for each image: original, what is known, completions.
    """
    import torch

    from cdrl import storage
    from cdrl.cli.evaluate import showing_progress
    from cdrl.errors import ConfigError
    from cdrl.evaluation.scorer import counter
    from cdrl.method.inpainting import Inpainting
    from cdrl.pictures import png_bytes

    target = picture_place(picture, ref, "inpaint")
    if bool(image) == bool(from_data):
        raise ConfigError("expected either --image FILE or --from-data N")
    model = load_model(ref, root, tracking)
    if len(model.config.data.shape) != 3:
        raise ConfigError(f"{ref}: the model draws points; only images are inpainted")
    if guidance and not (label or own_label):
        raise ConfigError(f"--guidance {guidance}: needs --label or --own-label")
    if own_label and not model.config.data.num_classes and not guidance:
        raise ConfigError("--own-label: the model is unconditional; leave it out")
    if own_label and (image or label):
        raise ConfigError("--own-label: goes with --from-data and without --label")
    x, classes = _files(model, image) if image else _held_out(model, data, from_data or 0)
    if not own_label:
        classes = torch.full((len(x),), model.label_of(label))
    known = _mask(mask, x, seed)
    sampling = sampling_of(
        model.config,
        steps=steps,
        step_multiplier=step_multiplier,
        denoise=denoise,
        noise_scale=noise_scale,
        guidance=guidance,
    )
    images, masks, labels = (rows.repeat_interleave(candidates, dim=0) for rows in (x, known, classes))
    request = Inpainting(images, masks, num_rounds=rounds, fresh_noise=not fixed_noise)
    with showing_progress() as progress:
        drawn = model.sample(
            len(images),
            labels=labels,
            inpainting=request,
            seed=seed,
            sampling=sampling,
            progress=counter(progress, "completions", len(images)),
        ).unflatten(0, (len(x), candidates))
    storage.write_bytes(str(target), png_bytes(_picture(x, known, drawn)))
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{candidates} completions of {len(x)} images: {target}")
    hidden = (~known)[:, None].expand_as(drawn)
    if hidden.any():
        error = (drawn - x[:, None]).square()[hidden].mean().sqrt()
        console.print(f"hidden pixels differ from the original by {error:.2f} rms, where black and white differ by 2")


def _held_out(model: "Model", uri: str | None, num_images: int) -> tuple["Tensor", "Tensor"]:
    """(N, C, H, W) in [-1, 1] and the labels (N,)."""
    from cdrl.evaluation.held_out import held_out

    real = held_out(model, uri, num_images)
    return real.x, real.label


def _files(model: "Model", places: list[Path]) -> tuple["Tensor", "Tensor"]:
    import torch

    from cdrl.pictures import from_uint8

    channels, height, width = model.config.data.shape
    images = [_pixels(place, height, width, grayscale=channels == 1) for place in places]
    return from_uint8(torch.stack(images)), torch.zeros(len(images), dtype=torch.long)


def _mask(text: str, x: "Tensor", seed: int) -> "Tensor":
    """(N, C, H, W) bool, True = known."""
    from cdrl.method.inpainting import named_mask
    from cdrl.method.rng import Rng

    if not Path(text).is_file():
        return named_mask(text, x, Rng(seed, "mask")).expand_as(x)
    return (_pixels(Path(text), *x.shape[-2:], grayscale=True) >= 128).expand_as(x)


def _pixels(place: Path, height: int, width: int, *, grayscale: bool) -> "Tensor":
    """uint8 (C, height, width) of a picture that has this size."""
    import torch

    from cdrl.data.images import decode, pixels
    from cdrl.errors import DataError

    found = pixels(decode(place, str(place)), str(place), size=None, crop=False, grayscale=grayscale)
    if found.shape[1:] != (height, width):
        raise DataError(f"{place}: expected {width} x {height} pixels, got {found.shape[2]} x {found.shape[1]}")
    return torch.from_numpy(found.copy())


def _picture(x: "Tensor", known: "Tensor", drawn: "Tensor") -> "Image.Image":
    """A row for each image: original, what is known, completions."""
    import torch

    from cdrl.pictures import to_uint8
    from cdrl.sheets import labelled

    original = to_uint8(x).expand(-1, 3, -1, -1)
    masked = torch.where(known, original, torch.tensor(HIDDEN, dtype=torch.uint8).view(3, 1, 1))
    completed = to_uint8(drawn).expand(-1, -1, 3, -1, -1)
    sheet = torch.cat([original[:, None], masked[:, None], completed], dim=1)
    return labelled(sheet, columns=["image", "known", *map(str, range(1, drawn.shape[1] + 1))])
