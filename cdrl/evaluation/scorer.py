"""One model's images under any sampling settings, scored against its data."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cdrl.config import Config, SamplingConfig
from cdrl.errors import ConfigError
from cdrl.evaluation.fidelity import MAX_NEIGHBOUR_ROWS, NEIGHBOURS
from cdrl.evaluation.generate import generate
from cdrl.evaluation.protocol import Protocol, Scores
from cdrl.evaluation.reference import Reference
from cdrl.model import Model
from cdrl.runs import fetch_model
from cdrl.session import connected

__all__ = ["Drawn", "Progress", "Scorer", "counter"]

Progress = Callable[[str, int, int], None]
"""Called with (what is done, images done, images in all)."""


@dataclass(frozen=True)
class Drawn:
    """Images (n, *shape) as the dataset stores them, their scores, and the seconds that drawing took."""

    images: NDArray
    scores: Scores
    seconds: float


class Scorer:
    """Draws sets of images with one model and scores them against the data of `config.data`.

    Args and errors as `evaluate`.

    Attributes:
        labels: (n,) of every set; None for an unconditional model.
        floor: what real images get, which ones, and how many.
    """

    def __init__(self, ref: str | Path, config: Config, progress: Progress | None = None) -> None:
        self._report = progress or (lambda what, done, total: None)
        self._directory, self._config = fetch_model(str(ref)), config
        self.model = Model.load(self._directory)
        if self.model.config.identity != config.identity:
            raise ConfigError(
                f"{ref}: this model has another configuration (run {self.model.config.run_id}, asked for "
                f"{config.run_id}); after training only data.uri, data.cache, sampling, evaluation, cluster, run and "
                "tracking may change"
            )
        self._report("real images", 0, 0)
        self.reference = Reference(config, "cuda" if config.cluster.use_gpu else "cpu")
        self.reference.check(self.model)
        self.labels, self.judge = self.reference.labels(config.evaluation.num_samples), self.reference.judge()
        self.floor = self.reference.floor(None if self.judge is None else self.judge.accuracy)

    def session(self) -> AbstractContextManager[object]:
        """The cluster's, for several sets; workers would otherwise be started anew for each."""
        return connected(self._config.cluster) if self._config.cluster.max_workers > 1 else nullcontext()

    def draw(self, sampling: SamplingConfig) -> Drawn:
        """`evaluation.num_samples` images and their scores."""
        config, num_images = self._config, self._config.evaluation.num_samples
        guided = f", w = {sampling.guidance:g}" if sampling.guidance else ""
        started = time.monotonic()
        images = generate(
            self._directory,
            num_images,
            labels=self.labels,
            sampling=sampling,
            seed=config.evaluation.seed,
            cluster=config.cluster,
            progress=counter(self._report, f"images at K = {sampling.steps_text}{guided}", num_images),
        )
        seconds = time.monotonic() - started
        known = None if self.judge is None or self.labels is None else self.judge.agreement(images, self.labels)
        return Drawn(images, self.reference.scores(images, known), seconds)

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
            labels="as reference" if config.data.num_classes else "none",
            sampling=sampling,
            seed=config.evaluation.seed,
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """What every card holds: the floor, and which weights of which configuration were scored."""
        floor, floor_of, num_floor = self.floor
        found = {"floor": floor, "floor_of": floor_of, "num_floor": num_floor, "step": self.model.step}
        return found | {"model_digest": self.model.digest, "config_digest": self.model.config.digest}


def counter(report: Progress, what: str, total: int) -> Callable[[int], None]:
    """A callback that takes steps and reports their sum."""
    done = 0

    def step(images: int) -> None:
        nonlocal done
        done += images
        report(what, done, total)

    step(0)
    return step
