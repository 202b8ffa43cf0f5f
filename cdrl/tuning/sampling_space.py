"""Which sampling settings a search may try: K, step multiplier, final denoise and guidance of a trained model.

A setting has a list of choices or a range, and one value for all levels or one for each:

    num_steps: {choices: [0, 1, 2, 4], per_level: true}
    step_multiplier: {low: 0.7, high: 4, log: true}
    denoise_scale: [0, 1, 2]

What is not named stays as the run has it.
"""

import difflib
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from pydantic import Field, ValidationError, model_validator

from cdrl.config import Config, SamplingConfig
from cdrl.config.method import Section
from cdrl.errors import ConfigError

__all__ = ["Axis", "SamplingSpace", "each_level", "plainest", "read_space", "rounded"]

Searched = Literal["num_steps", "step_multiplier", "denoise_scale", "guidance"]
SEARCHED: tuple[Searched, ...] = get_args(Searched)


class Axis(Section):
    """The values of one setting: `choices`, or everything from `low` to `high`."""

    choices: tuple[float, ...] | None = Field(None, min_length=1)
    low: float | None = None
    high: float | None = None
    log: bool = False
    per_level: bool = False

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_choices(cls, value: Any) -> Any:
        return {"choices": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _choices_or_a_range(self) -> "Axis":
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices have no low, high or log")
        elif self.low is None or self.high is None:
            raise ValueError("expected choices, or low and high")
        elif not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low <= high{', low > 0' * self.log}; got {self.low:g} and {self.high:g}")
        return self

    @property
    def known(self) -> list[float]:
        """The choices, or the two ends of the range, in order."""
        return sorted({*self.choices} if self.choices is not None else {self.low or 0.0, self.high or 0.0})

    def distribution(self, whole: bool) -> BaseDistribution:
        """Optuna's: of the place among the choices, or of the value itself."""
        if self.choices is not None:
            return IntDistribution(0, len(self.known) - 1)
        low, high = self.known[0], self.known[-1]
        return IntDistribution(int(low), int(high), self.log) if whole else FloatDistribution(low, high, self.log)

    def value(self, drawn: float) -> float:
        """The setting's value for what was drawn from the distribution."""
        if self.choices is not None:
            return self.known[int(drawn)]
        return min(max(rounded(drawn), self.known[0]), self.known[-1])

    def drawn(self, value: float) -> float | None:
        """The reverse of `value`; None for what the axis does not have."""
        if self.choices is not None:
            return self.known.index(value) if value in self.known else None
        return value if self.known[0] <= value <= self.known[-1] else None


class SamplingSpace(Section):
    """The settings that are searched, each with its values."""

    num_steps: Axis | None = None
    step_multiplier: Axis | None = None
    denoise_scale: Axis | None = None
    guidance: Axis | None = None

    @property
    def axes(self) -> dict[Searched, Axis]:
        """Those that are searched."""
        named: dict[Searched, Axis | None] = {name: getattr(self, name) for name in SEARCHED}
        return {name: axis for name, axis in named.items() if axis is not None}

    def distributions(self, num_levels: int) -> dict[str, BaseDistribution]:
        """Optuna's, by the name of a setting or by `name.level`."""
        return {
            key: axis.distribution(name == "num_steps")
            for name, axis in self.axes.items()
            for key in _keys(name, axis, num_levels)
        }

    def sampling(self, params: dict[str, Any], own: SamplingConfig, num_levels: int) -> SamplingConfig:
        """The settings for what was drawn from the distributions; the run's own for the rest."""
        found: dict[str, Any] = {}
        for name, axis in self.axes.items():
            values = tuple(axis.value(params[key]) for key in _keys(name, axis, num_levels))
            found[name] = values if axis.per_level else values[0]
        return plainest(SamplingConfig.model_validate(own.model_dump() | found), num_levels)

    def params(self, sampling: SamplingConfig, own: SamplingConfig, num_levels: int) -> dict[str, Any] | None:
        """The reverse of `sampling`; None for settings that the space does not have."""
        params: dict[str, Any] = {}
        for name in SEARCHED:
            axis, values = self.axes.get(name), each_level(getattr(sampling, name), num_levels)
            if axis is None:
                if values != each_level(getattr(own, name), num_levels):
                    return None
            elif axis.per_level or len(set(values)) == 1:
                params |= {key: axis.drawn(v) for key, v in zip(_keys(name, axis, num_levels), values, strict=False)}
            else:
                return None
        return None if None in params.values() else params

    def check(self, config: Config, where: str) -> "SamplingSpace":
        """The same space, if everything in it goes with this model.

        Raises:
            ConfigError: nothing to search, or values that a model of this configuration cannot take.
        """
        for name, axis in self.axes.items():
            if axis.per_level and name == "denoise_scale":
                raise ConfigError(f"{where}: {name} is one number, of level 0; leave out per_level")
            if name == "guidance" and any(axis.known) and not config.data.num_classes:
                raise ConfigError(f"{where}: guidance: the model is unconditional; leave it out")
            for value in axis.known:
                try:
                    SamplingConfig.model_validate({name: value})
                except ValidationError as error:
                    raise ConfigError(f"{where}: {name}: {error.errors()[0]['msg']}, got {value:g}") from None
        if all(distribution.single() for distribution in self.distributions(1).values()):
            names = ", ".join(SEARCHED)
            raise ConfigError(f"{where}: an empty space; give at least one of {names} more than one value")
        return self


def read_space(path: Path, config: Config) -> SamplingSpace:
    """The space in a YAML file, for a model of this configuration.

    Raises:
        ConfigError: unreadable, an unknown setting (with the nearest one), or as `SamplingSpace.check`.
    """
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(f"{path}: not a readable space: {reason}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings with their values, got {type(tree).__name__}")
    if unknown := [str(name) for name in tree if name not in SEARCHED]:
        nearest = difflib.get_close_matches(unknown[0], SEARCHED, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(SEARCHED)}"
        raise ConfigError(f"{path}: {unknown[0]}: unknown parameter of sampling; {hint}")
    try:
        space = SamplingSpace.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        dotted = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {dotted}: {first['msg'].removeprefix('Value error, ')}") from None
    return space.check(config, str(path))


def plainest(sampling: SamplingConfig, num_levels: int) -> SamplingConfig:
    """The same settings as briefly as they can be said: one number where all levels agree, m = 1 where K = 0."""
    steps = each_level(sampling.num_steps, num_levels)
    multipliers = each_level(sampling.step_multiplier, num_levels)
    found: dict[str, tuple[float, ...]] = {
        "num_steps": steps,
        "step_multiplier": tuple(m if K else 1.0 for m, K in zip(multipliers, steps, strict=True)),
        "guidance": each_level(sampling.guidance, num_levels),
    }
    return sampling.model_copy(update={k: v[0] if len(set(v)) == 1 else v for k, v in found.items()})


def each_level(value: Any, num_levels: int) -> tuple[Any, ...]:
    """One number for each level, of one for all or one for each."""
    return value if isinstance(value, tuple) else (value,) * num_levels


def rounded(value: float) -> float:
    """With as many digits as a setting needs."""
    return float(f"{value:.3g}")


def _keys(name: str, axis: Axis, num_levels: int) -> list[str]:
    return [f"{name}.{level}" for level in range(num_levels)] if axis.per_level else [name]
