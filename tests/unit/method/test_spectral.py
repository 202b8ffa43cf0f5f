"""Spectral normalisation with an explicit clock."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cdrl.method.nets import EnergyNet, power_iterate
from cdrl.method.nets.spectral import NUM_WARMUP_ITERATIONS, SpectralNorm, spectral

NUM_LAYERS = 1 + 2 + 2 * 3 + 1  # stem, two of the level, two blocks, one shortcut


def energy_net(num_classes: int = 0) -> EnergyNet:
    torch.manual_seed(0)
    return EnergyNet(1, 4, (1, 2), 1, num_classes=num_classes)


def norms(net: nn.Module) -> list[SpectralNorm]:
    return [module for module in net.modules() if isinstance(module, SpectralNorm)]


def vectors(net: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in net.buffers()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(x.equal(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("layer", [nn.Linear(40, 30), nn.Conv2d(8, 16, 3), nn.Conv2d(1, 4, 3), nn.Linear(3, 64)])
def test_warmed_at_construction(layer: nn.Linear | nn.Conv2d) -> None:
    original = layer.weight.detach().clone()
    spectral(layer)
    sigma = torch.linalg.svdvals(original.flatten(1))[0]
    # the estimate approaches sigma from below
    assert 0.95 * sigma <= (original.norm() / layer.weight.norm()) <= sigma * (1 + 1e-5)
    power_iterate(layer, 500)
    assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(layer.weight, original / sigma, rtol=1e-4, atol=1e-6)


def test_every_layer_but_head_and_gains_is_normalised() -> None:
    net = energy_net(num_classes=3)
    assert len(norms(net)) == NUM_LAYERS + 1
    plain = {name for name, parameter in net.named_parameters() if parameter.ndim > 1 and "original" not in name}
    assert plain == {"head.weight"}


def test_a_forward_moves_no_vector_in_either_mode() -> None:
    net, y, logsnr = energy_net(), torch.randn(2, 1, 8, 8), torch.zeros(2)
    before = vectors(net)
    for mode in (True, False):
        net.train(mode)
        f = net(y, logsnr)
        f.sum().backward()
        assert equal(vectors(net), before)
    assert f.equal(net(y, logsnr))


def test_power_iterate_moves_every_layer_and_counts() -> None:
    net = energy_net()
    before = vectors(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert power_iterate(net) == NUM_LAYERS == len(norms(net))
    assert len(before) == 2 * NUM_LAYERS
    single = [buffer.numel() == 1 for buffer in net.buffers()]  # a vector of one entry is 1 or -1
    assert all(one or not a.equal(b) for one, a, b in zip(single, before, vectors(net), strict=True))
    torch.testing.assert_close(torch.stack([v.norm() for v in net.buffers()]), torch.ones(2 * NUM_LAYERS))
    assert power_iterate(nn.Linear(2, 2)) == 0


def test_one_iteration_is_one_iteration() -> None:
    layer = spectral(nn.Linear(6, 5))
    norm, weight = norms(layer)[0], layer.parametrizations.weight.original.detach()
    v = weight.T @ norm.u
    v = v / v.norm()
    u = weight @ v
    power_iterate(layer, 1)
    torch.testing.assert_close(norm.v, v)
    torch.testing.assert_close(norm.u, u / u.norm())


def test_the_gradient_holds_the_vectors_constant() -> None:
    """d/dW of <G, W/sigma> with sigma = u.Wv is G/sigma - <G, W> u v^T / sigma^2."""
    layer = spectral(nn.Linear(4, 3).double())
    norm, weight = norms(layer)[0], layer.parametrizations.weight.original
    upstream = torch.randn(3, 4, dtype=torch.float64)
    (layer.weight * upstream).sum().backward()
    w, sigma = weight.detach(), norm.u @ weight.detach() @ norm.v
    expected = upstream / sigma - (upstream * w).sum() / sigma**2 * torch.outer(norm.u, norm.v)
    torch.testing.assert_close(weight.grad, expected)


def test_warmup_is_enough_for_averaged_weights() -> None:
    """Vectors of other weights, brought up to date by the warm-up's number of iterations (trap 8)."""
    net = energy_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    power_iterate(net, NUM_WARMUP_ITERATIONS)
    for module in net.modules():
        if parametrize.is_parametrized(module):
            assert torch.linalg.svdvals(module.weight.detach().flatten(1))[0].item() == pytest.approx(1, abs=0.05)
