"""Population based training: which parameters it may change on the way, and how far."""

from typing import Any

from ray import tune

from cdrl.errors import ConfigError
from cdrl.tuning.sweep import Sweep

__all__ = ["Within", "check_population", "mutations"]

MIDWAY = ("schedule.step_scale", "schedule.logsnr_", "schedule.warp", "schedule.weight_power", "training.", "sampling.")
NOT_MIDWAY = ("training.batch_size", "training.num_chunks", "training.initializer_only_fraction")


def check_population(sweep: Sweep, parallel: int, *, has_slots: bool) -> None:
    """Refuse what PBT cannot do.

    Raises:
        ConfigError: a parameter that cannot change on the way, or too many trials for a cluster of others.
    """
    for key, each in sweep.space.parameters.items():
        if each.per_level or each.when or each.above:
            raise ConfigError(f"{key}: pbt takes plain ranges and choices, without per_level, when and above")
        if not key.startswith(MIDWAY) or key in NOT_MIDWAY:
            raise ConfigError(f"{key}: pbt changes parameters on the way, and this one cannot; take fifo or asha")
    if not has_slots and sweep.num_trials > parallel:
        raise ConfigError(
            f"pbt at cluster.address runs all trials at a time: there is room for {parallel}, got {sweep.num_trials}"
        )


def mutations(sweep: Sweep) -> dict[str, Any]:
    """What PBT draws a parameter from."""
    found: dict[str, Any] = {}
    for key, each in sweep.space.parameters.items():
        if each.choices is not None:
            found[key] = list(each.choices)
        else:
            found[key] = tune.loguniform(each.low, each.high) if each.log else tune.uniform(each.low, each.high)
    return found


class Within:
    """Brings what PBT has multiplied back into the space."""

    def __init__(self, sweep: Sweep) -> None:
        self._parameters = sweep.space.parameters

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        values = config["trial"]["parameters"]
        for key, each in self._parameters.items():
            if each.choices is None:
                values[key] = type(each.low)(min(max(values[key], each.low), each.high))  # type: ignore[misc]
        return config
