"""A tiny run with real weights, as training leaves it, and score cards for it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import torch

from cdrl import config as configuration
from cdrl.evaluation.protocol import Protocol, ScoreCard, Scores
from cdrl.model import Model, build_ladder
from cdrl.registry.history import History, Overtaken
from cdrl.runs import Checkpoint, RunRecord, step_folder
from cdrl.tracking.run import TrackedRun
from tests.training_parts import ATTEMPT

TINY = {
    "name": "tiny",
    "schedule": {"num_levels": 2},
    "energy": {"width": 4, "multipliers": [1], "num_blocks": 1},
    "initializer": {"width": 4, "multipliers": [1], "num_blocks": 1, "attention_resolutions": [], "groups": 2},
    "sampling": {"num_steps": 1, "batch_size": 4},
}


def tiny_model(folder: Path, *, seed: int = 0, **settings: Any) -> Model:
    """A model in a folder, as a checkpoint holds it, with two classes."""
    config = configuration.validate(TINY | {"data": {"shape": [1, 8, 8], "num_classes": 2}} | settings, where="test")
    torch.manual_seed(seed)
    Model(config, build_ladder(config), ("a", "b"), "ab" * 32, 10).write(folder)
    return Model.load(folder)


def make_run(
    root: Path,
    *,
    seed: int = 0,
    num_classes: int = 2,
    uri: str | None = None,
    experiment: str = "cdrl",
    settings: dict[str, Any] | None = None,
) -> RunRecord:
    """A tracked run with one checkpoint after 10 updates; `settings` are any others."""
    ours = {
        "data": {"shape": [1, 8, 8], "num_classes": num_classes},
        "training": {"seed": seed},
        "run": {"root": str(root)},
        "tracking": {"uri": uri, "experiment": experiment},
    }
    config = configuration.validate(TINY | ours | (settings or {}), where="test")
    journal = TrackedRun.start(config, config.run_id, manifest_digest="ab" * 32)
    journal.close()
    record = RunRecord(
        run_id=config.run_id,
        config=config,
        manifest_digest="ab" * 32,
        class_names=("a", "b")[:num_classes],
        tracking_uri=journal.uri,
        mlflow_run_id=journal.mlflow_run_id,
    )
    record.write(str(root))
    checkpoint(record, seed=seed)
    return record


def checkpoint(record: RunRecord, *, step: int = 10, seed: int = 0) -> Path:
    """The checkpoint of a step, made if it is not there."""
    folder = record.directory / step_folder(step, ATTEMPT)
    if not folder.exists():
        folder.mkdir()
        torch.manual_seed(seed)
        ladder = build_ladder(record.config)
        Model(record.config, ladder, record.class_names, record.manifest_digest, step).write(folder)
        (folder / "state.safetensors").write_bytes(b"moments")
        card = Checkpoint(step=step, score=None, identity="", manifest_digest=record.manifest_digest, files={})
        (folder / "state.json").write_bytes(card.sealed())
    return folder


def card(model: Model, frechet: float, *, num_generated: int = 10) -> ScoreCard:
    """A score card of these weights."""
    protocol = Protocol(
        metric="FD (digits-cnn)",
        extractor="classifier:features",
        extractor_digest="cd" * 32,
        judge_digest=None,
        judge_accuracy=None,
        manifest_digest=model.manifest_digest,
        num_reference=100,
        num_generated=num_generated,
        neighbours=3,
        max_neighbour_rows=100,
        labels="as reference",
        sampling=model.config.sampling,
        seed=1,
    )
    scores: Scores = {"frechet": frechet, "precision": 0.5, "recall": 0.5, "label_accuracy": None}
    return ScoreCard(
        protocol=protocol,
        scores=scores,
        k0={**scores, "frechet": 2 * frechet},
        k0_sampling=model.config.sampling.model_copy(update={"num_steps": 0}),
        floor={**scores, "frechet": 0.01},
        floor_of="hold-out",
        num_floor=20,
        model_digest=model.digest,
        config_digest=model.config.digest,
        step=model.step,
        seconds=1.0,
        images_per_s=10.0,
    )


def score(record: RunRecord, frechet: float, *, num_generated: int = 10) -> ScoreCard:
    """Leave a score card in the run's folder, as `cdrl evaluate` does."""
    folder = record.directory / "evaluation"
    folder.mkdir(exist_ok=True)
    measured = card(Model.load(checkpoint(record)), frechet, num_generated=num_generated)
    for name in (f"score-{measured.protocol.digest[:8]}-{measured.model_digest[:8]}.json", "latest.json"):
        (folder / name).write_text(measured.model_dump_json())
    return measured


def raced(history: History, first: int, second: int) -> list[bool]:
    """Two promote a candidate each after both saw the same champion; who of them won."""
    barrier = Barrier(2)

    def promote(candidate: int) -> bool:
        mine = History(history.uri, history.model)
        chain = mine.read()
        barrier.wait()
        try:
            mine.append(chain, action="promote", champion=candidate)
        except Overtaken:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(promote, [first, second]))
