"""Exponential moving averages of parameters."""

import torch
from torch import nn

__all__ = ["update_average"]


@torch.no_grad()
def update_average(average: nn.Module, live: nn.Module, decay: float, num_updates: int) -> None:
    """Move the average towards the live parameters, with the ramp min(decay, (1+n)/(10+n)) (spec section 11).

    Only parameters are averaged. Singular vectors belong to one set of weights: run `power_iterate` on the average
    before it is used (trap 8).

    Args:
        num_updates: n, updates made before this one.
    """
    ramped = min(decay, (1 + num_updates) / (10 + num_updates))
    torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - ramped)
