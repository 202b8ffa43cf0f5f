"""The real images behind every score, as the feature net sees them; and the quick score that picks a checkpoint."""

import math
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.data.cache import cache_root
from cdrl.errors import ConfigError
from cdrl.evaluation.features import Judge, extractor_for
from cdrl.evaluation.fidelity import Measured, frechet_distance, gather, measure
from cdrl.evaluation.generate import draw, reference_labels
from cdrl.evaluation.scoring import Scored, distance_with_error, score
from cdrl.evaluation.statistics import split_statistics
from cdrl.model import Model

__all__ = ["QuickScore", "Reference", "Team"]


class Reference:
    """The train split of `config.data`, seen by the feature net of `config.evaluation`; the hold-out split beside it.

    Raises:
        ConfigError: the feature net does not go with the data, or there is no GPU to use.
        DataError, StorageError: data or weights are missing, damaged or out of reach.
    """

    def __init__(self, config: Config, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("cluster.use_gpu: torch sees no GPU on this machine; set it to false")
        data = config.data
        self._config, self.device = config, device
        self.train = Dataset.of(data)
        kept = self.train.manifest.has_holdout
        self.holdout = Dataset.of(data, "holdout") if kept else None
        self.extractor = extractor_for(config, self.train, self.holdout, device)
        self._kept = config.evaluation.statistics or str(cache_root(data.cache))
        self.measured = split_statistics(self.train, "train", self.extractor, self._kept)

    def check(self, model: Model) -> None:
        """Refuse a model of other data.

        Raises:
            ConfigError: with both digests.
        """
        found = self.train.manifest.digest
        if model.manifest_digest != found:
            raise ConfigError(
                f"data.uri: the model was trained on the dataset {model.manifest_digest[:12]}..., "
                f"{self._config.data.uri} holds {found[:12]}...; name the right place with --set data.uri=..."
            )

    def labels(self, num_images: int) -> NDArray[np.int64] | None:
        """Labels for a conditional model in the proportions of the train split; None for an unconditional one."""
        if not self._config.data.num_classes:
            return None
        counts = self.train.manifest.splits["train"].label_counts
        return reference_labels(counts, num_images, self._config.evaluation.seed)

    def judge(self) -> Judge | None:
        """The classifier that tells whether a conditional model obeys its labels; None for an unconditional one."""
        config = self._config
        if config.data.num_classes < 2:
            return None
        return Judge(self.train, self.holdout, config.data.cache, self.device)

    def frechet(self, images: NDArray) -> float:
        """The Fréchet distance of images (n, *shape), stored as the dataset stores them, from the train split."""
        return frechet_distance(measure(images.__getitem__, len(images), self.extractor).moments, self.measured.moments)

    def distance_with_error(self, seen: Measured) -> tuple[float, float]:
        """That distance of measured images, and its standard error over images."""
        return distance_with_error(seen, self.measured, self._config.evaluation.seed)

    def scores(self, seen: Measured, label_accuracy: float | None) -> Scored:
        """All scores of measured images against the train split."""
        return self._compare(seen, self.measured, label_accuracy)

    @cached_property
    def held_out(self) -> Measured | None:
        """The hold-out split; None if there is none."""
        if self.holdout is None:
            return None
        return split_statistics(self.holdout, "holdout", self.extractor, self._kept)

    def floor(self, label_accuracy: float | None) -> tuple[Scored, str, int]:
        """Scores of real images that the reference does not hold; which images these are, and how many.

        Without a hold-out split one half of the train split is compared with the other.
        """
        train, n = self.train, len(self.train)
        if self.held_out is not None:
            number = self.held_out.moments.n
            text = f"{number} real images of the hold-out split against {n} of train"
            return self._compare(self.held_out, self.measured, label_accuracy), text, number
        odd = measure(lambda rows: train.images(2 * rows + 1), n // 2, self.extractor)
        even = measure(lambda rows: train.images(2 * rows), n - n // 2, self.extractor)
        text = f"no hold-out split: {n // 2} real images of train against the other {n - n // 2}"
        return self._compare(odd, even, label_accuracy), text, n // 2

    def _compare(self, seen: Measured, other: Measured, label_accuracy: float | None) -> Scored:
        seed = self._config.evaluation.seed
        return score(seen, other, self.extractor, label_accuracy=label_accuracy, seed=seed, device=self.device)


class Team(Protocol):
    """The ranks that score together."""

    @property
    def rank(self) -> int:
        """This one, 0 ... world - 1."""
        ...

    @property
    def world(self) -> int:
        """How many there are."""
        ...

    def sum(self, table: Tensor) -> Tensor:
        """The element-wise sum over all ranks, on the CPU. A collective."""
        ...


class _Alone:
    rank, world = 0, 1

    def sum(self, table: Tensor) -> Tensor:
        return table


class QuickScore:
    """The Fréchet distance of `run.score_samples` images from the train split, to pick the best checkpoint by.

    It may be sent to another process before its first call, which opens the data. torch's random state stays alone.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._reference: Reference | None = None

    def __call__(self, model: Model, team: Team = _Alone()) -> tuple[float, float]:  # noqa: B008 - it has no state
        """The distance, lower is better, and its standard error over images; for ranks other than 0 NaN.

        Args:
            team: ranks with the same model; each draws some of the sampling batches. A collective.

        Raises:
            ConfigError: the model draws values that are not finite.
            As `Reference`.
        """
        num_images, size = self._config.run.score_samples, self._config.sampling.batch_size
        mine = range(team.rank * size, num_images, team.world * size)
        reference = self._opened(model) if mine or team.rank == 0 else None
        seen = {first: self._seen(model, reference, first) for first in mine if reference}
        width = int(team.sum(torch.tensor([seen[0].shape[1] if team.rank == 0 else 0])).item())
        rows = torch.zeros(num_images, width, dtype=torch.float64)
        for first, features in seen.items():
            rows[first : first + len(features)] = torch.as_tensor(features)
        rows = team.sum(rows)
        if team.rank != 0 or reference is None:
            return math.nan, math.nan
        return reference.distance_with_error(gather([rows.numpy().astype(np.float32)], num_images))

    def _opened(self, model: Model) -> Reference:
        if self._reference is None:
            self._reference = Reference(self._config, str(model.device.type))
        self._reference.check(model)
        return self._reference

    def _seen(self, model: Model, reference: Reference, first: int) -> NDArray[np.float32]:
        """Features of one sampling batch."""
        sampling, seed = self._config.sampling, self._config.evaluation.seed
        labels = reference.labels(self._config.run.score_samples)
        count = min(sampling.batch_size, self._config.run.score_samples - first)
        given = None if labels is None else labels[first : first + count]
        return reference.extractor.features(draw(model, count, labels=given, sampling=sampling, seed=seed, first=first))
