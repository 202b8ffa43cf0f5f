"""The initializer of the 2-D toy: one residual MLP block with scale and shift by the level (spec section 10)."""

from torch import Tensor, nn
from torch.nn import functional

from cdrl.errors import ConfigError
from cdrl.method.nets.embedding import check_width, one_hot_label, sinusoid
from cdrl.method.nets.initializer import zero_weight
from cdrl.method.rng import Rng

__all__ = ["PointInitializer"]


class PointInitializer(nn.Module):
    """g: (B, dims) -> (B, dims).

    Args:
        dims: dimensions of a point.
        width: hidden width; the level embedding is twice as wide.
        groups: groups of the group normalisation.
        num_classes: C; labels are 0 (none) ... C. 0 = unconditional.
    """

    def __init__(self, dims: int, width: int = 64, groups: int = 32, num_classes: int = 0) -> None:
        super().__init__()
        check_width(2 * width, "initializer.width, doubled")
        if width % groups:
            raise ConfigError(f"initializer.groups: {groups} groups do not divide {width} channels")
        self.width = width
        self.level1, self.level2 = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, 2 * width)
        self.stem = nn.Linear(dims, width)
        self.norm1, self.norm2 = nn.GroupNorm(groups, width, eps=1e-6), nn.GroupNorm(groups, width, eps=1e-6)
        self.linear1, self.linear2 = nn.Linear(width, width), zero_weight(nn.Linear(width, width))
        self.scale_shift = nn.Linear(2 * width, 2 * width)
        self.head = zero_weight(nn.Linear(width, dims, bias=False))
        self.label = nn.Linear(num_classes + 1, 2 * width) if num_classes else None

    def forward(self, x_t: Tensor, logsnr: Tensor, label: Tensor | None = None, rng: Rng | None = None) -> Tensor:
        """The mean of y given x_t (B, dims), `label` (B,) with 0 or None = none; there is no dropout for `rng`."""
        del rng
        embedding = self.level2(functional.silu(self.level1(sinusoid(logsnr, 2 * self.width))))
        embedding = embedding + one_hot_label(self.label, label, x_t)
        x = self.stem(x_t)
        h = self.linear1(functional.silu(self.norm1(x)))
        scale, shift = self.scale_shift(functional.silu(embedding)).chunk(2, dim=1)
        x = x + self.linear2(functional.silu(self.norm2(h) * (1 + scale) + shift))
        return x_t + self.head(functional.silu(x))
