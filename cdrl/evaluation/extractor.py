"""Feature nets behind one protocol: any net in torch-fidelity's registry, or no net."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity import utils

__all__ = ["Coordinates", "Extractor", "FidelityExtractor"]

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
        self,
        registered: str,
        layer: str,
        weights: Path,
        *,
        digest: str,
        metric: str,
        device: str,
        head: Callable[[Any, Tensor], Tensor] | None,
        colour: bool = False,
    ) -> None:
        """`head` makes logits of the registered net and rows of features; None if the net knows no classes."""
        self.name, self.digest, self.metric = f"{registered}/{layer}", digest, metric
        self._layer, self._cuda, self._head, self._colour = layer, torch.device(device).type == "cuda", head, colour
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
    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """(n, classes), or None."""
        if self._head is None:
            return None
        return self._head(self.net, torch.as_tensor(features, device="cuda" if self._cuda else "cpu")).cpu().numpy()


class _Images(torch.utils.data.Dataset):
    """Rows of a tensor one by one, as torch-fidelity wants them."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self._pixels[index]
