r"""f at the levels of one batch, in the form that a chain and a loss use it.

The method is written once (`cooperative`, `sampling`) and runs on either of two formulations of f. `Plain`, here, is
the net itself: spectral norms and level embedding in every forward, autograd for the input gradient. `Fast`
(`cdrl.method.fast`) is the same mathematics with everything that is constant in a chain computed once.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from cdrl.method.langevin import Chain, input_gradient, langevin

__all__ = ["BatchEnergy", "Formulation", "Plain", "Prepared"]


class BatchEnergy(Protocol):
    """f of a batch of B rows, each at its level and with its label."""

    def __call__(self, y: Tensor) -> Tensor:
        """f (B,) of a batch (B, ...), differentiable in y and in the net."""

    def both(self, y_pos: Tensor, y_neg: Tensor) -> tuple[Tensor, Tensor]:
        """f of two batches, each (B, ...) -> (B,)."""

    @property
    def gradient(self) -> Callable[[Tensor], Tensor]:
        """y -> grad_y f of one batch, like y (B, ...), without a graph."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar made of this f to the net's parameters; once."""


Prepared = Callable[[Tensor, Tensor | None], BatchEnergy]
"""(logsnr (B,), label (B,) or None) -> f: a net whose weights stay as they are meanwhile."""


class Formulation(Protocol):
    """How f is computed."""

    def prepare(self, net: nn.Module) -> Prepared:
        """Whatever of `net` does not depend on the batch."""

    def initializer(self, *, backward: bool = False) -> AbstractContextManager[object]:
        """The precision in which the initializer runs."""

    @property
    def chain(self) -> Chain:
        """Langevin's loop."""


@dataclass(frozen=True)
class PlainEnergy:
    """The net with its levels and labels filled in."""

    net: nn.Module
    logsnr: Tensor
    label: Tensor | None

    def __call__(self, y: Tensor) -> Tensor:
        f: Tensor = self.net(y, self.logsnr, self.label)
        return f

    def both(self, y_pos: Tensor, y_neg: Tensor) -> tuple[Tensor, Tensor]:
        return self(y_pos), self(y_neg)

    @property
    def gradient(self) -> Callable[[Tensor], Tensor]:
        return partial(input_gradient, self)

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class Plain:
    """The formulation that reads like the paper."""

    chain: Chain = staticmethod(langevin)

    def prepare(self, net: nn.Module) -> Prepared:
        """Nothing is prepared."""
        return lambda logsnr, label: PlainEnergy(net, logsnr, label)

    def initializer(self, *, backward: bool = False) -> AbstractContextManager[object]:
        """torch's default."""
        del backward
        return nullcontext()
