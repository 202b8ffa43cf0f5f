r"""Sets that are not the data, made from it: each isolates one thing that a density might have learned.

    noise      uniform in the range of a pixel: nothing of the data
    gaussian   normal noise of the data's mean and standard deviation per pixel: its first two moments
    inverted   -x: every shape, the other way round in brightness
    shuffled   the pixels of each image in an order of its own: its histogram, no shape

Images are rounded to 8-bit pixels, as those of every dataset are.

A code length L says how much there is to an image at all. Generative densities tend to prefer simple images, so Serra
et al. (2020) add it to the log-density: log2 p(x) + L(x), in bits, is how much better the model codes than a universal
coder does. Their score, higher = outlier, is minus that.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data import Dataset, Manifest
from cdrl.errors import ConfigError, DataError
from cdrl.evaluation.detection import MIN_IMAGES
from cdrl.evaluation.held_out import check_data, spread
from cdrl.method.rng import Rng
from cdrl.model import Model
from cdrl.pictures import from_uint8, to_uint8

__all__ = ["DATA", "OUTLIERS", "TRAIN", "code_length_bpd", "image_sets", "outliers"]

DATA, TRAIN = "data", "train"
Make = Callable[[Tensor, Rng], Tensor]


def _uniform(x: Tensor, rng: Rng) -> Tensor:
    low, high = (-1.0, 1.0) if x.ndim == 4 else (x.amin(dim=0), x.amax(dim=0))
    return low + (high - low) * rng.uniform(x)


def _gaussian(x: Tensor, rng: Rng) -> Tensor:
    return x.mean(dim=0) + x.std(dim=0) * rng.normal(x)


def _inverted(x: Tensor, rng: Rng) -> Tensor:
    return -x


def _shuffled(x: Tensor, rng: Rng) -> Tensor:
    """One order per image for all its channels: colours stay whole."""
    pixels = x.flatten(2) if x.ndim == 4 else x.unsqueeze(1)
    order = rng.uniform(pixels[:, :1]).argsort(dim=2)
    return pixels.gather(2, order.expand_as(pixels)).view_as(x)


OUTLIERS: dict[str, Make] = {"noise": _uniform, "gaussian": _gaussian, "inverted": _inverted, "shuffled": _shuffled}


def image_sets(model: Model, uri: str, against: Sequence[str], num_images: int, seed: int) -> dict[str, Tensor]:
    """The sets by name, (N, *shape) in the model's range: "data" (hold-out split), "train", and each of `against`.

    Args:
        uri: the dataset that the model was trained on.
        against: names of `OUTLIERS`, or URIs of prepared datasets (their hold-out split, else train).
        num_images: at most so many of each, evenly spread.

    Raises:
        ConfigError: another dataset than the model's, no hold-out split, images of another shape, too few of them, or
            nothing to compare with.
        DataError, StorageError: a dataset is missing or damaged.
    """
    data, manifest = model.config.data, Manifest.read(uri)
    check_data(model, uri, manifest)
    if not manifest.has_holdout:
        raise ConfigError(f"{uri}: no hold-out split to score; prepare the data with --holdout and train on that")
    if not against or len(set(against)) < len(against) or {DATA, TRAIN} & set(against):
        raise ConfigError(f"against: expected sets that differ, none named data or train, got {list(against)}")
    sets = {DATA: _read(data, uri, "holdout", num_images), TRAIN: _read(data, uri, "train", num_images)}
    for name in against:
        made = name in OUTLIERS
        sets[name] = outliers(name, sets[DATA], seed) if made else _others(data, name, manifest, num_images)
    for name, x in sets.items():
        if len(x) < MIN_IMAGES:
            raise ConfigError(f"{name}: expected at least {MIN_IMAGES} images, got {len(x)}")
    return sets


def _others(data: DataConfig, uri: str, ours: Manifest, num_images: int) -> Tensor:
    try:
        manifest = Manifest.read(uri)
    except DataError as error:
        raise DataError(f"{error}; or take one of {', '.join(OUTLIERS)}") from None
    if (manifest.shape, manifest.dtype) != (ours.shape, ours.dtype):
        raise ConfigError(
            f"{uri}: expected {ours.dtype} of shape {list(ours.shape)} as the model's data, got {manifest.dtype} of "
            f"{list(manifest.shape)}; prepare it again with --size and --grayscale or --rgb"
        )
    return _read(data, uri, "holdout" if manifest.has_holdout else "train", num_images)


def _read(data: DataConfig, uri: str, split: str, num_images: int) -> Tensor:
    dataset = Dataset.of(data, split, uri=uri)
    return spread(dataset, split, np.arange(len(dataset)), num_images).x


def outliers(name: str, x: Tensor, seed: int = 0) -> Tensor:
    """A set as large as the data.

    Args:
        name: a key of `OUTLIERS`.
        x: (N, C, H, W) images in [-1, 1], or (N, dims) points, whose range is taken from the set.
    """
    made = OUTLIERS[name](x, Rng(seed, "outliers", name))
    return from_uint8(to_uint8(made)) if x.ndim == 4 else made


def code_length_bpd(images: Tensor) -> Tensor:
    """Length of the PNG pixel code of uint8 images (N, C, H, W), C = 1 or 3, in bits per dimension: (N,).

    Counted is the compressed pixel stream alone; header and chunk frames, the same for every image, would be most of a
    small one.
    """
    lengths = [8.0 * _pixel_bytes(image) for image in images]
    return torch.tensor(lengths) / images[0].numel()


def _pixel_bytes(image: Tensor) -> int:
    buffer = io.BytesIO()
    channels_last = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(channels_last.squeeze()).save(buffer, format="PNG", optimize=True)
    content, place, total = buffer.getvalue(), 8, 0
    while place < len(content):  # a chunk: length, name, that many bytes, checksum
        length, name = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        total += length if name == b"IDAT" else 0
        place += 12 + length
    return total
