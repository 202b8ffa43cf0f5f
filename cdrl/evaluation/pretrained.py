"""Feature nets that others have trained: Inception and CLIP of torch-fidelity, with weights that are checked first.

torch-fidelity unpickles Inception's weights file without restriction, and a TorchScript archive brings code along. So a
file is read here: tensors alone, or the published archive by its SHA-256; torch-fidelity is given a copy of the tensors
that this process wrote. DINOv2 is not offered: torch-fidelity has it only by running code that it downloads at that
moment.
"""

import hashlib
import io
import pickle
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torch_fidelity import registry
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS, FeatureExtractorCLIP, build_model
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from cdrl import storage
from cdrl.config import EvaluationConfig
from cdrl.errors import ConfigError, DataError, StorageError
from cdrl.evaluation.extractor import FidelityExtractor

__all__ = ["INCEPTION_SHA256", "pretrained"]

# of the file behind URL_INCEPTION_V3
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
UNREADABLE = (pickle.UnpicklingError, RuntimeError, TypeError, ValueError, LookupError, EOFError, AssertionError)


@dataclass(frozen=True)
class _Net:
    """A net of torch-fidelity's registry, one layer of it, and its published weights.

    Attributes:
        metric: what a Fréchet distance in its features is called if the weights are the published ones.
        head: as in `FidelityExtractor`.
    """

    title: str
    registered: str
    layer: str
    url: str
    sha256: str
    metric: str
    head: Callable[[Any, Tensor], Tensor] | None


def pretrained(config: EvaluationConfig, device: str = "cpu") -> FidelityExtractor:
    """Inception's 2048 pooled features or CLIP's image embedding, with weights from `config.weights` or published ones.

    Raises:
        ConfigError: not a file of weights of this net.
        DataError: another SHA-256 than expected.
        StorageError: they cannot be read or downloaded.
    """
    net = _net(config.extractor)
    uri = config.weights or str(_downloaded(net))
    content = storage.read_bytes(uri)
    digest = hashlib.sha256(content).hexdigest()
    expected = config.weights_sha256 or (digest if config.weights else net.sha256)
    if digest != expected.lower():
        raise DataError(f"{uri}: expected {net.title} weights of SHA-256 {expected[:12]}..., got {digest[:12]}...")
    published = digest == net.sha256
    metric = net.metric if published else f"FD ({config.extractor}, unknown weights {digest[:8]})"
    try:
        state = _tensors(content, archive=published and net.title == "CLIP")
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, copy := Path(folder) / "weights.pt")
            return FidelityExtractor(
                net.registered,
                net.layer,
                copy,
                digest=digest,
                metric=metric,
                device=device,
                head=net.head,
                colour=True,
            )
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch would advise to read it without restriction
            reason = "it does not hold tensors alone"
        raise ConfigError(f"evaluation.weights: {uri} is no file of {net.title} weights: {reason}") from None


def _net(extractor: str) -> _Net:
    if extractor == "inception":
        name = "inception-v3-compat"
        return _Net("Inception", name, "2048", URL_INCEPTION_V3, INCEPTION_SHA256, "FID", _inception_classes)
    name, sha256 = f"cdrl-{extractor}", MODEL_METADATA[extractor]["hash"]
    if name not in registry.FEATURE_EXTRACTORS_REGISTRY:
        registry.register_feature_extractor(name, _Clip)
    return _Net("CLIP", name, "clip", MODEL_URLS[extractor], sha256, f"FD ({extractor})", None)


def _inception_classes(net: Any, features: Tensor) -> Tensor:
    """Without the bias, as in every published Inception score."""
    return features @ net.fc.weight.T


def _tensors(content: bytes, *, archive: bool) -> dict[str, Tensor]:
    """The tensors of a weights file; of a TorchScript archive only where it is a known one."""
    if archive:
        return torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it would open an archive, and then refuses to
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _downloaded(net: _Net) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / net.url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(net.url, str(path), hash_prefix=net.sha256, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise StorageError(
                f"cannot download the {net.title} weights from {net.url}: {error}; "
                "set evaluation.weights to a copy (path or URI)"
            ) from None
    return path


class _Clip(FeatureExtractorCLIP):
    """torch-fidelity's CLIP, made of tensors instead of an archive."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        FeatureExtractorBase.__init__(self, name, features_list)
        self.feature_extractor_internal_dtype = torch.float32
        state = torch.load(feature_extractor_weights_path, map_location="cpu", weights_only=True)
        self.model = build_model(state, torch.float32)
        self.resolution = self.model.visual.input_resolution
