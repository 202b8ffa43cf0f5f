"""Classifier-free guidance wraps a net and keeps its signature (spec section 8.1)."""

import torch
from torch import Tensor, nn

__all__ = ["Guided"]


class Guided(nn.Module):
    """(1+w) net(x; label) - w net(x; none), both branches in one batched pass. Serves f and g alike.

    Args:
        net: (x, logsnr, label) -> Tensor of the same batch; its dropout, if any, is off.
        guidance: w; 0 is the conditional net.
    """

    def __init__(self, net: nn.Module, guidance: float) -> None:
        super().__init__()
        self.net, self.guidance = net, guidance

    def forward(self, x: Tensor, logsnr: Tensor, label: Tensor, *rest: None) -> Tensor:
        """The guided output for `label` (B,); where the label is 0 this is the unconditional net."""
        del rest
        both = self.net(torch.cat([x, x]), torch.cat([logsnr, logsnr]), torch.cat([label, torch.zeros_like(label)]))
        conditional, unconditional = both.chunk(2)
        return (1 + self.guidance) * conditional - self.guidance * unconditional
