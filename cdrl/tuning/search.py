"""The trials on Ray Tune, and what is made of what it tells.

A trial is an actor that drives a run on Ray Train. Tune keeps nothing of a sweep: what is known lies in `Notes`, and an
interrupted sweep begins a new Tune experiment with it. So nothing is ever unpickled, and whatever was killed goes on.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search import Searcher

from cdrl.tuning.actor import BAD_FD, TrialActor
from cdrl.tuning.notes import Notes, Score, Trial
from cdrl.tuning.population import Within, mutations
from cdrl.tuning.propose import propose
from cdrl.tuning.space import setting
from cdrl.tuning.sweep import Sweep

__all__ = ["SLOT", "run_trials"]

SLOT = "cdrl_trial"
"""The resource of a session of our own that bounds how many trials run at a time."""
DRIVER_CPUS = 0.001  # elsewhere; 0 is refused


class _StaysHere:
    """Tune writes down what it is given, to go on with; nobody reads that, and what is known lies in `Notes`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Proposals(_StaysHere, Searcher):
    """Trials to go on with, then new ones."""

    def __init__(self, waiting: Callable[[], dict[str, Any] | None]) -> None:
        super().__init__(metric="fd", mode="min")
        self._waiting = waiting

    def suggest(self, trial_id: str) -> Any:
        del trial_id
        given = self._waiting()
        return Searcher.FINISHED if given is None else {"trial": given}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The notes know it."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nor to restore."""


class _Rungs(_StaysHere, AsyncHyperBandScheduler):
    """ASHA that knows what the trials of earlier calls have reached."""

    def __init__(self, notes: Notes, **options: Any) -> None:
        super().__init__(**options)
        self._notes = notes
        for trial in notes.listed():
            if trial.state not in ("running", "failed"):
                self._replay(SimpleNamespace(trial_id=f"earlier-{trial.number}"), trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        number = trial.config["trial"]["number"]
        if number in self._notes.trials:
            self._replay(trial, self._notes.trials[number])
        else:
            super().on_trial_add(tune_controller, trial)

    def _replay(self, trial: Any, known: Trial) -> None:
        super().on_trial_add(None, trial)
        for score in known.scores:
            bad = known.state == "diverged" and score == known.scores[-1]
            super().on_trial_result(None, trial, {"step": score.step, "fd": BAD_FD if bad else score.fd})


class _Scribe(_StaysHere, tune.Callback):
    """Takes down what Tune hears, before anything else is made of it."""

    def __init__(self, notes: Notes, tell: Callable[[Trial, Score | None], None], beat: Callable[[], None]) -> None:
        self._notes, self._tell, self._beat = notes, tell, beat

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        self._beat()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        number = result["config"]["trial"]["number"]
        known, score = self._notes.trials[number], None
        if (known.run, known.parameters, known.start) != (result["run"], result["parameters"], result["start"]):
            known = self._notes.place(number, result["run"], result["parameters"], result["start"])
        if result["scored"]:
            score = Score(result["step"], result["fd"], result["error"])
            known = self._notes.score(number, score)
        if result["done"]:
            known = self._notes.end(number, result["state"], result["cause"])
        if score or result["done"]:
            self._tell(known, score)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        number = trial.config["trial"]["number"]
        if self._notes.trials[number].state == "running":
            self._tell(self._notes.end(number, "stopped"), None)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        lines = [line.strip() for line in str(trial.get_error() or "its process died").splitlines() if line.strip()]
        number = trial.config["trial"]["number"]
        self._tell(self._notes.end(number, "failed", lines[-1]), None)


def run_trials(
    sweep: Sweep,
    notes: Notes,
    parallel: int,
    *,
    has_slots: bool,
    tell: Callable[[Trial, Score | None], None],
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Run what is left of a sweep in the Ray session that is there; returns when all trials are over.

    Args:
        parallel: trials at a time.
        has_slots: whether the session has as many of the resource `SLOT`.
        tell: called with a trial after each of its scores and at its end.
        beat: called now and then.
    """
    space, num_updates = sweep.space, sweep.config.training.num_updates
    waiting = _Waiting(sweep, notes)
    options: dict[str, Any] = {"time_attr": "step", "metric": "fd", "mode": "min"}
    config: dict[str, Any] = {}
    search: dict[str, Any] = {"search_alg": _Proposals(waiting.next), "num_samples": -1}
    search["max_concurrent_trials"] = parallel
    scheduler: Any = FIFOScheduler()
    if space.scheduler == "asha":
        # a trial ends by itself; Tune would end one with all updates before it is complete
        grace = max(1, round(space.first_rung * num_updates))
        scheduler = _Rungs(notes, max_t=num_updates, grace_period=grace, reduction_factor=1 / space.keep, **options)
    elif space.scheduler == "pbt":  # knows all trials from the beginning
        config, search = {"trial": tune.grid_search(list(waiting))}, {"num_samples": 1}
        scheduler = PopulationBasedTraining(
            perturbation_interval=max(1, round(space.first_rung * num_updates)),
            hyperparam_mutations={"trial": {"parameters": mutations(sweep)}},
            custom_explore_fn=Within(sweep),
            quantile_fraction=min(0.5, 1 - space.keep),
            log_config=False,
            **options,
        )
    resources = {"CPU": 0, SLOT: 1} if has_slots else {"CPU": DRIVER_CPUS}
    with tempfile.TemporaryDirectory(prefix="cdrl-ray-tune-") as folder, _silent():
        tune.Tuner(
            tune.with_resources(tune.with_parameters(TrialActor, sweep=sweep), resources),
            param_space=config,
            tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True, **search),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=folder,
                verbose=0,
                callbacks=[_Scribe(notes, tell, beat)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0),
            ),
        ).fit()


class _Waiting:
    """Trials that have not begun in this call, one after the other."""

    def __init__(self, sweep: Sweep, notes: Notes) -> None:
        self._sweep, self._notes = sweep, notes
        self._again = [trial.number for trial in notes.unfinished()]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (given := self.next()) is not None:
            yield given

    def next(self) -> dict[str, Any] | None:
        """What the actor of the next trial is given; None when all have begun."""
        notes, sweep = self._notes, self._sweep
        if self._again:
            number = self._again.pop(0)
            trial = notes.begin(number, notes.trials[number].parameters)
            return {"number": number, "parameters": trial.parameters, "start": trial.start, "known": trial.step}
        if len(notes.trials) >= sweep.num_trials:
            return None
        number = len(notes.trials)
        parameters = propose(sweep.space, sweep.config, number, notes.listed(), sweep.num_trials)
        if sweep.space.scheduler == "pbt" and number == 0:  # it changes them on the way
            tree = sweep.config.model_dump(mode="json")
            parameters = {key: setting(tree, key) for key in sweep.space.parameters}
        notes.begin(number, parameters)
        return {"number": number, "parameters": parameters, "start": None, "known": 0}


@contextmanager
def _silent() -> Iterator[None]:
    """Tune's own words are none for users."""
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
