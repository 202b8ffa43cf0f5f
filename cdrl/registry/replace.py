"""A new version from an old one, with the pairs of some levels from another run: levels are independent in training."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from cdrl.build import pairs_of
from cdrl.config import Config, InitializerConfig
from cdrl.config.resolve import override
from cdrl.errors import RegistryError
from cdrl.evaluation.evaluate import evaluate
from cdrl.evaluation.protocol import Protocol
from cdrl.evaluation.scorer import Progress
from cdrl.model import Model
from cdrl.registry.load import opened
from cdrl.registry.publish import publish
from cdrl.registry.version import Version
from cdrl.registry.versions import Registry
from cdrl.storage import sha256_file
from cdrl.weights import pair_file

__all__ = ["put_together", "replace"]

# what must be the same in both, all of a section or these settings
DECISIVE: dict[str, tuple[str, ...]] = {
    "data": ("shape", "num_classes"),
    "schedule": (),
    "energy": (),
    "initializer": (),
    "pairs": (),
}


def replace(
    registry: Registry,
    base: str,
    levels: Sequence[int],
    source: str,
    *,
    root: str = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Version:
    """Register `base` with these levels from `source`, scored under the protocol of `base`; nothing is promoted.

    Args:
        base: a version: `NAME/3`, `NAME@champion`.
        levels: all levels of each pair that is replaced.
        source: whatever `opened` takes.
        overrides: of the configuration that it is scored with: `data.uri=...`.

    Raises:
        ConfigError: a pair serves other levels too; as `evaluate`.
        RegistryError: the two do not go together, or are the same.
    """
    version = registry.find(base)
    with registry.package(version) as ours, opened(source, root=root, tracking=registry.uri) as theirs:
        with TemporaryDirectory(prefix="cdrl-replace-") as scratch:
            model = put_together(ours, theirs, levels, Path(scratch))
            config = override(_measured_as(model.config, version), list(overrides))
            card = evaluate(scratch, config, progress=progress).card
            named = ", ".join(map(str, sorted(set(levels))))
            made_from = f"{version.name}/{version.number} with level {named} of {source}"
            return publish(registry, Path(scratch), model, card, version.mlflow_run_id, made_from=made_from)


def put_together(ours: Path, theirs: Path, levels: Sequence[int], folder: Path) -> Model:
    """Write `ours` with the pairs of these levels from `theirs` into an empty folder.

    Raises:
        ConfigError, RegistryError: as `replace`.
    """
    model, donor = Model.load(ours), Model.load(theirs)
    _check_fit(model, donor, str(theirs))
    replaced = pairs_of(model.config, levels)
    files = {}
    for number in range(len(model.ladder.pairs)):
        name = pair_file(number)
        shutil.copy((theirs if number in replaced else ours) / name, folder / name)
        files[name] = sha256_file(folder / name)
    if all(sha256_file(ours / name) == digest for name, digest in files.items()):
        raise RegistryError(f"levels {sorted(set(levels))}: the weights are the same in both; nothing to replace")
    model.write_card(folder, files)
    return Model.load(folder)


def _check_fit(model: Model, donor: Model, where: str) -> None:
    left, right = (one.config.model_dump(mode="json") for one in (model, donor))
    for tree in (left, right):
        tree["initializer"] = tree["initializer"] or dict.fromkeys(InitializerConfig.model_fields)
        tree["pairs"] = {"of levels": tree["pairs"]}
    differing = [
        f"{section}.{name}: {left[section][name]} against {right[section][name]}"
        for section, names in DECISIVE.items()
        for name in names or left[section]
        if left[section][name] != right[section][name]
    ]
    if differing:
        raise RegistryError(f"{where}: its levels do not fit: {'; '.join(differing[:5])}")
    if (model.manifest_digest, model.class_names) != (donor.manifest_digest, donor.class_names):
        raise RegistryError(
            f"{where}: its levels do not fit: trained on data {donor.manifest_digest[:12]}, expected "
            f"{model.manifest_digest[:12]}"
        )


def _measured_as(config: Config, version: Version) -> Config:
    """The configuration that scores under the protocol of a version's card, as far as it says so."""
    if version.scorecard is None:
        return config
    protocol: Protocol = version.scorecard.protocol
    asked = {"num_samples": protocol.num_generated, "seed": protocol.seed}
    evaluation = config.evaluation.model_copy(update=asked)
    return config.model_copy(update={"sampling": protocol.sampling, "evaluation": evaluation})
