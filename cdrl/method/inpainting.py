r"""Inpainting: known pixels are held, at every noise level, where the data would be (spec section 8.3).

With a mask M = 1 on the known pixels of x_0 and one noise eps for both sides of a transition (spec section 6, step 2)

    before a level           x_t <- M (alpha_t x_0 + sigma_t eps) + (1 - M) x_t
    after g and every step     y <- M scale (alpha_s x_0 + sigma_s eps) + (1 - M) y
    after the final denoise  x_0 <- M x_0 + (1 - M) x

so a chain samples p(x_s unknown | x_s known, x_t). Its x_t came from levels that knew the known pixels only through
their noise; leaving a level again with x_t drawn anew from x_s (`num_rounds` of `sample`: Gibbs steps on x_t and x_s)
forgets that x_t, and many rounds reach p(x_s unknown | x_s known).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.rng import Rng
from cdrl.method.schedule import Transition

__all__ = ["MASKS", "Inpainting", "KnownPixels", "named_mask"]

MASKS = ("left", "right", "top", "bottom", "centre", "random:SHARE")
"""What `named_mask` knows."""


class KnownPixels:
    """The `Constraint` that a batch agrees with an image where the mask says so.

    Args:
        image: x_0 (B, ...).
        mask: (B, ...) bool, True = known.
        rng: of the noise on the known pixels; another one than the sampler's, whose draws stay as they are.
        fresh_noise: another eps each time a level is left, which completed digits better; else one for the whole run.
    """

    def __init__(self, image: Tensor, mask: Tensor, rng: Rng, *, fresh_noise: bool = True) -> None:
        self._image, self._mask, self._rng, self._fresh_noise = image, mask, rng, fresh_noise
        self._noise = rng.normal(image)

    def noisy(self, x_t: Tensor, transition: Transition) -> Tensor:
        """x_t (B, ...) with the known pixels at noise level t."""
        if self._fresh_noise:
            self._noise = self._rng.normal(x_t)
        known = transition.alpha_t * self._image + transition.sigma_t * self._noise
        return torch.where(self._mask, known, x_t)

    def scaled(self, y: Tensor, transition: Transition) -> Tensor:
        """y (B, ...) with the known pixels at noise level s, times scale."""
        known = transition.alpha_s * self._image + transition.sigma_s * self._noise
        return torch.where(self._mask, transition.scale * known, y)

    def clean(self, x_0: Tensor) -> Tensor:
        """x_0 (B, ...) with the known pixels themselves."""
        return torch.where(self._mask, self._image, x_0)


@dataclass(frozen=True)
class Inpainting:
    """What is known of N images that are to be drawn.

    Args:
        image: x_0 (N, *shape), finite where it is known.
        mask: bool, of the same shape or one that expands to it, True = known.
        num_rounds: times that each level is left; more agree better with the known pixels and take as much longer.
        fresh_noise: as `KnownPixels`.

    Raises:
        ConfigError: a mask that does not fit the image or holds no truth values, or a known pixel that is not finite.
    """

    image: Tensor
    mask: Tensor
    num_rounds: int = 1
    fresh_noise: bool = True

    def __post_init__(self) -> None:
        shape, found = list(self.image.shape), list(self.mask.shape)
        if self.mask.dtype != torch.bool:
            raise ConfigError(f"inpainting: expected a mask of truth values, got {self.mask.dtype}")
        try:
            mask = self.mask.expand_as(self.image)
        except RuntimeError:
            raise ConfigError(f"inpainting: expected a mask of shape {shape}, got {found}") from None
        wrong = mask & ~self.image.isfinite()
        if wrong.any():
            raise ConfigError(f"inpainting: {int(wrong.sum())} of {int(mask.sum())} known pixels are not finite")

    def constraint(self, first: int, stop: int, rng: Rng, like: Tensor) -> KnownPixels:
        """For images number first ... stop-1, in the dtype and on the device of `like`."""
        mask = self.mask.expand_as(self.image)[first:stop].to(like.device)
        return KnownPixels(self.image[first:stop].to(like), mask, rng, fresh_noise=self.fresh_noise)


def named_mask(name: str, like: Tensor, rng: Rng) -> Tensor:
    """A mask (N, 1, H, W), True = known, for images `like` (N, C, H, W).

    Args:
        name: which part is hidden: a half (left, right, top, bottom), the middle half of both sides (centre), or
            `random:SHARE`, that share of the pixels, others in each image.
        rng: decides the random ones.

    Raises:
        ConfigError: no such mask, or a share that is not between 0 and 1.
    """
    known = torch.ones_like(like[:, :1], dtype=torch.bool)
    height, width = like.shape[-2:]
    kind, colon, share = name.partition(":")
    rows, columns = slice(None), slice(None)
    if kind == "random" and colon:
        try:
            hidden = float(share)
        except ValueError:
            hidden = math.nan
        if not 0 <= hidden <= 1:
            raise ConfigError(f"mask {name!r}: expected a share between 0 and 1, such as random:0.5")
        return rng.uniform(like[:, :1]) >= hidden
    match name:
        case "left":
            columns = slice(0, width // 2)
        case "right":
            columns = slice(width // 2, None)
        case "top":
            rows = slice(0, height // 2)
        case "bottom":
            rows = slice(height // 2, None)
        case "centre":
            rows, columns = slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)
        case _:
            raise ConfigError(f"mask {name!r}: expected {', '.join(MASKS)} or a picture's file")
    known[..., rows, columns] = False
    return known
