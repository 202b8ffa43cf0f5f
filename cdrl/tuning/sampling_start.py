"""Where a search of sampling settings begins: the run's own, the plain curve of K, and K with the step to match."""

import math

from cdrl.config import Config, SamplingConfig
from cdrl.tuning.sampling_space import Axis, SamplingSpace, each_level, plainest, rounded

__all__ = ["curve_of_steps", "starting_points", "usual_space"]

MAX_LEVELS = 12  # above, the usual space has one value for all levels


def usual_space(config: Config) -> SamplingSpace:
    """K = 0, 1, 2, 4, ... up to the run's own, m from 0.7 to 4, and the three final denoises; guidance stays.

    Raises:
        ConfigError: as `SamplingSpace.check`.
    """
    own, num_levels = config.sampling, config.schedule.num_levels
    each = num_levels <= MAX_LEVELS
    space = SamplingSpace(
        num_steps=Axis(choices=tuple(curve_of_steps(own, num_levels)), per_level=each),
        step_multiplier=Axis(low=0.7, high=4.0, log=True, per_level=each),
        denoise_scale=Axis(choices=tuple({0.0, 1.0, 2.0, own.denoise_scale})),
    )
    return space.check(config, "the usual space")


def curve_of_steps(own: SamplingConfig, num_levels: int) -> list[int]:
    """0, 1, 2, 4, ... up to the largest K of the run."""
    most = max(each_level(own.num_steps, num_levels))
    return sorted({0, most, *(2**power for power in range(most.bit_length()))})


def starting_points(own: SamplingConfig, space: SamplingSpace, num_levels: int) -> list[SamplingConfig]:
    """The run's own settings, those with another K for all levels, and, if in the space, these with a longer step.

    Steps reach as far where K m^2 stays as it was, so m grows by sqrt(K of the run / K).
    """
    most, found = max(each_level(own.num_steps, num_levels)), [own]
    curve = curve_of_steps(own, num_levels)
    if space.num_steps is not None and space.num_steps.choices is not None:
        curve = sorted({*curve, *map(int, space.num_steps.choices)})
    found += [plainest(own.model_copy(update={"num_steps": K}), num_levels) for K in curve]
    for K in filter(None, curve):
        grown = tuple(rounded(m * math.sqrt(most / K)) for m in each_level(own.step_multiplier, num_levels))
        longer = plainest(own.model_copy(update={"num_steps": K, "step_multiplier": grown}), num_levels)
        found += [longer] if space.params(longer, own, num_levels) is not None else []
    return list({each.model_dump_json(): each for each in found}.values())
