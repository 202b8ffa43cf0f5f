"""A small classifier of the dataset itself: its features score small images, its labels judge conditional samples.

Trained on the train split in seconds, on one CPU thread and from one seed, so that the same data gives the same net;
kept in a cache as safetensors + JSON under the digest of data and recipe. A distance in these features is never called
FID.
"""

import hashlib
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cdrl.data import Dataset
from cdrl.errors import ConfigError, DataError
from cdrl.pictures import from_uint8
from cdrl.storage import sha256_file

__all__ = ["CARD_NAME", "WEIGHTS_NAME", "Card", "Classifier", "Recipe", "find_or_train", "load"]

WEIGHTS_NAME = "classifier.safetensors"
CARD_NAME = "classifier.json"
MAX_JUDGED = 10_000  # hold-out images that the accuracy is measured on


class Recipe(BaseModel):
    """How the net is built and trained. Part of its identity: any change gives another net under another name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_updates: int = 600
    batch_size: int = 64
    lr: float = 5e-4
    dropout: float = 0.2
    seed: int = 0


RECIPE = Recipe()


class Card(BaseModel):
    """What a trained classifier is.

    Attributes:
        sha256: of the weights file; the feature net's identity in every protocol.
        accuracy: share of right labels on the hold-out split, 0 ... 1; None without such a split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest_digest: str
    recipe: Recipe
    shape: tuple[int, ...]
    num_classes: int
    sha256: str
    accuracy: float | None
    seconds: float


class Classifier(nn.Module):
    """Halve to at most 8x8, three convolutions, pool to 2x2; then features (32, or 64 above 16x16), then classes."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, dropout: float) -> None:
        super().__init__()
        channels, side = shape[0], max(shape[1:])
        num_features = 32 if side <= 16 else 64
        stem: list[nn.Module] = []
        while side > 8:
            stem += [*_block(channels, 32), nn.MaxPool2d(2, ceil_mode=True)]
            channels, side = 32, -(-side // 2)
        trunk = [*_block(channels, 32), *_block(32, 32), nn.MaxPool2d(2, ceil_mode=True), *_block(32, 64)]
        tail = [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(256, num_features), nn.ReLU()]
        self.body = nn.Sequential(*stem, *trunk, *tail)
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, D) of uint8 images (n, C, H, W)."""
        return self.body(from_uint8(images))

    @torch.no_grad()
    def labels(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """The likeliest class 1 ... C of each row of features (n, D)."""
        return self.head(torch.as_tensor(features, device=self.head.weight.device)).argmax(1).cpu().numpy() + 1


def _block(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def find_or_train(train: Dataset, holdout: Dataset | None, cache: Path, recipe: Recipe = RECIPE) -> Path:
    """The folder of this dataset's classifier below `cache`; trained first if it is not there.

    Raises:
        ConfigError: points instead of images, or fewer than two classes.
        DataError: a cached classifier is damaged.
    """
    manifest = train.manifest
    if manifest.dtype != "uint8" or len(manifest.class_names) < 2:
        raise ConfigError(
            f"evaluation.extractor: classifier needs images with labels of at least 2 classes; this dataset has shape "
            f"{manifest.shape} and {len(manifest.class_names)} classes; use inception (images) or coordinates (points)"
        )
    identity = manifest.digest + recipe.model_dump_json()
    folder = cache / f"classifier-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        load(folder)
        return folder
    started = time.monotonic()
    net = _train(train, recipe)
    accuracy = None if holdout is None else _accuracy(net, holdout)
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=cache, prefix=".classifier-"))
    try:
        save_file(net.state_dict(), aside / WEIGHTS_NAME)
        card = Card(
            manifest_digest=manifest.digest,
            recipe=recipe,
            shape=manifest.shape,
            num_classes=len(manifest.class_names),
            sha256=sha256_file(aside / WEIGHTS_NAME),
            accuracy=accuracy,
            seconds=round(time.monotonic() - started, 1),
        )
        (aside / CARD_NAME).write_text(card.model_dump_json(indent=1))
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise  # otherwise another process was first, and its net is the same
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def load(folder: Path) -> tuple[Classifier, Card]:
    """The net (in evaluation mode) and its card.

    Raises:
        DataError: the files are missing or do not agree.
    """
    try:
        card = Card.model_validate_json((folder / CARD_NAME).read_text())
        found = sha256_file(folder / WEIGHTS_NAME)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a classifier: {' '.join(str(error).split())}; delete the folder") from None
    if found != card.sha256:
        raise DataError(
            f"{folder / WEIGHTS_NAME}: damaged: expected SHA-256 {card.sha256[:12]}..., got {found[:12]}...; "
            "delete the folder"
        )
    with torch.device("meta"):  # no initial weights: they would be drawn from the global random state
        net = Classifier(card.shape, card.num_classes, card.recipe.dropout)
    net.load_state_dict(load_file(folder / WEIGHTS_NAME), assign=True)
    return net.eval(), card


def _train(train: Dataset, recipe: Recipe) -> Classifier:
    """Cross-entropy with Adam and a cosine decay, for a fixed number of updates whatever the size of the dataset."""
    labelled = np.flatnonzero(train.labels(np.arange(len(train))))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order: the same net, hence the same digest, whatever else the process does
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            net = Classifier(train.manifest.shape, len(train.manifest.class_names), recipe.dropout)
            optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.num_updates)
            num_epochs = -(-recipe.num_updates * recipe.batch_size // len(labelled))
            rows = np.concatenate([labelled[torch.randperm(len(labelled))] for _ in range(num_epochs)])
            for update in range(recipe.num_updates):
                batch = rows[update * recipe.batch_size :][: recipe.batch_size]
                scores = net.head(net(torch.as_tensor(train.images(batch))))
                loss = nn.functional.cross_entropy(scores, torch.as_tensor(train.labels(batch)) - 1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    return net.eval()


@torch.no_grad()
def _accuracy(net: Classifier, holdout: Dataset) -> float | None:
    labels = holdout.labels(np.arange(len(holdout)))
    labelled = np.flatnonzero(labels)[:MAX_JUDGED]
    if not len(labelled):
        return None
    chunks = np.array_split(labelled, -(-len(labelled) // 500))
    right = [net.labels(net(torch.as_tensor(holdout.images(chunk))).numpy()) == labels[chunk] for chunk in chunks]
    return round(float(np.concatenate(right).mean()), 4)
