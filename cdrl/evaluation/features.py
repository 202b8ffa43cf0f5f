"""The feature net of an evaluation, and the dataset's own classifier as one and as a judge of classes."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity import registry
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from cdrl.config import Config
from cdrl.data import Dataset, Manifest
from cdrl.data.dataset import cache_root
from cdrl.errors import ConfigError
from cdrl.evaluation import classifier
from cdrl.evaluation.extractor import Coordinates, Extractor, FidelityExtractor
from cdrl.evaluation.pretrained import pretrained

__all__ = ["Judge", "classifier_features", "extractor_for"]

CLASSIFIER = "cdrl-classifier"


class Judge:
    """Tells the class of images by the dataset's own classifier.

    Attributes:
        accuracy: its share of right labels on the hold-out split, 0 ... 1; None without such a split.
        digest: SHA-256 of its weights.
    """

    def __init__(self, train: Dataset, holdout: Dataset | None, cache: str | None, device: str) -> None:
        self._extractor = classifier_features(train, holdout, cache, device)
        self.accuracy: float | None = self._extractor.net.card.accuracy
        self.digest = self._extractor.digest

    def agreement(self, images: NDArray, labels: NDArray[np.int64]) -> float | None:
        """Share of the labelled uint8 images (n, C, H, W) whose class is seen to be their label; None if none is."""
        labelled = np.flatnonzero(labels)
        if not len(labelled):
            return None
        seen = self._extractor.net.classifier.labels(self._extractor.features(images[labelled]))
        return float((seen == labels[labelled]).mean())


def extractor_for(config: Config, train: Dataset, holdout: Dataset | None, device: str = "cpu") -> Extractor:
    """The feature net that `config.evaluation` names, for the dataset of these splits.

    Raises:
        ConfigError: it does not go with the data, or the weights are not those of this net.
        DataError, StorageError: weights are damaged or cannot be fetched.
    """
    kind, manifest = config.evaluation.extractor, train.manifest
    if (kind == "coordinates") != (manifest.dtype == "float32"):
        raise ConfigError(
            f"evaluation.extractor: {kind} does not go with data of shape {manifest.shape} and type {manifest.dtype}; "
            "use coordinates for points, another one for images"
        )
    if kind == "coordinates":
        return Coordinates()
    if kind == "classifier":
        return classifier_features(train, holdout, config.data.cache, device)
    return pretrained(config.evaluation, device)


def classifier_features(train: Dataset, holdout: Dataset | None, cache: str | None, device: str) -> FidelityExtractor:
    """The penultimate layer of the dataset's own classifier, which is trained if the cache does not have it.

    Raises:
        ConfigError: the data have no labels or are no images.
        DataError: a cached classifier is damaged.
    """
    folder = classifier.find_or_train(train, holdout, cache_root(cache))
    if CLASSIFIER not in registry.FEATURE_EXTRACTORS_REGISTRY:
        registry.register_feature_extractor(CLASSIFIER, _RegisteredClassifier)
    digest = classifier.load(folder)[1].sha256
    metric = f"FD ({_dataset_name(train.manifest)}-cnn)"
    return FidelityExtractor(
        CLASSIFIER, "features", folder, digest=digest, metric=metric, device=device, head=_classes
    )


def _classes(net: "_RegisteredClassifier", features: Tensor) -> Tensor:
    return net.classifier.head(features)


def _dataset_name(manifest: Manifest) -> str:
    """`digits`, `cifar10` (torchvision:CIFAR10), or the last folder's name of a source that has a path."""
    path = manifest.path
    if path is None:
        return manifest.source.rpartition(":")[2].lower()
    folders = [part for part in Path(path).parts if not set(part) & set("*?[.")]
    return folders[-1].lower() if folders else manifest.source


class _RegisteredClassifier(FeatureExtractorBase):
    """Our classifier in torch-fidelity's clothes; its "weights path" is the classifier's folder."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        self.classifier, self.card = classifier.load(Path(feature_extractor_weights_path))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.classifier(images),)
