r"""One move of the nets of a pair from the gradients of a batch, which may come in pieces and from several replicas.

Each chunk a piece: convolutions then see the same batch size for every number of replicas, and gradients are added in
a fixed order (`cdrl.method.tree`), so that the update has the same bits whoever computed which piece.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cdrl.errors import Diverged
from cdrl.method.rng import Rng
from cdrl.method.tree import leaves, tree_sum

__all__ = ["Batch", "Loss", "Observe", "Optimizers", "Outcome", "StepMetrics", "Synchronise", "descend"]

_ZERO = torch.zeros(())

Synchronise = Callable[[Iterator[Tensor]], Tensor]
"""Flat vectors (n,) of this replica's pieces, in order and given up -> their mean over the pieces of all replicas."""

Observe = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Is told level, f_pos, f_neg and displacement of a piece, each (B,) and without graph, before an optimizer moves."""

Loss = tuple[Tensor, Callable[[Tensor], None]]
"""The loss of a net, and what carries it back to the net's parameters."""


@dataclass(frozen=True)
class Optimizers:
    """One optimizer for each net of a pair; `initializer` is None where the pair has none."""

    energy: Optimizer
    initializer: Optimizer | None


@dataclass(frozen=True)
class StepMetrics:
    """What one update saw, averaged over the batch of all replicas; each a scalar, on the device until it is read."""

    loss_energy: Tensor = _ZERO
    loss_initializer: Tensor = _ZERO
    f_pos: Tensor = _ZERO
    f_neg: Tensor = _ZERO
    displacement: Tensor = _ZERO  # rms of y_neg - y_init per pixel in units of the noise added, sqrt(K step_size)
    grad_norm_energy: Tensor = _ZERO  # before clipping
    grad_norm_initializer: Tensor = _ZERO


@dataclass(frozen=True)
class Batch:
    """The arguments of an update that have a row for each sample, and the randomness of these rows."""

    x_0: Tensor
    level: Tensor
    label: Tensor | None
    rng: Rng

    def pieces(self, chunkwise: bool) -> list["Batch"]:
        """One batch for each chunk, or all as one."""
        if not chunkwise:
            return [self]
        num = self.rng.num_chunks
        labels = [None] * num if self.label is None else self.label.chunk(num)
        return list(map(Batch, self.x_0.chunk(num), self.level.chunk(num), labels, self.rng.split()))


@dataclass(frozen=True)
class Outcome:
    """What an update does with a piece.

    Attributes:
        losses: by the name of the net.
        seen: by name, (B,) quantities of each sample without graph; not finite where it diverges.
    """

    losses: dict[str, Loss]
    seen: dict[str, Tensor]

    @property
    def means(self) -> dict[str, Tensor]:
        """Metrics by name, scalars."""
        means = torch.stack(list(self.seen.values())).mean(dim=1)
        losses = {f"loss_{name}": loss.detach() for name, (loss, _) in self.losses.items()}
        return losses | dict(zip(self.seen, means, strict=True))


def descend(
    nets: dict[str, nn.Module],
    optimizers: Optimizers,
    pieces: list[Batch],
    outcome: Callable[[Batch], Outcome],
    step: int,
    clip_norm: float | None,
    synchronise: Synchronise | None,
    observe: Observe | None = None,
) -> StepMetrics:
    """Gradients of each piece, their mean over all pieces of all replicas, clipping, and a step of each optimizer."""
    parameters = [parameter for net in nets.values() for parameter in net.parameters()]
    seen: list[dict[str, Tensor]] = []
    means: dict[str, Tensor] = {}

    def differentiate(piece: Batch) -> None:
        nonlocal means
        found = outcome(piece)
        for name, (loss, backward) in found.losses.items():
            nets[name].zero_grad(set_to_none=True)
            backward(loss)
        if observe is not None:
            observe(piece.level, *found.seen.values())
        seen.append(found.seen)
        means = found.means

    def flat(piece: Batch) -> Tensor:
        differentiate(piece)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        return torch.cat([*(gradient.flatten() for gradient in gradients), torch.stack(list(means.values()))])

    if len(pieces) == 1 and synchronise is None:
        differentiate(pieces[0])
    else:
        average = (synchronise or partial(_average, len(pieces)))(map(flat, pieces))
        *gradients, values = average.split([*(parameter.numel() for parameter in parameters), len(means)])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        means = dict(zip(means, values, strict=True))

    norms = {
        name: nn.utils.clip_grad_norm_(net.parameters(), clip_norm or math.inf, foreach=True)
        for name, net in nets.items()
    }
    _refuse_divergence(torch.cat([piece.level for piece in pieces]), step, seen, norms)
    for name in nets:
        getattr(optimizers, name).step()
    return StepMetrics(**means, **{f"grad_norm_{name}": norm for name, norm in norms.items()})


def _average(num_pieces: int, flat: Iterator[Tensor]) -> Tensor:
    """The mean of the pieces of the only replica."""
    batch = range(num_pieces)
    return tree_sum(batch, leaves(batch), flat).div_(num_pieces)


def _refuse_divergence(level: Tensor, step: int, seen: list[dict[str, Tensor]], norms: dict[str, Tensor]) -> None:
    """Raise where a gradient norm is not finite, naming the level of a sample (rows of `seen`) where it began.

    Norms are of averaged gradients, so that every replica refuses the same update.
    """
    if torch.stack(list(norms.values())).isfinite().all():
        return
    value = {f"grad_norm_{name}": norm.item() for name, norm in norms.items() if not norm.isfinite()}
    rows = torch.cat([torch.stack(list(piece.values())) for piece in seen], dim=1)
    worst = int(rows.isfinite().all(dim=0).int().argmin())
    raise Diverged(level=int(level[worst]), step=step, value=value)
