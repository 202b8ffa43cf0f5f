"""The graphs: from images to a champion, training alone, a sweep with its best trained, and the nightly contest."""

from kfp import dsl

from components.close import close
from components.evaluate import evaluate
from components.freeze import freeze
from components.gate import gate
from components.prepare import prepare
from components.promote import promote
from components.register import register
from components.report import report
from components.rescore import rescore
from components.train import train
from components.tune import tune
from pipeline.pod import ROOT, heavy, in_order, light

__all__ = ["PIPELINES", "PASSED"]

PASSED = "passed"
DAYS = 24


@dsl.pipeline(name="choose", description="A sweep, or the configuration as it is.")
def choose(
    config: str,
    space: str,
    num_trials: int,
    trial_updates: int,
    run: str,
    data: str,
    root: str,
    storage: str,
    tracking: str,
    address: str,
) -> None:
    """A graph of its own: nothing outside a condition can wait for a step within it, but for this it can."""
    where = {"data": data, "root": root, "storage": storage, "tracking": tracking, "address": address}
    with dsl.If(num_trials > 0, name="with-sweep"):
        sweep = tune(config=config, space=space, num_trials=num_trials, num_updates=trial_updates, run=run, **where)
        heavy(sweep, cpus=4, hours=3 * DAYS)
    with dsl.Else(name="as-it-is"):
        light(freeze(config=config, run=run, root=root))


@dsl.pipeline(name="cdrl", description="Prepare, tune, train, evaluate; promote what the gates let pass.")
def whole(
    run: str,
    config: str = "digits",
    model: str = "digits",
    source: str = "digits",
    data: str = "s3://cdrl/data/digits",
    workers: int = 0,
    max_bad: int = 0,
    space: str = "schedules",
    num_trials: int = 3,
    trial_updates: int = 200,
    num_updates: int = 2000,
    max_sets: int = 0,
    address: str = "local",
    root: str = ROOT,
    storage: str = "s3://cdrl/runs",
    tracking: str = "http://mlflow:5000",
) -> None:
    """A new name for `run` trains anew, an old one resumes; with `num_trials` 0 there is no sweep."""
    at, kept = {"data": data, "root": root, "address": address}, {"root": root, "tracking": tracking}
    where = {**at, "storage": storage, "tracking": tracking}
    with dsl.ExitHandler(light(close(run=run, root=root)), name="work"):
        prepared = heavy(prepare(source=source, workers=workers, max_bad=max_bad, **at))
        sweep = {"space": space, "num_trials": num_trials, "trial_updates": trial_updates}
        chosen = choose(config=config, run=run, **sweep, **where)
        fitted = heavy(train(run=run, num_updates=num_updates, **where), cpus=4, hours=7 * DAYS)
        scored = heavy(evaluate(run=run, root=root, address=address), cpus=4)
        shown = light(report(card=run, root=root))
        version = light(register(run=run, root=root))
        asked = heavy(gate(model=model, version=run, max_sets=max_sets, **kept))
        in_order(prepared, chosen, fitted, scored, shown, version, asked)
        with dsl.If(asked.output == PASSED, name="passed"):
            heavy(promote(model=model, version=run, max_sets=max_sets, **kept))


@dsl.pipeline(name="cdrl-train", description="Prepare and train, nothing else.")
def train_only(
    run: str,
    config: str = "digits",
    source: str = "digits",
    data: str = "s3://cdrl/data/digits",
    workers: int = 0,
    max_bad: int = 0,
    num_updates: int = 2000,
    address: str = "local",
    root: str = ROOT,
    storage: str = "s3://cdrl/runs",
    tracking: str = "http://mlflow:5000",
) -> None:
    """A new name for `run` trains anew, an old one resumes."""
    at = {"data": data, "root": root, "address": address}
    where = {**at, "storage": storage, "tracking": tracking}
    with dsl.ExitHandler(light(close(run=run, root=root)), name="work"):
        prepared = heavy(prepare(source=source, workers=workers, max_bad=max_bad, **at))
        frozen = light(freeze(config=config, run=run, root=root))
        fitted = heavy(train(run=run, num_updates=num_updates, **where), cpus=4, hours=7 * DAYS)
        in_order(prepared, frozen, fitted)


@dsl.pipeline(name="cdrl-sweep", description="Prepare, sweep, train the best configuration and score it.")
def sweep_then_train(
    run: str,
    config: str = "digits",
    source: str = "digits",
    data: str = "s3://cdrl/data/digits",
    workers: int = 0,
    max_bad: int = 0,
    space: str = "schedules",
    num_trials: int = 3,
    trial_updates: int = 200,
    num_updates: int = 2000,
    address: str = "local",
    root: str = ROOT,
    storage: str = "s3://cdrl/runs",
    tracking: str = "http://mlflow:5000",
) -> None:
    """A new name for `run` sweeps anew, an old one goes on."""
    at = {"data": data, "root": root, "address": address}
    where = {**at, "storage": storage, "tracking": tracking}
    with dsl.ExitHandler(light(close(run=run, root=root)), name="work"):
        prepared = heavy(prepare(source=source, workers=workers, max_bad=max_bad, **at))
        found = tune(config=config, space=space, num_trials=num_trials, num_updates=trial_updates, run=run, **where)
        heavy(found, cpus=4, hours=3 * DAYS)
        fitted = heavy(train(run=run, num_updates=num_updates, **where), cpus=4, hours=7 * DAYS)
        scored = heavy(evaluate(run=run, root=root, address=address), cpus=4)
        in_order(prepared, found, fitted, scored, light(report(card=run, root=root)))


@dsl.pipeline(name="cdrl-nightly", description="Score champion and challenger again; promote what the gates let pass.")
def nightly(
    model: str = "digits",
    version: str = "latest",
    data: str = "s3://cdrl/data/digits",
    seed: int = 2,
    max_sets: int = 4,
    address: str = "local",
    root: str = ROOT,
    tracking: str = "http://mlflow:5000",
) -> None:
    """Both are scored with the same fresh noise; the gates draw up to `max_sets` further sets while it is not clear."""
    kept = {"root": root, "tracking": tracking}
    cards = []
    for who in ("@champion", f"/{version}"):
        scored = rescore(model=model, version=who, data=data, seed=seed, address=address, **kept)
        heavy(scored, cpus=4)
        card = f"{root}/nightly/{model}{who}/latest.json"
        cards.append(light(report(card=card, root=root)).after(scored))
    asked = heavy(gate(model=model, version=version, max_sets=max_sets, **kept), cpus=4).after(*cards)
    with dsl.If(asked.output == PASSED, name="passed"):
        heavy(promote(model=model, version=version, max_sets=max_sets, **kept), cpus=4)


PIPELINES = {"cdrl": whole, "train": train_only, "sweep": sweep_then_train, "nightly": nightly}
"""By the name that `python -m pipeline` knows."""
