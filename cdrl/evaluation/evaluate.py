"""From a model's directory to its score card and pictures: at K, at K = 0, and what real images would get."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from numpy.typing import NDArray
from PIL import Image

from cdrl.config import Config, SamplingConfig
from cdrl.errors import ConfigError
from cdrl.evaluation import gallery
from cdrl.evaluation.features import Judge
from cdrl.evaluation.fidelity import MAX_NEIGHBOUR_ROWS, NEIGHBOURS
from cdrl.evaluation.generate import generate
from cdrl.evaluation.protocol import Protocol, ScoreCard, Scores
from cdrl.evaluation.reference import Reference
from cdrl.model import Model
from cdrl.pictures import png_bytes
from cdrl.runs import fetch_model
from cdrl.session import connected
from cdrl.storage import write_bytes

__all__ = ["Evaluation", "evaluate"]

Progress = Callable[[str, int, int], None]
"""Called with (what is done, images done, images in all)."""


@dataclass(frozen=True)
class Evaluation:
    """A score card and the pictures that go with it, by name."""

    card: ScoreCard
    pictures: dict[str, Image.Image]

    def write(self, folder: Path) -> None:
        """`<name>.png`, `score-<protocol>-<model>.json` and, last, the same card as `latest.json`."""
        for name, picture in self.pictures.items():
            write_bytes(str(folder / f"{name}.png"), png_bytes(picture))
        content = self.card.model_dump_json(indent=1).encode()
        name = f"score-{self.card.protocol.digest[:8]}-{self.card.model_digest[:8]}.json"
        write_bytes(str(folder / name), content)
        write_bytes(str(folder / "latest.json"), content)


def evaluate(
    ref: str | Path,
    config: Config,
    *,
    run_id: str = "",
    which: Literal["best", "last", ""] = "",
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model by `config.evaluation` and `config.sampling` on the data of `config.data`.

    Args:
        ref: the model's directory or URI.
        config: the model's own, with changes below data.uri, data.cache, sampling, evaluation, cluster and run.
        run_id, which: where the model came from, for the card.

    Raises:
        ConfigError: settings that do not go with the model, the data or the cluster, or draw what is not finite.
        DataError, StorageError, RegistryError: data, weights or model are missing, damaged or out of reach.
    """
    report = progress or (lambda what, done, total: None)
    directory = fetch_model(str(ref))
    model = Model.load(directory)
    if model.config.identity != config.identity:
        raise ConfigError(
            f"{ref}: this model has another configuration (run {model.config.run_id}, asked for {config.run_id}); "
            "after training only data.uri, data.cache, sampling, evaluation, cluster, run and tracking may change"
        )
    device, num_images = "cuda" if config.cluster.use_gpu else "cpu", config.evaluation.num_samples
    report("real images", 0, 0)
    reference = Reference(config, device)
    reference.check(model)
    labels, judge = reference.labels(num_images), reference.judge()
    floor, floor_of, num_floor = reference.floor(None if judge is None else judge.accuracy)

    def drawn(sampling: SamplingConfig) -> tuple[NDArray, Scores, float]:
        started = time.monotonic()
        counted = _counter(report, f"images at K = {sampling.num_steps}", num_images)
        images = generate(
            directory,
            num_images,
            labels=labels,
            sampling=sampling,
            seed=config.evaluation.seed,
            cluster=config.cluster,
            progress=counted,
        )
        seconds = time.monotonic() - started
        accuracy = None if judge is None or labels is None else judge.agreement(images, labels)
        return images, reference.scores(images, accuracy), seconds

    alone, k0 = None, None
    with connected(config.cluster) if config.cluster.num_workers > 1 else nullcontext():  # one session for both sets
        images, scores, seconds = drawn(config.sampling)
        shown = {f"K = {config.sampling.num_steps}": images}
        if config.initializer is not None:
            alone = config.sampling.model_copy(update={"num_steps": 0, "denoise_scale": 0.0})
            shown["K = 0: initializer alone"], k0, _ = drawn(alone)
    card = ScoreCard(
        protocol=_protocol(config, reference, judge),
        scores=scores,
        k0=k0,
        k0_sampling=alone,
        floor=floor,
        floor_of=floor_of,
        num_floor=num_floor,
        model_digest=model.digest,
        config_digest=model.config.digest,
        step=model.step,
        run_id=run_id,
        which=which,
        seconds=round(seconds, 3),
        images_per_s=round(num_images / seconds, 2),
    )
    return Evaluation(card, gallery.pictures(shown, labels, reference.train))


def _counter(report: Progress, what: str, total: int) -> Callable[[int], None]:
    """A callback that takes steps and reports their sum."""
    done = 0

    def step(images: int) -> None:
        nonlocal done
        done += images
        report(what, done, total)

    step(0)
    return step


def _protocol(config: Config, reference: Reference, judge: Judge | None) -> Protocol:
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
        sampling=config.sampling,
        seed=config.evaluation.seed,
    )
