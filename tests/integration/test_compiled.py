"""The compiled fast formulation is the one that runs as written; torch compiles for a CPU with the machine's C++."""

import shutil

import pytest
import torch

from cdrl.method.fast import Fast
from cdrl.method.nets import EnergyNet

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]


def test_value_gradient_and_the_parameters_gradients() -> None:
    torch.manual_seed(0)
    net = EnergyNet(1, 4, (1, 2), 1, num_classes=2).double()
    y = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    logsnr, label = torch.tensor([3.0, 1.0, 0.0, -2.0], dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    found = []
    for formulation in (Fast(), Fast(compile=True)):
        net.zero_grad()
        f = formulation.prepare(net)(logsnr, label)
        f_pos, f_neg = f.both(y, 0.5 * y)
        f.backward((f_neg - f_pos).sum())
        found.append([f.gradient(y), f_pos.detach(), f_neg.detach(), *(p.grad.clone() for p in net.parameters())])
    for written, compiled in zip(*found, strict=True):
        torch.testing.assert_close(written, compiled, rtol=1e-10, atol=1e-10)
