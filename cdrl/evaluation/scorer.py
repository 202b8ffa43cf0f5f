"""One model's images under any sampling settings, scored against its data."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl import storage
from cdrl.config import Config, SamplingConfig
from cdrl.errors import ConfigError
from cdrl.evaluation.fidelity import MAX_NEIGHBOUR_ROWS, NEIGHBOURS, Measured, gather
from cdrl.evaluation.generate import generate
from cdrl.evaluation.inception_score import NUM_SPLITS
from cdrl.evaluation.parts import Shelf
from cdrl.evaluation.protocol import Protocol
from cdrl.evaluation.reference import Reference
from cdrl.evaluation.scoring import Scored
from cdrl.model import Model
from cdrl.runs import fetch_model
from cdrl.session import connected

__all__ = ["Drawn", "Progress", "Scorer", "counter"]

Progress = Callable[[str, int, int], None]
"""Called with (what is done, images done, images in all)."""


@dataclass(frozen=True)
class Drawn:
    """Images (n, *shape) as the dataset stores them, and what was found.

    Attributes:
        measured: the images as the feature net sees them.
        seconds: that drawing took, summed over workers.
    """

    images: NDArray
    measured: Measured
    scored: Scored
    seconds: float

    @property
    def images_per_s(self) -> float:
        """The speed of one worker."""
        return round(len(self.images) / self.seconds, 2)


class Scorer:
    """Draws sets of images with one model and scores them against the data of `config.data`.

    Args:
        parts: a folder for the finished parts of unfinished sets; without it a killed evaluation begins anew.
    Others and errors as `evaluate`.

    Attributes:
        labels: (n,) of every set; None for an unconditional model.
        floor: what real images get, which ones, and how many.
    """

    def __init__(
        self, ref: str | Path, config: Config, *, parts: str | None = None, progress: Progress | None = None
    ) -> None:
        self._parts = parts
        self._report = progress or (lambda what, done, total: None)
        self._directory, self._config = fetch_model(str(ref)), config
        device = "cuda" if config.cluster.use_gpu else "cpu"
        self.model = Model.load(self._directory, device)
        if self.model.config.identity != config.identity:
            raise ConfigError(
                f"{ref}: this model has another configuration (run {self.model.config.run_id}, asked for "
                f"{config.run_id}); after training only data.uri, data.cache, sampling, evaluation, cluster, run and "
                "tracking may change"
            )
        self._report("real images", 0, 0)
        self.reference = Reference(config, device)
        self.reference.check(self.model)
        self.labels, self.judge = self.reference.labels(config.evaluation.num_samples), self.reference.judge()
        self.floor = self.reference.floor(None if self.judge is None else self.judge.accuracy)

    def session(self) -> AbstractContextManager[object]:
        """The cluster's, for several sets; workers would otherwise be started anew for each."""
        return connected(self._config.cluster) if self._config.cluster.max_workers > 1 else nullcontext()

    def draw(self, sampling: SamplingConfig) -> Drawn:
        """`evaluation.num_samples` images and their scores."""
        config, num_images = self._config, self._config.evaluation.num_samples
        guided = f", w = {sampling.guidance_text}" if sampling.guidance else ""
        parts = generate(
            self._directory,
            num_images,
            self.reference.extractor,
            labels=self.labels,
            sampling=sampling,
            seed=config.evaluation.seed,
            cluster=config.cluster,
            shelf=self.shelf(sampling),
            progress=counter(self._report, f"images at K = {sampling.steps_text}{guided}", num_images),
        )
        images = np.concatenate([part.images for part in parts])
        measured = gather((part.features for part in parts), num_images)
        known = None if self.judge is None or self.labels is None else self.judge.agreement(images, self.labels)
        scored = self.reference.scores(measured, known)
        return Drawn(images, measured, scored, sum(part.seconds for part in parts))

    def shelf(self, sampling: SamplingConfig) -> Shelf | None:
        """Where the finished parts of such a set are kept; None where they are not."""
        if self._parts is None:
            return None
        name = f"{self.protocol(sampling).digest[:16]}-{self.model.digest[:16]}"
        return Shelf(storage.join(self._parts, name))

    def protocol(self, sampling: SamplingConfig) -> Protocol:
        """How such a set is measured."""
        config, reference, judge = self._config, self.reference, self.judge
        return Protocol(
            metric=reference.extractor.metric,
            extractor=reference.extractor.name,
            extractor_digest=reference.extractor.digest,
            judge_digest=None if judge is None else judge.digest,
            judge_accuracy=None if judge is None else judge.accuracy,
            manifest_digest=reference.train.manifest.digest,
            num_reference=len(reference.train),
            num_generated=config.evaluation.num_samples,
            neighbours=NEIGHBOURS,
            max_neighbour_rows=MAX_NEIGHBOUR_ROWS,
            num_splits=NUM_SPLITS,
            labels="as reference" if config.data.num_classes else "none",
            sampling=sampling,
            seed=config.evaluation.seed,
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """What every card holds: the floor, and which weights of which configuration were scored."""
        floor, floor_of, num_floor = self.floor
        return {
            "floor": floor.scores,
            "floor_errors": floor.errors,
            "floor_of": floor_of,
            "num_floor": num_floor,
            "model_digest": self.model.digest,
            "config_digest": self.model.config.digest,
            "step": self.model.step,
        }


def counter(report: Progress, what: str, total: int) -> Callable[[int], None]:
    """A callback that takes steps and reports their sum."""
    done = 0

    def step(images: int) -> None:
        nonlocal done
        done += images
        report(what, done, total)

    step(0)
    return step
