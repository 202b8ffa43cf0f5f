"""The real images behind every score, as the feature net sees them; and the quick score that picks a checkpoint."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.data.cache import cache_root
from cdrl.errors import ConfigError
from cdrl.evaluation.features import Judge, extractor_for
from cdrl.evaluation.fidelity import Measured, frechet_distance, measure
from cdrl.evaluation.generate import draw, reference_labels
from cdrl.evaluation.scoring import Scored, distance_with_error, score
from cdrl.evaluation.statistics import split_statistics
from cdrl.model import Model

__all__ = ["QuickScore", "Reference"]


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

    def seen(self, images: NDArray) -> Measured:
        """Images (n, *shape), stored as the dataset stores them, as the feature net sees them."""
        return measure(images.__getitem__, len(images), self.extractor)

    def frechet(self, images: NDArray) -> float:
        """The Fréchet distance of such images from the train split."""
        return frechet_distance(self.seen(images).moments, self.measured.moments)

    def frechet_with_error(self, images: NDArray) -> tuple[float, float]:
        """The same and its standard error over images."""
        return distance_with_error(self.seen(images), self.measured, self._config.evaluation.seed)

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


class QuickScore:
    """The Fréchet distance of `run.score_samples` images from the train split, to pick the best checkpoint by.

    It may be sent to another process before its first call, which opens the data. torch's random state stays alone.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._reference: Reference | None = None

    def __call__(self, model: Model) -> tuple[float, float]:
        """The distance, lower is better, and its standard error over images.

        Raises:
            ConfigError: the model draws values that are not finite.
            As `Reference`.
        """
        if self._reference is None:
            self._reference = Reference(self._config, str(model.device.type))
        self._reference.check(model)
        num_images = self._config.run.score_samples
        return self._reference.frechet_with_error(
            draw(
                model,
                num_images,
                labels=self._reference.labels(num_images),
                sampling=self._config.sampling,
                seed=self._config.evaluation.seed,
            )
        )
