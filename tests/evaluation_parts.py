"""Real digits, a tiny untrained model of them, and a run that holds it."""

from pathlib import Path

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from cdrl import config as configuration
from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.data.prepare import Options, prepare
from cdrl.model import Model, build_ladder
from cdrl.runs import Checkpoint, RunRecord, step_folder
from cdrl.tracking.run import TrackedRun
from tests.training_parts import ATTEMPT

TINY = {
    "name": "tiny",
    "schedule": {"num_levels": 2},
    "energy": {"width": 4, "multipliers": [1], "num_blocks": 1},
    "initializer": {"width": 4, "multipliers": [1], "num_blocks": 1, "attention_resolutions": [], "groups": 2},
    "sampling": {"num_steps": 1, "batch_size": 16},
    "evaluation": {"extractor": "classifier", "num_samples": 40},
}


def digits(folder: Path, holdout: int = 100) -> str:
    """The URI of 500 digits, some held out."""
    prepare("digits", str(folder), Options(limit=500, holdout=holdout))
    return str(folder)


def tiny_config(uri: str, root: Path, *, num_classes: int = 10) -> Config:
    """A configuration for those digits, its cache and runs below `root`."""
    ours = {
        "data": {"uri": uri, "shape": [1, 8, 8], "num_classes": num_classes, "cache": str(root / "cache")},
        "run": {"root": str(root), "score_samples": 40},
    }
    return configuration.validate(TINY | ours, where="test")


def tiny_model(config: Config, folder: Path, *, step: int = 3) -> Path:
    """The folder of an untrained model."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Dataset.open(config.data.uri).manifest
    torch.manual_seed(0)
    Model(config, build_ladder(config), manifest.class_names, manifest.digest, step).write(folder)
    return folder


def tiny_run(config: Config) -> RunRecord:
    """A tracked run with one checkpoint, as training leaves it."""
    manifest = Dataset.open(config.data.uri).manifest
    journal = TrackedRun.start(config, config.run_id, manifest_digest=manifest.digest)
    journal.close()
    record = RunRecord(
        run_id=config.run_id,
        config=config,
        manifest_digest=manifest.digest,
        class_names=manifest.class_names,
        tracking_uri=journal.uri,
        mlflow_run_id=journal.mlflow_run_id,
    )
    record.write(config.run.root)
    folder = tiny_model(config, record.directory / step_folder(3, ATTEMPT))
    card = Checkpoint(step=3, score=None, identity="", manifest_digest=manifest.digest, files={})
    (folder / "state.json").write_bytes(card.sealed())
    return record


def blank_inception(folder: Path) -> Path:
    """Random tensors of Inception's shapes: a file of the right form, no feature net worth a score."""

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object) -> None:
            """Keep the initial weights."""

    torch.save({}, folder / "empty.pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Blank("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(folder / "empty.pt"))
    torch.save(net.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"
