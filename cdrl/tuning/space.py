"""A search space: a YAML file of searched settings, and of the short runs that try them.

    settings:            # of every trial, below the user's --set: a budget, checkpoints as rungs
      training.num_updates: 600
    parameters:
      schedule.logsnr_max: {low: 7.0, high: 13.0}
      schedule.step_scale: {low: 2.0e-5, high: 1.0e-3, log: true}

Every drawn set of parameters makes a valid configuration: other settings narrow a range (`above`) or switch a
parameter off (`when`), lists get a value for each level, and what the corners of a space make is built when it is read.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from cdrl import config as configuration
from cdrl.build import build_schedule, check_buildable
from cdrl.config import Config
from cdrl.config.method import Section
from cdrl.errors import ConfigError
from cdrl.tuning.parameter import Number, Parameter, check_key, is_whole

__all__ = ["Ask", "Space", "as_overrides", "load_space", "setting", "spaces", "with_parameters"]

NUM_CORNERS = 32
_END = "...\n"  # of a YAML document that is one word
Ask = Callable[[str, str, Parameter, Number | None], Any]
"""Called with (name of the dimension, key of the setting, parameter, smallest value where another setting raises it);
returns the value."""


class Space(Section):
    """What is searched, and how the trials run unless the command says otherwise."""

    settings: dict[str, Any] = Field({}, description="dotted settings of every trial; the command's --set goes first")
    num_trials: int = Field(16, ge=1, description="trials, the configuration as it is among them")
    searcher: Literal["random", "grid", "tpe"] = Field("tpe", description="who proposes the next trial")
    scheduler: Literal["fifo", "asha", "pbt"] = Field("asha", description="who ends trials early")
    first_rung: float = Field(0.5, gt=0, lt=1, description="share of the updates after which asha first compares")
    keep: float = Field(0.5, gt=0, lt=1, description="the share of trials that asha lets pass a rung")
    parameters: dict[str, Parameter] = Field(..., min_length=1, description="by dotted name of the setting")

    def draw(self, ask: Ask, config: Config) -> dict[str, Any]:
        """One set of parameters: dotted name -> value, a list for each level where that is asked for."""
        tree, drawn = config.model_dump(mode="json"), dict[str, Any]()

        def known(key: str) -> Any:
            return drawn[key] if key in drawn else setting(tree, key)

        for key in self._order():
            each = self.parameters[key]
            if any(known(other) != value for other, value in each.when.items()):
                continue
            low = None if each.above is None else known(each.above) + each.by
            if each.per_level:
                levels = range(known("schedule.num_levels"))
                drawn[key] = [ask(f"{key}[{level}]", key, each, low) for level in levels]
            else:
                drawn[key] = ask(key, key, each, low)
        return drawn

    def grid(self, config: Config) -> list[dict[str, Any]]:
        """Every combination of the values of all parameters.

        Raises:
            ConfigError: a parameter per level: there would be too many.
        """
        if several := [key for key, each in self.parameters.items() if each.per_level]:
            raise ConfigError(f"{several[0]}: per_level goes with the searchers random and tpe, not with grid")
        found, paths = [], [[]]  # type: list[dict[str, Any]], list[list[int]]
        while paths:
            path = paths.pop()
            asked = itertools.count()

            def ask(name: str, key: str, each: Parameter, low: Number | None) -> Any:
                values = [value for value in each.grid(is_whole(key)) if each.holds(value, low)] or [each.high]
                at = next(asked)  # noqa: B023 - called within this round
                if at == len(path):  # noqa: B023
                    paths.extend([*path, other] for other in range(len(values) - 1, 0, -1))  # noqa: B023
                    path.append(0)  # noqa: B023
                return values[path[at]]  # noqa: B023

            found.append(self.draw(ask, config))
        return found

    def check(self, config: Config) -> None:
        """Refuse what would make no valid trial.

        Raises:
            ConfigError: an unknown setting, a value of the wrong type, or a corner at which no run can be built.
        """
        for key, each in self.parameters.items():
            for name in (key, *each.when, *([each.above] if each.above else [])):
                with _at(f"parameters.{key}"):
                    check_key(name)
            if is_whole(key) and not all(isinstance(end, int | None) for end in (each.low, each.high)):
                raise ConfigError(f"parameters.{key}: expected whole numbers, got {each.low} and {each.high}")
            if each.above is not None and is_whole(key) != is_whole(each.above):
                raise ConfigError(f"parameters.{key}: above {each.above}: one is a whole number, the other is none")
        built = {(config.energy, config.initializer, config.pairs)}  # those are checked before the sweep begins
        for parameters in self._corners(config):
            with _at(_shown(parameters)):
                corner = with_parameters(config, parameters)
                build_schedule(corner.schedule)
                if (networks := (corner.energy, corner.initializer, corner.pairs)) not in built:
                    check_buildable(corner)
                built.add(networks)

    def _corners(self, config: Config) -> Iterator[dict[str, Any]]:
        """All lowest, all highest, each alone at its other end, each choice, and random mixtures of ends."""
        pick = random.Random(0)
        ends = [[0] * len(self.parameters), [-1] * len(self.parameters)]
        for at, each in enumerate(self.parameters.values()):
            for end in range(len(each.choices)) if each.choices else (0, -1):
                ends.append([end if other == at else 0 for other in range(len(self.parameters))])
                ends.append([end if other == at else -1 for other in range(len(self.parameters))])
        ends += [[pick.choice((0, -1)) for _ in self.parameters] for _ in range(NUM_CORNERS)]
        seen = []
        for corner in ends:
            end_of = dict(zip(self.parameters, corner, strict=True))

            def ask(name: str, key: str, each: Parameter, low: Number | None) -> Any:
                if each.choices is not None:
                    return each.choices[end_of[key]]  # noqa: B023 - called within this round
                lowest = each.low if low is None else max(low, each.low or 0)
                if lowest > each.high:  # type: ignore[operator]
                    raise ConfigError(f"parameters.{key}: high {each.high} is below {each.above} + {each.by:g} = {low}")
                return lowest if end_of[key] == 0 else each.high  # noqa: B023

            drawn = self.draw(ask, config)
            if drawn not in seen:
                seen.append(drawn)
                yield drawn

    def _order(self) -> list[str]:
        """Keys such that each comes after those that it looks at.

        Raises:
            ConfigError: they look at each other.
        """
        ordered: list[str] = []
        while len(ordered) < len(self.parameters):
            ready = [
                key
                for key, each in self.parameters.items()
                if key not in ordered and not (self._seen_by(key, each) & set(self.parameters)) - set(ordered)
            ]
            if not ready:
                left = ", ".join(key for key in self.parameters if key not in ordered)
                raise ConfigError(f"parameters: {left} look at each other through above, when or per_level")
            ordered += ready
        return ordered

    def _seen_by(self, key: str, each: Parameter) -> set[str]:
        return {*each.when, *([each.above] if each.above else []), *(["schedule.num_levels"] if each.per_level else [])}


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Says where an error of the configuration comes from."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def spaces() -> dict[str, str]:
    """Names of the spaces that are shipped, with the first comment line of each."""
    files = resources.files("cdrl").joinpath("presets", "spaces").iterdir()
    named = {file.name.removesuffix(".yaml"): file.read_text() for file in files if file.name.endswith(".yaml")}
    return {name: named[name].splitlines()[0].lstrip("# ") for name in sorted(named)}


def load_space(source: str) -> Space:
    """The space of a preset's name or a YAML file.

    Raises:
        ConfigError: unknown preset, unreadable file, unknown key, wrong type or range; no parameters.
    """
    known = spaces()
    if source in known:
        text = resources.files("cdrl").joinpath("presets", "spaces", f"{source}.yaml").read_text()
    elif Path(source).suffix in (".yaml", ".yml"):
        try:
            text = Path(source).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--space {source}: cannot read the file: {error}") from None
    else:
        raise ConfigError(f"--space {source!r} is neither a preset nor a .yaml file; presets: {', '.join(known)}")
    try:
        tree = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--space {source}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"--space {source}: expected a mapping, got {type(tree).__name__}")
    if not tree.get("parameters"):
        raise ConfigError(f"--space {source}: it searches nothing: expected parameters, such as schedule.logsnr_max")
    try:
        return Space.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--space {source}: {where}: {message}".replace(": :", ":")) from None


def with_parameters(config: Config, parameters: Mapping[str, Any]) -> Config:
    """The configuration of a trial.

    Raises:
        ConfigError: it is none.
    """
    return configuration.override(config, as_overrides(parameters))


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Dotted settings as `a.b=value`."""
    texts = {key: yaml.safe_dump(value, default_flow_style=True, width=10**6) for key, value in values.items()}
    return [f"{key}={text.removesuffix(_END).strip()}" for key, text in texts.items()]


def setting(tree: Any, key: str) -> Any:
    """The value of a dotted setting in a configuration's tree; None below a section that is null."""
    for part in key.split("."):
        tree = None if tree is None else tree[part]
    return tree


def _shown(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_short(value)}" for key, value in parameters.items())


def _short(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ", ".join(map(_short, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
