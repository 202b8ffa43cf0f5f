"""Feature nets behind one protocol: Inception or the dataset's own classifier, through torch-fidelity; or no net."""

import hashlib
import io
import pickle
import tempfile
from pathlib import Path
from typing import Any, Protocol
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity import registry, utils
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from cdrl import storage
from cdrl.config import Config, EvaluationConfig
from cdrl.data import Dataset, Manifest
from cdrl.data.dataset import cache_root
from cdrl.errors import ConfigError, DataError, StorageError
from cdrl.evaluation import classifier

__all__ = ["Coordinates", "Extractor", "FidelityExtractor", "Judge", "classifier_features", "extractor_for"]

INCEPTION = "inception-v3-compat"
# of the file behind URL_INCEPTION_V3
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CLASSIFIER = "cdrl-classifier"
BATCH_IMAGES = 100


class Extractor(Protocol):
    """A feature net.

    Attributes:
        name: of net and layer.
        digest: SHA-256 of its weights file; "none" if it has no weights.
        metric: what a Fréchet distance in these features is called. Only Inception's standard weights make it "FID".
    """

    name: str
    digest: str
    metric: str

    def features(self, images: NDArray) -> NDArray[np.float32]:
        """(n, D) of uint8 images (n, C, H, W), C = 1 or 3, or of float32 points (n, dims)."""
        ...

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """(n, classes) that the net makes of its features (n, D), up to a constant per class; None without classes."""
        ...


class Coordinates:
    """The features of a point are its coordinates."""

    name, digest, metric = "coordinates", "none", "FD (coordinates)"

    def features(self, images: NDArray) -> NDArray[np.float32]:
        """The points (n, dims) themselves."""
        return images.astype(np.float32)

    def logits(self, features: NDArray[np.float32]) -> None:
        """Points have no classes."""


class FidelityExtractor:
    """One layer of a net in torch-fidelity's registry. Using it leaves torch's global random state alone."""

    def __init__(
        self, registered: str, layer: str, weights: Path, *, digest: str, metric: str, device: str, colour: bool = False
    ) -> None:
        self.name, self.digest, self.metric = f"{registered}/{layer}", digest, metric
        self._layer, self._cuda, self._colour = layer, torch.device(device).type == "cuda", colour
        with torch.random.fork_rng(devices=[]):
            self.net: Any = utils.create_feature_extractor(
                registered, [layer], cuda=self._cuda, feature_extractor_weights_path=str(weights), verbose=False
            )

    def features(self, images: NDArray) -> NDArray[np.float32]:
        """(n, D) of uint8 images (n, C, H, W); a net of colours sees one channel three times."""
        pixels = torch.as_tensor(images)
        if self._colour and pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        with torch.random.fork_rng(devices=[]):
            layers = utils.get_featuresdict_from_dataset(
                _Images(pixels), self.net, BATCH_IMAGES, self._cuda, save_cpu_ram=True, verbose=False
            )
        return layers[self._layer].numpy()

    @torch.no_grad()
    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, classes); Inception's without its bias, as in every published Inception score."""
        rows = torch.as_tensor(features, device="cuda" if self._cuda else "cpu")
        own = isinstance(self.net, _RegisteredClassifier)
        return (self.net.classifier.head(rows) if own else rows @ self.net.fc.weight.T).cpu().numpy()


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
        ConfigError: it does not go with the data, or the weights are no Inception weights.
        DataError, StorageError: weights are damaged or cannot be fetched.
    """
    kind, manifest = config.evaluation.extractor, train.manifest
    if (kind == "coordinates") != (manifest.dtype == "float32"):
        raise ConfigError(
            f"evaluation.extractor: {kind} does not go with data of shape {manifest.shape} and type {manifest.dtype}; "
            "use coordinates for points, inception or classifier for images"
        )
    if kind == "coordinates":
        return Coordinates()
    if kind == "classifier":
        return classifier_features(train, holdout, config.data.cache, device)
    return _inception(config.evaluation, device)


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
    return FidelityExtractor(CLASSIFIER, "features", folder, digest=digest, metric=metric, device=device)


def _inception(config: EvaluationConfig, device: str = "cpu") -> FidelityExtractor:
    """Inception's 2048 pooled features, with weights from `config.weights` or by torch-fidelity's own download.

    torch-fidelity unpickles its weights file without restriction. So the file is read here, restricted to tensors, and
    torch-fidelity is given a copy that this process wrote.

    Raises:
        ConfigError: not a file of Inception weights.
        DataError: another SHA-256 than expected.
        StorageError: they cannot be read or downloaded.
    """
    uri = config.weights or str(_downloaded())
    content = storage.read_bytes(uri)
    digest = hashlib.sha256(content).hexdigest()
    expected = config.weights_sha256 or (digest if config.weights else INCEPTION_SHA256)
    if digest != expected.lower():
        raise DataError(f"{uri}: expected Inception weights of SHA-256 {expected[:12]}..., got {digest[:12]}...")
    metric = "FID" if digest == INCEPTION_SHA256 else f"FD (inception, unknown weights {digest[:8]})"
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, copy := Path(folder) / "inception.pt")
            return FidelityExtractor(INCEPTION, "2048", copy, digest=digest, metric=metric, device=device, colour=True)
    except (pickle.UnpicklingError, RuntimeError, TypeError, ValueError, LookupError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch would advise to read it without restriction
            reason = "it does not hold tensors alone"
        raise ConfigError(f"evaluation.weights: {uri} is no file of Inception weights: {reason}") from None


def _downloaded() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=INCEPTION_SHA256, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise StorageError(
                f"cannot download the Inception weights from {URL_INCEPTION_V3}: {error}; "
                "set evaluation.weights to a copy (path or URI)"
            ) from None
    return path


def _dataset_name(manifest: Manifest) -> str:
    """`digits`, `cifar10` (torchvision:CIFAR10), or the last folder's name of a source that has a path."""
    path = manifest.path
    if path is None:
        return manifest.source.rpartition(":")[2].lower()
    folders = [part for part in Path(path).parts if not set(part) & set("*?[.")]
    return folders[-1].lower() if folders else manifest.source


class _Images(torch.utils.data.Dataset):
    """Rows of a tensor one by one, as torch-fidelity wants them."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self._pixels[index]


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
