"""One searched setting: a range or choices for a key of the configuration, checked against its schema."""

import difflib
import typing
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from cdrl.config import Config
from cdrl.config.method import Section
from cdrl.errors import ConfigError

__all__ = ["Number", "Parameter", "check_key", "is_whole"]

SEARCHED = ("schedule", "energy", "initializer", "pairs", "training", "sampling")
FIXED = ("training.seed", "training.start", "training.start_with", "training.num_updates")
Number = int | float


class Parameter(Section):
    """What a setting may become: one of `choices`, or a number from `low` to `high`."""

    choices: tuple[Any, ...] | None = Field(None, min_length=1, description="the values")
    low: Number | None = Field(None, description="smallest value")
    high: Number | None = Field(None, description="largest value")
    log: bool = Field(False, description="equal chances for equal ratios")
    points: int = Field(3, ge=2, description="a grid takes so many values of a range")
    per_level: bool = Field(False, description="a value of its own for each level")
    above: str | None = Field(None, description="a setting that this one must exceed")
    by: float = Field(0.0, ge=0, description="by so much")
    when: dict[str, Any] = Field({}, description="searched only where other settings have these values")

    @model_validator(mode="after")
    def _is_a_range_or_choices(self) -> "Parameter":
        if self.choices is not None:
            if (self.low, self.high, self.above) != (None, None, None) or self.log or self.per_level:
                raise ValueError("choices have no low, high, log, above or per_level")
            return self
        if self.low is None or self.high is None:
            raise ValueError("expected choices, or low and high")
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0, got {self.low}")
        if self.by and self.above is None:
            raise ValueError("by belongs to above")
        return self

    def grid(self, whole: bool) -> list[Any]:
        """The values that a grid takes."""
        if self.choices is not None:
            return list(self.choices)
        low, high = float(self.low or 0), float(self.high or 0)
        values = np.geomspace(low, high, self.points) if self.log else np.linspace(low, high, self.points)
        values[0], values[-1] = low, high
        return sorted({round(value) for value in values}) if whole else [float(f"{value:.6g}") for value in values]

    def holds(self, value: Any, low: Number | None = None) -> bool:
        """Whether a value is one of them, with a higher `low` where another setting asks for it."""
        if self.choices is not None:
            return value in self.choices
        floor = self.low if low is None else max(low, self.low or 0)
        return isinstance(value, Number) and floor <= value <= self.high  # type: ignore[operator]


def check_key(key: str) -> None:
    """Refuse what is no setting, or none that a search may change.

    Raises:
        ConfigError: with the nearest valid name.
    """
    known = dict(_settings(Config))
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"searched are settings of {', '.join(SEARCHED)}"
        raise ConfigError(f"{key}: unknown setting; {hint}")
    if key in FIXED:
        raise ConfigError(f"{key}: cannot be searched: all trials have the same, so that they compare")
    if key.partition(".")[0] not in SEARCHED:
        raise ConfigError(f"{key}: cannot be searched; searched are settings of {', '.join(SEARCHED)}")


def is_whole(key: str) -> bool:
    """Whether a setting takes whole numbers only."""
    return float not in set(_parts(dict(_settings(Config))[key]))


def _settings(model: type[BaseModel], prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """Dotted name -> annotation of every setting."""
    for name, field in model.model_fields.items():
        inner = next((each for each in _parts(field.annotation) if _is_section(each)), None)
        if inner is None:
            yield prefix + name, field.annotation
        else:
            yield from _settings(inner, f"{prefix}{name}.")


def _parts(annotation: Any) -> typing.Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
