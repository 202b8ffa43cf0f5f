"""What is shipped: a ladder of averaged pairs with its schedule, configuration and class names.

On disk a model is a directory of `model.json` + `pair-00.safetensors`, ...; a checkpoint contains one, a package is
one.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from cdrl import __version__
from cdrl import config as configuration
from cdrl.build import build_formulation, build_ladder, build_schedule
from cdrl.config import ComputeConfig, Config, SamplingConfig, tree_digest
from cdrl.errors import ConfigError, RegistryError
from cdrl.method.formulation import Formulation
from cdrl.method.guidance import Condition
from cdrl.method.inpainting import Inpainting
from cdrl.method.pairs import PairLadder
from cdrl.method.rng import Rng
from cdrl.method.sampling import Record, sample
from cdrl.method.schedule import Schedule
from cdrl.storage import sha256_file
from cdrl.weights import load_tensors, pair_file

__all__ = ["Model", "build_ladder", "build_schedule", "usual_device"]

FORMAT = 1


class Card(BaseModel):
    """`model.json`: what the weight files beside it are, and their SHA-256 by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    cdrl_version: str
    config: dict[str, Any]
    config_digest: str
    class_names: tuple[str, ...]
    manifest_digest: str
    step: int
    files: dict[str, str]


@dataclass
class Model:
    """A trained ladder, ready to sample.

    Attributes:
        config: the run's resolved configuration.
        ladder: averaged weights, singular vectors converged.
        class_names: the name of label c is class_names[c - 1]; empty for unlabelled data.
        manifest_digest: SHA-256 of the training data's manifest.
        step: updates behind these weights.
        compute: how samples are computed; not what was chosen for training, since the device may be another.
    """

    config: Config
    ladder: PairLadder
    class_names: tuple[str, ...]
    manifest_digest: str
    step: int
    compute: ComputeConfig = ComputeConfig()
    schedule: Schedule = field(init=False)
    formulation: Formulation = field(init=False)
    digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.schedule = build_schedule(self.config.schedule)
        self.formulation = build_formulation(self.compute, self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.ladder.parameters()).device

    @cached_property
    def exact(self) -> Formulation:
        """The formulation for log-densities: log p = f/step_size multiplies a rounding of f at level 0 by 1e5."""
        precision = {"chain_precision": "fp32", "loss_precision": "fp32"}
        compute = self.compute if self.compute.formulation == "plain" else self.compute.model_copy(update=precision)
        return build_formulation(compute, self.device)

    def write(self, directory: Path) -> None:
        """Write `pair-*.safetensors`, then `model.json` with their digests, into an existing directory."""
        digests = {}
        for number, pair in enumerate(self.ladder.pairs):
            path = directory / pair_file(number)
            safetensors.torch.save_file({key: value.contiguous() for key, value in pair.state_dict().items()}, path)
            digests[path.name] = sha256_file(path)
        self.write_card(directory, digests)

    def write_card(self, directory: Path, files: dict[str, str]) -> None:
        """Write `model.json` for weight files with these SHA-256 digests."""
        card = Card(
            format=FORMAT,
            cdrl_version=__version__,
            config=self.config.model_dump(mode="json"),
            config_digest=self.config.digest,
            class_names=self.class_names,
            manifest_digest=self.manifest_digest,
            step=self.step,
            files=files,
        )
        text = json.dumps(card.model_dump(mode="json"), indent=1, sort_keys=True)
        (directory / "model.json").write_text(text)
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        compute: ComputeConfig = ComputeConfig(),  # noqa: B008 - frozen
    ) -> "Model":
        """Read a checkpoint or package directory; nothing is unpickled and every weight file's digest is checked.

        Raises:
            RegistryError: a file is missing, damaged, of another format or does not fit the configuration.
        """
        directory = Path(directory)
        place = directory / "model.json"
        try:
            text = place.read_text()
            tree = json.loads(text)
            if tree["format"] != FORMAT:
                raise RegistryError(f"{place}: expected format {FORMAT}, got {tree['format']!r}")
            card = Card.model_validate(tree)
        except OSError:
            raise RegistryError(f"{directory}: not a model: model.json is missing") from None
        except (KeyError, TypeError, ValueError) as error:
            raise RegistryError(f"{directory}: not a readable model: {_start(error)}") from None
        if tree_digest(card.config) != card.config_digest:
            raise RegistryError(f"{place}: the configuration was changed after it was written; use another copy")
        config = configuration.validate(card.config, where=str(place))
        if config.data.num_classes not in (0, len(card.class_names)):
            expected = config.data.num_classes
            raise RegistryError(f"{place}: expected the names of {expected} classes, got {len(card.class_names)}")
        ladder = build_ladder(config)
        names = [pair_file(number) for number in range(len(ladder.pairs))]
        if sorted(card.files) != names:
            found = ", ".join(sorted(card.files)) or "none"
            raise RegistryError(f"{place}: expected the files {', '.join(names)}, got {found}")
        for name, pair in zip(names, ladder.pairs, strict=True):
            try:
                pair.load_state_dict(load_tensors(directory / name, card.files[name]))
            except (RuntimeError, safetensors.SafetensorError) as error:
                raise RegistryError(f"{directory / name}: does not fit the configuration: {_start(error)}") from None
        ladder.to(device).requires_grad_(False)
        model = cls(config, ladder, card.class_names, card.manifest_digest, card.step, compute)
        model.digest = hashlib.sha256(text.encode()).hexdigest()
        return model

    def label_of(self, name: str | None) -> int:
        """The label 1 ... C of a class name; None or "" is 0, no class.

        Raises:
            ConfigError: the model has no such class.
        """
        if not name:
            return 0
        known = self.class_names if self.config.data.num_classes else ()
        if name not in known:
            raise ConfigError(f"label {name!r}: the model's classes are: {', '.join(known[:20]) or 'none'}")
        return known.index(name) + 1

    def sample(
        self,
        num_images: int,
        *,
        labels: Tensor | int | None = None,
        composition: Mapping[int, float] | None = None,
        inpainting: Inpainting | None = None,
        seed: int = 0,
        first: int = 0,
        sampling: SamplingConfig | None = None,
        progress: Callable[[int], None] | None = None,
        record: Record | None = None,
    ) -> Tensor:
        """Draw images number first ... first+num_images-1 of the set that (seed, sampling) defines.

        The set is drawn in batches of `sampling.batch_size`, each with randomness of its own, so it is the same for any
        split over workers that cuts between batches.

        Args:
            num_images: N >= 1.
            labels: (N,) integers or one for all, 0 = none.
            composition: instead of labels, the classes 1 ... C whose product is drawn, each with its w
                (`Condition.composed`).
            inpainting: what is known of the N images.
            first: a multiple of sampling.batch_size.
            sampling: default: the configuration's own.
            progress: called with the number of images after each batch.
            record: sees every level and step of each batch.

        Returns:
            (N, *shape) float32 on the CPU; images in [-1, 1].

        Raises:
            ConfigError: no images; labels out of range, of another number or for an unconditional model; guidance or
                composition without labels; known images of another shape; a value comes out that is not finite.
        """
        if num_images < 1:
            raise ConfigError(f"number of images: expected at least 1, got {num_images}")
        options = sampling or self.config.sampling
        shape = self.config.data.shape
        if composition is None:
            given, weight = self._labels(labels, num_images), options.guidance
            weights = weight if isinstance(weight, tuple) else (weight,)
            conditions = [Condition.guided(given, each) for each in weights]
        else:
            conditions = [self._composed(composition, num_images, labels)]
        expected = (num_images, *shape)
        if inpainting is not None and inpainting.image.shape != expected:
            raise ConfigError(f"inpainting: expected images {list(expected)}, got {list(inpainting.image.shape)}")
        if first % options.batch_size:
            raise ConfigError(f"first image {first} is not a multiple of the batch size {options.batch_size}")
        parts = []
        knobs = options.model_dump(exclude={"batch_size", "guidance"})
        for start in range(0, num_images, options.batch_size):
            stop = min(start + options.batch_size, num_images)
            batch = (first + start) // options.batch_size
            rng = Rng(seed, "sample", batch, device=self.device)
            x_T = rng.normal(torch.empty(stop - start, *shape, device=self.device))
            rows = [condition.rows(start, stop, self.device) for condition in conditions]
            common: dict[str, Any] = {"rng": rng, "clamp": len(shape) == 3, "record": record}
            common["condition"] = rows if len(rows) > 1 else rows[0]
            common["formulation"] = self.formulation
            if inpainting is not None:
                noise = Rng(seed, "known pixels", batch, device=self.device)
                common["constraint"] = inpainting.constraint(start, stop, noise, like=x_T)
                common["num_rounds"] = inpainting.num_rounds
            parts.append(sample(self.ladder, self.schedule, x_T, **common, **knobs).cpu())
            if progress is not None:
                progress(stop - start)
        images = torch.cat(parts)
        if not (finite := images.flatten(1).isfinite().all(1)).all():
            named = "the composition's weights" if composition else f"sampling.guidance ({options.guidance_text})"
            raise ConfigError(
                f"{int((~finite).sum())} of {num_images} samples are not finite; lower {named} "
                "or sampling.step_multiplier, or take another checkpoint"
            )
        return images

    def _composed(self, composition: Mapping[int, float], num_images: int, labels: Tensor | int | None) -> Condition:
        num_classes = self.config.data.num_classes
        if labels is not None:
            raise ConfigError("composition: it brings the labels; leave the others out")
        if not num_classes:
            raise ConfigError("composition: the model is unconditional, it has no classes to compose")
        if wrong := [label for label in composition if not 1 <= label <= num_classes]:
            raise ConfigError(f"composition: expected labels 1 ... {num_classes}, got {wrong[0]}")
        weights = list(composition.values())
        if not all(map(math.isfinite, weights)):
            raise ConfigError(f"composition: expected finite weights, got {weights}")
        return Condition.composed([torch.full((num_images,), label) for label in composition], weights)

    def _labels(self, labels: Tensor | int | None, num_images: int) -> Tensor | None:
        num_classes = self.config.data.num_classes
        if labels is None:
            return torch.zeros(num_images, dtype=torch.long) if num_classes else None
        label = torch.as_tensor(labels, dtype=torch.long)
        if label.shape not in ((), (num_images,)):
            raise ConfigError(f"labels: expected one or {num_images}, got {list(label.shape)}")
        label = label.expand(num_images)
        if not (0 <= int(label.min()) and int(label.max()) <= num_classes):
            raise ConfigError(f"labels: expected 0 ... {num_classes}, got {int(label.min())} ... {int(label.max())}")
        return label if num_classes else None


def usual_device() -> torch.device:
    """Where a command computes: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _start(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
