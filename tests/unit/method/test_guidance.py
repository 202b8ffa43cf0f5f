"""A guided net is (1+w) conditional - w unconditional, with the signature of the net."""

from functools import partial

import pytest
import torch

from cdrl.method.guidance import Guided
from cdrl.method.langevin import RecoveryTarget
from cdrl.method.nets import EnergyNet, Initializer
from cdrl.method.pairs import Pair
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, cosine

LABEL = torch.tensor([1, 2, 0])


@pytest.fixture
def pair() -> Pair:
    torch.manual_seed(0)
    g = Initializer(1, 8, 4, (1,), 1, attention_resolutions=(), groups=2, num_classes=2)
    pair = Pair(EnergyNet(1, 4, (1, 2), 1, num_classes=2), g).double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return pair


@pytest.mark.parametrize("net", ["energy", "initializer"])
@pytest.mark.parametrize("guidance", [-1.0, 0.0, 0.5, 3.0])
def test_both_branches_are_weighed(pair: Pair, net: str, guidance: float) -> None:
    x, logsnr = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([3.0, 0.0, -3.0], dtype=torch.float64)
    plain = getattr(pair, net)
    conditional, unconditional = plain(x, logsnr, LABEL), plain(x, logsnr, None)
    guided = Guided(plain, guidance)(x, logsnr, LABEL)
    torch.testing.assert_close(guided, (1 + guidance) * conditional - guidance * unconditional)
    torch.testing.assert_close(guided[2], unconditional[2])  # of label 0
    assert not torch.allclose(conditional[:2], unconditional[:2])
    if guidance == -1:
        torch.testing.assert_close(guided, unconditional)


def test_a_guided_pair_guides_the_drift_and_the_mean_but_not_the_noise(pair: Pair) -> None:
    w, x_t = 1.5, torch.randn(3, 1, 8, 8, dtype=torch.float64)
    tr = Schedule(cosine(3), 4e-4).transition(torch.tensor([0, 1, 2]), x_t)
    guided = Pair(Guided(pair.energy, w), Guided(pair.initializer, w), pair.base_measure)

    def drift(of: Pair, label: torch.Tensor | None) -> torch.Tensor:
        return RecoveryTarget(partial(of.energy, logsnr=tr.logsnr_s, label=label), tr, x_t, 1.0).drift(x_t / 2)

    expected = (1 + w) * drift(pair, LABEL) - w * drift(pair, torch.zeros_like(LABEL))
    torch.testing.assert_close(drift(guided, LABEL), expected)  # the Gaussian parts count once: (1+w) - w = 1
    mean, y_init = guided.propose(x_t, tr, LABEL, Rng(0))
    _, plain = pair.propose(x_t, tr, LABEL, Rng(0))
    means = [pair.initializer(x_t, tr.logsnr_t, label) for label in (LABEL, None)]
    torch.testing.assert_close(mean, (1 + w) * means[0] - w * means[1])
    torch.testing.assert_close(y_init - mean, plain - means[0])
