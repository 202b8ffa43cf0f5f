"""The divergence sentinel's section."""

from typing import Literal

from pydantic import Field

from cdrl.config.method import Section

__all__ = ["SentinelConfig"]


class SentinelConfig(Section):
    """What counts as divergence and what a rescue changes. No part of the run's identity."""

    enabled: bool = Field(True, description="watch each level; without it only a number that is not finite ends a run")
    max_growth: float = Field(
        15.0, gt=1, description="|f|, energy gap, chain displacement or gradient norm in units of its running mean"
    )
    max_displacement_sigmas: float = Field(
        10.0, gt=0, description="rms way of a chain in units of sigma_ts, the transition's noise; 0.2 ... 2 in health"
    )
    max_rescues: int = Field(3, ge=0, description="roll backs to a checkpoint before the run ends as diverged")
    lower: Literal["learning_rate", "step_scale"] = Field(
        "learning_rate", description="what a rescue multiplies; step_scale also changes what f stands for"
    )
    factor: float = Field(0.5, gt=0, le=1, description="by how much; 1 = a rescue only changes the noise")
