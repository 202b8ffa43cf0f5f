"""Known pixels are held exactly, and the unknown follow the conditional law of a solvable model."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdrl.errors import ConfigError
from cdrl.method.inpainting import Inpainting, named_mask
from cdrl.method.pairs import Pair, PairLadder
from cdrl.method.rng import Rng
from cdrl.method.sampling import sample
from cdrl.method.schedule import Schedule, cosine
from cdrl.method.trace import Trace
from tests.unit.method.gaussians import Linear, mean_within, variance_within

COVARIANCE = torch.tensor([[0.25, 0.2], [0.2, 0.25]], dtype=torch.float64)
SLOPE = 0.2 / 0.25  # E[x_1 | x_0] = SLOPE x_0
VARIANCE = 0.25 - 0.2 * SLOPE  # Var[x_1 | x_0]
FIRST_KNOWN = torch.tensor([True, False])


class Correlated(nn.Module):
    """f = step_size log N(y; 0, scale^2 (alpha_s^2 COVARIANCE + sigma_s^2 I)): the exact energy of Gaussian data."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        tr = schedule.constants
        noise = tr.sigma_s[:, None, None] ** 2 * torch.eye(2)
        covariance = tr.scale[:, None, None] ** 2 * (tr.alpha_s[:, None, None] ** 2 * COVARIANCE + noise)
        self.curvature, self.logsnr_s = tr.step_size[:, None, None] * covariance.inverse(), tr.logsnr_s
        self.weight = nn.Parameter(torch.zeros(0))

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        curvature = self.curvature[(self.logsnr_s - logsnr[0]).abs().argmin()]
        return -0.5 * ((y @ curvature) * y).sum(dim=1)


def inpaint(mask: Tensor, *, num_images: int = 64, num_steps: int = 3, **options: Any) -> tuple[Tensor, Tensor, Trace]:
    """(known image, x_0, trace) of the Gaussian model on three levels."""
    table = cosine(3)
    schedule = Schedule(table, 0.03 * math.exp(-9.8 / 2), "constant")
    ladder = PairLadder([[0, 1, 2]], lambda: Pair(Correlated(schedule), Linear(0.8)))
    image = torch.linspace(-1, 1, num_images, dtype=torch.float64)[:, None].expand(-1, 2)
    fresh_noise = options.pop("fresh_noise", False)
    request, trace = Inpainting(image, mask, fresh_noise=fresh_noise), Trace()
    constraint = request.constraint(0, num_images, Rng("known"), like=image)
    settings = {"rng": Rng("chain"), "denoise_scale": 0.0, "clamp": False, "record": trace, "constraint": constraint}
    x = sample(ladder, schedule, Rng("x_T").normal(image), num_steps=num_steps, **settings | options)
    return image, x, trace


@pytest.mark.parametrize("fresh_noise", [False, True])
def test_the_unknown_follow_their_law_given_the_known(fresh_noise: bool) -> None:
    """After enough rounds; the chain's own bias is 2.5 % of the variance here."""
    image, x, _ = inpaint(FIRST_KNOWN, num_images=4000, num_steps=60, num_rounds=4, fresh_noise=fresh_noise)
    residual = x[:, 1] - SLOPE * image[:, 0]
    assert mean_within(residual, 0.0) and mean_within(residual * image[:, 0], 0.0)
    assert variance_within(residual, VARIANCE)


def test_rounds_are_what_makes_it_exact() -> None:
    """x_t of the first visit knew the known pixels only through noise: the slope falls short."""
    image, x, _ = inpaint(FIRST_KNOWN, num_images=4000, num_steps=60)
    residual = x[:, 1] - SLOPE * image[:, 0]
    assert not mean_within(residual * image[:, 0], 0.0)


@pytest.mark.parametrize("denoise_scale", [0.0, 2.0])
def test_known_pixels_are_exact_in_the_end_and_at_their_noise_at_every_stage(denoise_scale: float) -> None:
    image, x, trace = inpaint(FIRST_KNOWN, denoise_scale=denoise_scale)
    assert x[:, 0].equal(image[:, 0]) and not x[:, 1].equal(image[:, 1])
    eps, schedule = Rng("known").normal(image), Schedule(cosine(3), 1.0)
    for stage in trace.stages[1:-1]:
        tr = schedule.transition(stage.level, image)
        expected = tr.alpha_s * image + tr.sigma_s * eps
        torch.testing.assert_close(stage.x[:, 0], expected[:, 0])
        assert not torch.isclose(stage.x[:, 1], expected[:, 1]).any()
    assert len(trace.stages) == 3 * (1 + 3) + 2


def test_clamping_leaves_known_pixels_alone() -> None:
    image, x, _ = inpaint(FIRST_KNOWN, clamp=True, denoise_scale=0.0)
    assert x[:, 0].equal(image[:, 0]) and x[:, 1].abs().max() <= 1


def test_fresh_noise_is_another_at_each_visit_of_a_level() -> None:
    def noises(fresh_noise: bool) -> list[Tensor]:
        image, _, trace = inpaint(FIRST_KNOWN, num_rounds=2, num_steps=0, fresh_noise=fresh_noise)
        schedule = Schedule(cosine(3), 1.0)
        found = []
        for stage in trace.stages[1:-1]:
            tr = schedule.transition(stage.level, image)
            found.append(((stage.x - tr.alpha_s * image) / tr.sigma_s)[:, 0])
        return found

    one, fresh = noises(False), noises(True)
    assert len(one) == len(fresh) == 6
    assert all(torch.allclose(eps, one[0]) for eps in one)
    assert not any(torch.allclose(a, b) for a, b in zip(fresh, fresh[1:], strict=False))


def test_nothing_known_is_an_unconditional_sample_bit_by_bit_and_all_known_is_the_image() -> None:
    everything = torch.ones(2, dtype=torch.bool)
    free = inpaint(everything, constraint=None)[1]
    for fresh_noise in (False, True):
        image, x, _ = inpaint(everything, fresh_noise=fresh_noise)
        assert x.equal(image)
        assert inpaint(~everything, fresh_noise=fresh_noise)[1].equal(free)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [("left", "11110000" * 8), ("right", "00001111" * 8), ("top", "1" * 32 + "0" * 32), ("bottom", "0" * 32 + "1" * 32)]
    + [("centre", "0" * 16 + "00111100" * 4 + "0" * 16), ("random:0", "0" * 64), ("random:1", "1" * 64)],
)
def test_named_masks(name: str, hidden: str) -> None:
    mask = named_mask(name, torch.zeros(2, 3, 8, 8), Rng(0))
    assert mask.shape == (2, 1, 8, 8) and mask.dtype == torch.bool
    assert "".join(str(int(not known)) for known in mask[1].flatten()) == hidden


def test_random_masks_hide_their_share_and_differ() -> None:
    mask = named_mask("random:0.3", torch.zeros(50, 1, 16, 16), Rng(0))
    share, error = 1 - mask.double().mean().item(), math.sqrt(0.3 * 0.7 / mask.numel())
    assert abs(share - 0.3) < 4 * error and not mask[0].equal(mask[1])


@pytest.mark.parametrize("name", ["", "upper", "random", "random:", "random:x", "random:1.5", "random:nan", "left:0.5"])
def test_unknown_masks(name: str) -> None:
    with pytest.raises(ConfigError, match="mask "):
        named_mask(name, torch.zeros(1, 1, 8, 8), Rng(0))


def test_bad_requests_are_refused() -> None:
    image, known = torch.zeros(2, 1, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"expected a mask of shape \[2, 1, 8, 8\], got \[1, 8, 9\]"):
        Inpainting(image, torch.ones(1, 8, 9, dtype=torch.bool))
    with pytest.raises(ConfigError, match="expected a mask of truth values, got torch.float32"):
        Inpainting(image, known.float())
    image[1, 0, 3, 3] = math.nan
    with pytest.raises(ConfigError, match="1 of 128 known pixels are not finite"):
        Inpainting(image, known)
    known[0, 3, 3] = False
    Inpainting(image, known)  # what is hidden may be anything
