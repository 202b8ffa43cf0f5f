"""Contracts of the two networks: shapes, labels, independence of samples, dropout, what they refuse."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cdrl.errors import ConfigError
from cdrl.method.nets import EnergyNet, Initializer, PointInitializer
from cdrl.method.nets.embedding import sinusoid
from cdrl.method.nets.initializer import dropout
from cdrl.method.rng import Rng

Build = Callable[..., nn.Module]


def unet(multipliers: tuple[int, ...] = (1, 2), **options: object) -> Initializer:
    settings = {"attention_resolutions": (4,), "groups": 2, "dropout": 0.0} | options
    return Initializer(1, 8, 4, multipliers, 1, **settings)


IMAGES: dict[str, tuple[Build, tuple[int, ...]]] = {
    "conv": (lambda **o: EnergyNet(1, 4, (1, 2), 1, **o), (1, 8, 8)),
    "conv, patches": (lambda **o: EnergyNet(1, 4, (1, 3), 2, patch=2, embedding_width=6, **o), (1, 8, 8)),
    "points": (lambda **o: EnergyNet(2, 4, (1, 2), 1, dense=True, **o), (2,)),
    "unet": (unet, (1, 8, 8)),
    "unet, patches": (lambda **o: unet(patch=2, **o), (1, 8, 8)),
    "unet, three widths": (lambda **o: unet((2, 1, 3), **o), (1, 8, 8)),
    "point initializer": (lambda **o: PointInitializer(2, 8, 2, **o), (2,)),
}
ENERGIES = [name for name in IMAGES if IMAGES[name][0]().__class__ is EnergyNet]


@pytest.fixture(params=IMAGES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def build(kind: str, num_classes: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A net with weights that matter everywhere, with a batch of three."""
    torch.manual_seed(0)
    make, shape = IMAGES[kind]
    net = make(num_classes=num_classes).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net, torch.randn(3, *shape, dtype=torch.float64), torch.tensor([9.0, 0.0, -4.0], dtype=torch.float64)


def test_one_number_or_one_image_per_sample(kind: str) -> None:
    net, x, logsnr = build(kind)
    assert net(x, logsnr).shape == ((3,) if kind in ENERGIES else x.shape)


def test_a_sample_does_not_see_its_batch(kind: str) -> None:
    net, x, logsnr = build(kind, num_classes=2)
    label = torch.tensor([2, 0, 1])
    whole = net(x, logsnr, label)
    alone = torch.cat([net(x[i : i + 1], logsnr[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(net(x[order], logsnr[order], label[order]), whole[order], rtol=1e-12, atol=1e-12)


def test_level_and_label_matter_and_null_is_none(kind: str) -> None:
    net, x, logsnr = build(kind, num_classes=3)
    none = net(x, logsnr)
    assert net(x, logsnr, torch.zeros(3, dtype=torch.long)).equal(none)
    outputs = [none] + [net(x, logsnr, torch.full((3,), label)) for label in (1, 2, 3)]
    for i, a in enumerate(outputs):
        assert not any(torch.allclose(a, b) for b in outputs[:i])
    if kind != "points":  # its head is free of the level, but its blocks are not
        assert not torch.allclose(net(x, logsnr.flip(0)), none)


def test_the_level_reaches_points() -> None:
    net, x, logsnr = build("points")
    assert not torch.allclose(net(x, logsnr), net(x, logsnr.flip(0)))


def test_a_label_for_an_unconditional_net_is_refused(kind: str) -> None:
    net, x, logsnr = build(kind)
    assert net(x, logsnr, torch.zeros(3, dtype=torch.long)).equal(net(x, logsnr))
    with pytest.raises(ConfigError, match="the model is unconditional"):
        net(x, logsnr, torch.tensor([0, 0, 1]))


def test_every_parameter_takes_part(kind: str) -> None:
    net, x, logsnr = build(kind, num_classes=2)
    net(x, logsnr, torch.tensor([0, 1, 2])).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", [name for name in IMAGES if name not in ENERGIES])
def test_an_initializer_begins_near_the_identity(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = IMAGES[kind]
    x = torch.randn(4, *shape)
    moved = make()(x, torch.zeros(4)) - x
    # only the bias of the last layer moves it, by the same amount for every sample
    assert moved.square().mean().sqrt() < 0.2
    torch.testing.assert_close(moved, moved[:1].expand_as(moved))


def test_patches_are_seen_whole() -> None:
    """Pixel-unshuffle and its inverse: with the level-free identity in between, nothing is lost or moved."""
    net = unet(patch=4, multipliers=(1, 1))
    with torch.no_grad():
        net.head.bias.copy_(torch.arange(16.0))
    moved = net(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    assert moved[0, 0, :4, :4].flatten().equal(torch.arange(16.0))
    assert moved[0, 0, 4:, 4:].equal(moved[0, 0, :4, :4])


def test_dropout_needs_randomness_and_is_cut_at_chunks() -> None:
    torch.manual_seed(0)
    net = unet(dropout=0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x, logsnr = torch.randn(4, 1, 8, 8), torch.linspace(5, -5, 4)
    clean = net(x, logsnr)
    assert net.train()(x, logsnr).equal(net.eval()(x, logsnr)) and clean.equal(net(x, logsnr))
    noisy = net(x, logsnr, None, Rng(1, chunks=range(4)))
    assert not torch.allclose(noisy, clean)
    assert noisy.equal(net(x, logsnr, None, Rng(1, chunks=range(4))))
    assert not torch.allclose(noisy, net(x, logsnr, None, Rng(2, chunks=range(4))))
    halves = [net(x[i : i + 2], logsnr[i : i + 2], None, Rng(1, chunks=(i, i + 1))) for i in (0, 2)]
    torch.testing.assert_close(torch.cat(halves), noisy)


def test_dropout_keeps_the_mean() -> None:
    dropped = dropout(torch.ones(100_000), 0.3, Rng(0))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)


def test_sinusoid_tells_levels_apart_and_leaves_its_argument() -> None:
    logsnr = torch.linspace(-20, 20, 50, dtype=torch.float64)
    before = logsnr.clone()
    embedding = sinusoid(logsnr, 8)
    assert logsnr.equal(before) and embedding.shape == (50, 8)  # the release mutates it (trap 13)
    torch.testing.assert_close(embedding[:, :4] ** 2 + embedding[:, 4:] ** 2, torch.ones(50, 4, dtype=torch.float64))
    distances = torch.cdist(embedding, embedding) + torch.eye(50)
    assert distances.min() > 1e-4


@pytest.mark.parametrize("width", [2, 3, 5])
def test_widths_without_an_embedding_are_refused(width: int) -> None:
    with pytest.raises(ConfigError, match="energy.width: expected an even number from 4 on"):
        EnergyNet(1, width, (1,), 1)
    with pytest.raises(ConfigError, match="initializer.width: expected an even number from 4 on"):
        Initializer(1, 8, width, (1,), 1, groups=1)


def test_nets_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ConfigError, match="energy.patch: points have no pixels"):
        EnergyNet(2, 4, (1,), 1, dense=True, patch=2)
    with pytest.raises(ConfigError, match="an image side of 8 is not a multiple of 16"):
        Initializer(1, 8, 4, (1, 1, 1), 1, groups=1, patch=4)
    for make in (lambda: Initializer(1, 8, 4, (1,), 1, groups=3), lambda: PointInitializer(2, 4, 3)):
        with pytest.raises(ConfigError, match="initializer.groups: 3 groups do not divide 4 channels"):
            make()
    with pytest.raises(ConfigError, match="initializer.width, doubled"):
        PointInitializer(2, 1, 1)
