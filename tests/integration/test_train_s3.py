"""The main job's hardest day: CIFAR-10 in shards on S3, checkpoints on S3, a SIGKILL, a Ctrl-C, and no loss differs.

The images are those below `CDRL_CIFAR10` (default: `../shared/data/cifar10-jpeg` beside the checkout), parquet files of
JPEG bytes and labels. Where there are none, a file of the same layout with random images takes their place.
"""

import io
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from cdrl.config import load
from cdrl.data.prepare import Options, prepare
from cdrl.model import Model
from cdrl.runs import RunRecord, fetch_model
from tests.training_runs import CDRL, Train, command, digests, history, straight

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

METRICS = ("loss_energy", "loss_initializer", "f_pos", "f_neg", "grad_norm_energy", "grad_norm_initializer")
NUM_ROWS, NUM_UPDATES, CHECKPOINT_EVERY, SAMPLE_EVERY = 400, 36, 10, 6


def cifar10(folder: Path) -> str:
    """A pattern of parquet files."""
    project = Path(__file__).parents[2]
    given = Path(os.environ.get("CDRL_CIFAR10", project.parent / "shared" / "data" / "cifar10-jpeg"))
    if not list(given.glob("train-*.parquet")):
        rng, rows = np.random.default_rng(0), []
        for _ in range(NUM_ROWS):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "JPEG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        labels = pa.array(rng.integers(0, 10, NUM_ROWS))
        image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        given = folder
        pq.write_table(pa.table({"image": image, "label": labels}), given / "train-0.parquet")
    return str(given / "train-*.parquet")


def settings(bucket: str, folder: Path) -> list[str]:
    """Of the run."""
    given = {
        "data.uri": f"{bucket}/cifar10",
        "data.cache": folder / "cache",
        "run.root": folder / "runs",
        "run.storage": f"{bucket}/runs",
        "run.name": "broken",
        "run.checkpoint_every": CHECKPOINT_EVERY,
        "run.sample_every": SAMPLE_EVERY,
        "training.num_updates": NUM_UPDATES,
        "sampling.num_steps": 1,
    }
    return [f"{key}={value}" for key, value in given.items()]


def test_killed_and_interrupted_it_ends_as_if_nothing_had_been(
    s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, root = settings(s3, tmp_path), str(tmp_path / "runs")
    prepare("parquet", f"{s3}/cifar10", Options(path=cifar10(tmp_path), holdout=0, limit=NUM_ROWS))

    killed = Train("cifar10-smoke", given)
    killed.wait_for_picture(2 * SAMPLE_EVERY)
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    record = RunRecord.read("broken", root)
    client = MlflowClient(record.tracking_uri)
    assert not record.finished and client.get_run(record.mlflow_run_id).info.status == "RUNNING"
    assert [state.step for state in record.checkpoints().values()] == [CHECKPOINT_EVERY]

    stopped = Train("cifar10-smoke", given)
    stopped.wait_for_picture(3 * SAMPLE_EVERY)
    assert stopped.end(signal.SIGINT) == 130, stopped.log.read_text()
    text = stopped.log.read_text()
    assert f"resumed at {CHECKPOINT_EVERY}" in text and "the same command resumes" in text and "Traceback" not in text
    held = max(state.step for state in record.checkpoints().values())
    assert 3 * SAMPLE_EVERY <= held < NUM_UPDATES and f"stopped at {held} of {NUM_UPDATES}" in text
    assert client.get_run(record.mlflow_run_id).info.status == "KILLED"

    resumed = Train("cifar10-smoke", given)
    assert resumed.end() == 0, resumed.log.read_text()
    assert f"resumed at {held}" in resumed.log.read_text()
    record = RunRecord.read("broken", root)
    assert record.finished and client.get_run(record.mlflow_run_id).info.status == "FINISHED"
    runs = client.search_runs([client.get_run(record.mlflow_run_id).info.experiment_id])
    assert [run.info.run_name for run in runs] == ["broken"]  # three processes, one MLflow run

    expected, losses = straight(load("cifar10-smoke", given), tmp_path / "straight")
    assert record.checkpoint("last").startswith(f"{s3}/runs/broken/step_{NUM_UPDATES:08d}-")
    assert digests(record) == expected and len(expected) == 3
    for name in METRICS:
        assert dict(history(record, name)) == losses[name] and list(losses[name]) == list(range(1, NUM_UPDATES + 1))
    model = Model.load(fetch_model("broken", "last", root))
    images = model.sample(2, seed=3)
    assert model.step == NUM_UPDATES and images.shape == (2, 3, 32, 32) and bool(images.isfinite().all())

    nowhere = "cluster.address=127.0.0.1:1"  # a finished run needs no Ray
    assert command("train", "cifar10-smoke", *given, nowhere) == 0
    assert f"complete: run broken at {NUM_UPDATES} updates" in capsys.readouterr().out

    step, drawn = 3 * CHECKPOINT_EVERY + 2, tmp_path / "update.png"
    replay = [CDRL, "replay", "broken", "--root", root, "--step", str(step), "--picture", drawn]
    told = subprocess.run(replay, check=True, capture_output=True, text=True).stdout
    assert f"2 to make from the checkpoint at {step - 2}" in told and "equal the logged ones exactly" in told
    assert Image.open(drawn).height > 500
