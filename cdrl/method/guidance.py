r"""Guidance and composition: one weighted sum over labels, for f and g alike (spec sections 8.1 and 8.2).

    guided      (1+w) f(y; c) - w f(y; none)
    composed    f(y; none) + sum_i (1+w_i) ( f(y; c_i) - f(y; none) )

The weights add up to one, so the noise of the initializer, the quadratic term of the chain and its step size stay as
they are. All branches go through the net in one batched pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.formulation import BatchEnergy, Prepared

__all__ = ["Condition"]


@dataclass(frozen=True)
class Condition:
    """Which labels a batch is drawn for, and with which weights.

    Attributes:
        labels: M label vectors (B,), 0 = none; a single None for an unconditional net.
        weights: M numbers that add up to one.
    """

    labels: tuple[Tensor | None, ...] = (None,)
    weights: tuple[float, ...] = (1.0,)

    @classmethod
    def guided(cls, label: Tensor | None, guidance: float = 0.0) -> "Condition":
        """Classifier-free guidance with weight w; at w = 0 the conditional net itself, bit by bit.

        Args:
            label: (B,) classes, 0 = none; None for an unconditional net.
            guidance: w.

        Raises:
            ConfigError: guidance without labels.
        """
        if guidance == 0:
            return cls((label,))
        if label is None:
            raise ConfigError(f"sampling.guidance: {guidance:g} needs labels; the model or the request has none")
        return cls.composed([label], [guidance])

    @classmethod
    def composed(cls, labels: Sequence[Tensor], guidance: Sequence[float]) -> "Condition":
        """The product of several classes, each with its own w_i; below -1 a class is repelled.

        Args:
            labels: M vectors (B,).
            guidance: w_i of each; (1 + w_i) is the weight of the class.

        Raises:
            ConfigError: no labels, or another number of weights.
        """
        if not labels or len(labels) != len(guidance):
            raise ConfigError(f"composition: expected one weight for each of {len(labels)} labels, got {len(guidance)}")
        weights = [1 + w for w in guidance]
        return cls((*labels, torch.zeros_like(labels[0])), (*weights, 1 - sum(weights)))

    def rows(self, first: int, stop: int, device: torch.device) -> "Condition":
        """The same for the rows first ... stop-1 of the batch."""
        labels = (None if label is None else label[first:stop].to(device) for label in self.labels)
        return Condition(tuple(labels), self.weights)

    def energy(self, prepared: Prepared, logsnr: Tensor) -> BatchEnergy:
        """f of the weighted sum at (B,) levels."""
        f = prepared(logsnr.repeat(len(self.weights)), self._stacked())
        return f if self.weights == (1.0,) else _WeightedEnergy(f, self)

    def mean(self, net: Callable[..., Tensor], x: Tensor, logsnr: Tensor) -> Tensor:
        """The weighted sum of an initializer's means, like x (B, ...)."""
        if self.weights == (1.0,):
            return net(x, logsnr, self.labels[0])
        return self.combine(net(self.repeat(x), logsnr.repeat(len(self.weights)), self._stacked()))

    def repeat(self, x: Tensor) -> Tensor:
        """(B, ...) to (M B, ...), label after label."""
        return x.repeat(len(self.weights), *[1] * (x.ndim - 1))

    def combine(self, branches: Tensor) -> Tensor:
        """(M B, ...) to the weighted sum (B, ...)."""
        parts = branches.chunk(len(self.weights))
        return torch.stack([w * part for w, part in zip(self.weights, parts, strict=True)]).sum(dim=0)

    def _stacked(self) -> Tensor | None:
        known = [label for label in self.labels if label is not None]
        return torch.cat(known) if known else None


@dataclass(frozen=True)
class _WeightedEnergy:
    f: BatchEnergy
    condition: Condition

    def __call__(self, y: Tensor) -> Tensor:
        return self.condition.combine(self.f(self.condition.repeat(y)))

    def both(self, y_pos: Tensor, y_neg: Tensor) -> tuple[Tensor, Tensor]:
        return self(y_pos), self(y_neg)

    @property
    def gradient(self) -> "_WeightedGradient":
        return _WeightedGradient(self.f.gradient, self.condition)

    def backward(self, loss: Tensor) -> None:
        self.f.backward(loss)


@dataclass(frozen=True)
class _WeightedGradient:
    of: Callable[[Tensor], Tensor]
    condition: Condition

    def __call__(self, y: Tensor) -> Tensor:
        return self.condition.combine(self.of(self.condition.repeat(y)))
