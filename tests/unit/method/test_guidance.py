"""Guidance and composition are one weighted sum over labels, for the energy net and the initializer alike."""

from functools import partial

import pytest
import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.formulation import Plain
from cdrl.method.guidance import Condition
from cdrl.method.langevin import RecoveryTarget
from cdrl.method.nets import EnergyNet, Initializer
from cdrl.method.pairs import Pair
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, cosine

LABEL, OTHER = torch.tensor([1, 2, 0]), torch.tensor([2, 1, 1])
LOGSNR = torch.tensor([3.0, 0.0, -3.0], dtype=torch.float64)


@pytest.fixture
def pair() -> Pair:
    torch.manual_seed(0)
    g = Initializer(1, 8, 4, (1,), 1, attention_resolutions=(), groups=2, num_classes=2)
    pair = Pair(EnergyNet(1, 4, (1, 2), 1, num_classes=2), g).double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return pair


def images() -> Tensor:
    return Rng("x").normal(torch.empty(3, 1, 8, 8, dtype=torch.float64))


def outputs(pair: Pair, condition: Condition) -> dict[str, Tensor]:
    """What both nets make of a condition."""
    f = condition.energy(Plain().prepare(pair.energy), LOGSNR)
    mean = condition.mean(pair.initializer, images(), LOGSNR)
    return {"f": f(images()), "gradient": f.gradient(images()), "mean": mean}


@pytest.mark.parametrize("guidance", [-1.0, 0.0, 0.5, 3.0])
def test_both_branches_are_weighed(pair: Pair, guidance: float) -> None:
    conditional = outputs(pair, Condition((LABEL,)))
    unconditional = outputs(pair, Condition((torch.zeros_like(LABEL),)))
    guided = outputs(pair, Condition.guided(LABEL, guidance))
    for name, value in guided.items():
        torch.testing.assert_close(value, (1 + guidance) * conditional[name] - guidance * unconditional[name])
        torch.testing.assert_close(value[2], unconditional[name][2])  # of label 0
        assert not torch.allclose(conditional[name][:2], unconditional[name][:2])
        assert guidance != 0 or value.equal(conditional[name])


def test_a_composition_adds_each_class_to_the_unconditional_net(pair: Pair) -> None:
    none = outputs(pair, Condition((torch.zeros_like(LABEL),)))
    one, two = outputs(pair, Condition((LABEL,))), outputs(pair, Condition((OTHER,)))
    for name, value in outputs(pair, Condition.composed([LABEL, OTHER], [0.5, -2.5])).items():
        torch.testing.assert_close(value, none[name] + 1.5 * (one[name] - none[name]) - 1.5 * (two[name] - none[name]))
    for name, value in outputs(pair, Condition.composed([LABEL], [2.0])).items():
        torch.testing.assert_close(value, outputs(pair, Condition.guided(LABEL, 2.0))[name])
    assert sum(Condition.composed([LABEL, OTHER], [0.5, -2.5]).weights) == pytest.approx(1)


def test_guidance_moves_the_drift_and_the_mean_but_not_the_noise(pair: Pair) -> None:
    w, x_t = 1.5, images()
    tr = Schedule(cosine(3), 4e-4).transition(torch.tensor([0, 1, 2]), x_t)

    def drift(condition: Condition) -> Tensor:
        f = condition.energy(Plain().prepare(pair.energy), tr.logsnr_s)
        return RecoveryTarget(f, tr, x_t, 1.0, f.gradient).drift(x_t / 2)

    plain, none = Condition((LABEL,)), Condition((torch.zeros_like(LABEL),))
    guided = Condition.guided(LABEL, w)
    expected = (1 + w) * drift(plain) - w * drift(none)
    torch.testing.assert_close(drift(guided), expected)  # the Gaussian parts count once: (1+w) - w = 1
    mean, y_init = pair.propose(x_t, tr, guided, Rng(0))
    mean_plain, y_plain = pair.propose(x_t, tr, plain, Rng(0))
    means = [pair.initializer(x_t, tr.logsnr_t, label) for label in (LABEL, None)]
    torch.testing.assert_close(mean, (1 + w) * means[0] - w * means[1])
    torch.testing.assert_close(y_init - mean, y_plain - mean_plain)


def test_a_product_of_gaussian_classes_is_the_product() -> None:
    """f(y; c) = -(y - m_c)^2 / 2: weights that add up to one average the means and keep the curvature."""
    centre = torch.tensor([0.0, 3.0, -1.0])

    def net(y: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        return -0.5 * (y - centre[label][:, None]).square().sum(dim=1)

    y, labels = torch.zeros(1, 1), [torch.tensor([1]), torch.tensor([2])]
    f = Condition.composed(labels, [0.0, 0.0]).energy(partial(_prepared, net), torch.zeros(1))
    torch.testing.assert_close(f.gradient(y), torch.tensor([[3.0 - 1.0]]))
    assert f(torch.tensor([[2.0]])) > f(torch.tensor([[1.0]]))


def _prepared(net: object, logsnr: Tensor, label: Tensor | None) -> object:
    return Plain().prepare(net)(logsnr, label)  # type: ignore[arg-type]


def test_bad_conditions_are_refused() -> None:
    with pytest.raises(ConfigError, match="guidance: 1.5 needs labels"):
        Condition.guided(None, 1.5)
    with pytest.raises(ConfigError, match="one weight for each of 2 labels, got 1"):
        Condition.composed([LABEL, OTHER], [1.0])
    with pytest.raises(ConfigError, match="one weight for each of 0 labels, got 0"):
        Condition.composed([], [])
