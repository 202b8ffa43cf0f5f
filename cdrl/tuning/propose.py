"""What to try next, and which settings mattered: the one door to Optuna.

A proposal depends on its number, the seed and what is known of the trials before it, and on nothing else: an
interrupted search needs no state of a searcher to go on.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from cdrl.config import Config
from cdrl.tuning.notes import Trial
from cdrl.tuning.parameter import Number, Parameter, is_whole
from cdrl.tuning.space import Space, setting

__all__ = ["importances", "propose"]

STATES = {"complete": TrialState.COMPLETE, "running": TrialState.RUNNING}
MIN_STARTUP, STARTUP_SHARE = 4, 3  # TPE begins with random trials: a third of the search, and no fewer than these
SEEDS_PER_SWEEP = 100_003


class _Unknown(Exception):
    """A known trial has a value that the space does not hold."""


def propose(space: Space, config: Config, number: int, known: Sequence[Trial], num_trials: int) -> dict[str, Any]:
    """The parameters of trial `number`; those of 0 are empty: it is the configuration as it is.

    Args:
        known: the trials before it, with what has become of them.
        num_trials: of the whole search.
    """
    if number == 0:
        return {}
    if space.searcher == "grid":
        return space.grid(config)[number - 1]
    seed = config.training.seed * SEEDS_PER_SWEEP + number
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed)
    if space.searcher == "tpe":
        startup = max(MIN_STARTUP, num_trials // STARTUP_SHARE)
        with warnings.catch_warnings(action="ignore"):  # "experimental"
            sampler = optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed, constant_liar=True)
    study = _study(sampler)
    for trial in known:
        frozen = _frozen(space, config, trial)
        if frozen is not None:
            study.add_trial(frozen)
    asked = study.ask()

    def ask(name: str, key: str, each: Parameter, low: Number | None) -> Any:
        match _distribution(key, each, low):
            case CategoricalDistribution(choices=choices):
                return json.loads(str(asked.suggest_categorical(name, choices)))
            case IntDistribution(low=least, high=most, log=log):
                return asked.suggest_int(name, least, most, log=log)
            case FloatDistribution(low=lowest, high=highest, log=log):
                return asked.suggest_float(name, lowest, highest, log=log)

    return space.draw(ask, config)


def importances(rows: Sequence[Mapping[str, float]], values: Sequence[float]) -> dict[str, float]:
    """The share of each column in the spread of the values (fANOVA), largest first; empty where nothing can be said.

    Args:
        rows: of each trial, name -> number.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    moving = {name: column for name, column in columns.items() if min(column) < max(column)}
    if len(rows) < MIN_STARTUP or not moving or min(values) == max(values):
        return {}
    study = _study(optuna.samplers.RandomSampler(0))
    distributions: dict[str, BaseDistribution] = {
        name: FloatDistribution(min(column), max(column)) for name, column in moving.items()
    }
    for at, value in enumerate(values):
        params = {name: column[at] for name, column in moving.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=sampler, direction="minimize")


def _frozen(space: Space, config: Config, trial: Trial) -> FrozenTrial | None:
    """A known trial as Optuna has it; None where its values lie outside of the space, as the configuration's own may.

    One that was ended early counts by what it had reached, one that diverged as worse than all.
    """
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}

    def recall(name: str, key: str, each: Parameter, low: Number | None) -> Any:
        value = _value(trial.parameters, config, name, key)
        if not each.holds(value, low):
            raise _Unknown
        params[name] = value if each.choices is None else json.dumps(value)
        distributions[name] = _distribution(key, each, low)
        return value

    if trial.state == "failed":
        return None  # says nothing about its parameters
    try:
        space.draw(recall, config)
    except _Unknown:
        return None
    steps = {} if trial.state == "diverged" else {score.step: score.fd for score in trial.scores}
    state = STATES.get(trial.state, TrialState.PRUNED)
    value = trial.scores[-1].fd if state == TrialState.COMPLETE else None
    return optuna.create_trial(
        state=state, value=value, params=params, distributions=distributions, intermediate_values=steps
    )


def _value(parameters: Mapping[str, Any], config: Config, name: str, key: str) -> Any:
    value = parameters[key] if key in parameters else setting(config.model_dump(mode="json"), key)
    if name != key and isinstance(value, list | tuple):
        return value[int(name.removeprefix(f"{key}[").removesuffix("]"))]
    return value


def _distribution(key: str, each: Parameter, low: Number | None) -> BaseDistribution:
    if each.choices is not None:
        return CategoricalDistribution([json.dumps(choice) for choice in each.choices])
    assert each.low is not None and each.high is not None
    lowest = each.low if low is None else max(low, each.low)
    if is_whole(key):
        return IntDistribution(int(lowest), int(each.high), log=each.log)
    return FloatDistribution(float(lowest), float(each.high), log=each.log)
