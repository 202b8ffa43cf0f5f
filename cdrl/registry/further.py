"""Further sets of images of two models, drawn in pairs from the same noise, for a gate that is not sure."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from cdrl.config import Config
from cdrl.config.resolve import override
from cdrl.errors import ConfigError
from cdrl.evaluation.generate import draw, reference_labels
from cdrl.evaluation.protocol import Protocol
from cdrl.evaluation.reference import Reference
from cdrl.evaluation.scorer import Progress, counter
from cdrl.model import Model

__all__ = ["further_differences"]


def further_differences(
    candidate: Path,
    champion: Path,
    protocol: Protocol,
    overrides: list[str],
    progress: Progress | None = None,
) -> Iterator[float]:
    """The candidate's Fréchet distance minus the champion's, of one set after the other, without an end.

    Set number 1, 2, ... is the one that `cdrl evaluate` would draw of each model with the protocol's seed + the number.

    Args:
        candidate, champion: folders of packages.
        protocol: of both score cards.
        overrides: where the data are and how to reach them, if not as the candidate was trained; `data.uri=...`.

    Raises:
        ConfigError: the sets would be measured in another way than the cards were.
        DataError, StorageError: as `evaluate`.
    """
    config = override(Model.load(candidate).config, overrides)
    device = "cuda" if config.cluster.use_gpu else "cpu"
    models = [Model.load(folder, device) for folder in (candidate, champion)]
    reference = _reference(config, protocol, device)
    for model in models:
        reference.check(model)
    num_images, report = protocol.num_generated, progress or (lambda what, done, total: None)
    counts = reference.train.manifest.splits["train"].label_counts
    for number in count(1):
        seed, distances = protocol.seed + number, []
        labels = reference_labels(counts, num_images, seed) if config.data.num_classes else None
        for name, model in zip(("candidate", "champion"), models, strict=True):
            images = draw(
                model,
                num_images,
                labels=labels,
                sampling=protocol.sampling,
                seed=seed,
                progress=counter(report, f"set {number} of the {name}", num_images),
            )
            distances.append(reference.frechet(images))
        yield distances[0] - distances[1]


def _reference(config: Config, protocol: Protocol, device: str) -> Reference:
    """The real images, seen as the protocol says."""
    reference = Reference(config, device)
    found = {
        "metric": reference.extractor.metric,
        "extractor": reference.extractor.name,
        "extractor_digest": reference.extractor.digest,
        "manifest_digest": reference.train.manifest.digest,
        "num_reference": len(reference.train),
    }
    said = {name: getattr(protocol, name) for name in found}
    if differing := [f"{name}: {said[name]!r} against {found[name]!r}" for name in found if said[name] != found[name]]:
        raise ConfigError(
            f"further images would be measured in another way than the score cards were: {'; '.join(differing)}; give "
            "the settings of that evaluation with --set"
        )
    return reference
