"""The main job's hardest day: CIFAR-10 in shards on S3, checkpoints on S3, a SIGKILL, a Ctrl-C, and no loss differs.

The images are those below `CDRL_CIFAR10` (default: `../shared/data/cifar10-jpeg` beside the checkout), parquet files of
JPEG bytes and labels. Where there are none, a file of the same layout with random images takes their place.
"""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from cdrl import storage
from cdrl.model import Model
from cdrl.runs import RunRecord, fetch_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

CDRL = str(Path(sys.executable).parent / "cdrl")
METRICS = ("loss_energy", "loss_initializer", "f_pos", "f_neg", "grad_norm_energy", "grad_norm_initializer")
NUM_ROWS, NUM_UPDATES, CHECKPOINT_EVERY, SAMPLE_EVERY = 400, 64, 24, 10
PATIENCE_S = 240.0


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


class Train:
    """`cdrl train cifar10-smoke` as a process group of its own, as a shell would start it."""

    def __init__(self, bucket: str, folder: Path, name: str, *options: str) -> None:
        self.directory, self.log = folder / "runs" / name, folder / f"{name}.log"
        settings = {
            "data.uri": f"{bucket}/cifar10",
            "data.cache": folder / "cache",
            "run.root": folder / "runs",
            "run.storage": f"{bucket}/runs",
            "run.name": name,
            "run.checkpoint_every": CHECKPOINT_EVERY,
            "run.sample_every": SAMPLE_EVERY,
            "training.num_updates": NUM_UPDATES,
        }
        given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [CDRL, "train", "cifar10-smoke", *given, *options], stdout=log, stderr=log, start_new_session=True
            )
        self.family: list[psutil.Process] = []

    def wait_for_picture(self, step: int) -> None:
        """Until the samples of that update are here."""
        picture = self.directory / "samples" / f"{step:08d}.png"
        deadline = time.monotonic() + PATIENCE_S
        while not picture.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def end(self, signal_number: signal.Signals | None = None) -> int:
        """The exit code, after a signal to the process group as a terminal would send it; no process stays behind."""
        if signal_number is not None:
            os.killpg(self.process.pid, signal_number)
        code = self.process.wait(PATIENCE_S)
        _, left = psutil.wait_procs(self.family, timeout=30)
        for process in left:
            process.kill()
        assert left == [], self.log.read_text()
        return code


def history(record: RunRecord) -> dict[str, dict[int, float]]:
    """Metric -> step -> value; where a resumed run measured a step again, its value."""
    client = MlflowClient(record.tracking_uri)
    return {
        name: {metric.step: metric.value for metric in client.get_metric_history(record.mlflow_run_id, name)}
        for name in METRICS
    }


def weights(record: RunRecord) -> dict[str, bytes]:
    """The safetensors files of the last checkpoint."""
    folder = record.checkpoint("last")
    assert folder.startswith("s3://") and f"/step_{NUM_UPDATES:08d}-" in folder
    names = [name for name in storage.listing(folder) if name.endswith(".safetensors")]
    assert names == ["pair-00.safetensors", "train-00.safetensors"]
    return {name: storage.read_bytes(storage.join(folder, name)) for name in names}


def test_killed_and_interrupted_it_ends_as_if_nothing_had_been(s3: str, tmp_path: Path) -> None:
    source = cifar10(tmp_path)
    prepare = [CDRL, "data", "prepare", "parquet", f"{s3}/cifar10", "--path", source, "--holdout", "0"]
    subprocess.run([*prepare, "--limit", str(NUM_ROWS)], check=True, capture_output=True)

    straight = Train(s3, tmp_path, "straight")
    assert straight.end() == 0, straight.log.read_text()
    expected = RunRecord.read("straight", str(tmp_path / "runs"))

    killed = Train(s3, tmp_path, "broken")
    killed.wait_for_picture(3 * SAMPLE_EVERY)
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    record = RunRecord.read("broken", str(tmp_path / "runs"))
    client = MlflowClient(record.tracking_uri)
    assert not record.finished and client.get_run(record.mlflow_run_id).info.status == "RUNNING"
    assert [state.step for state in record.checkpoints().values()] == [CHECKPOINT_EVERY]

    stopped = Train(s3, tmp_path, "broken")
    stopped.wait_for_picture(4 * SAMPLE_EVERY)
    assert stopped.end(signal.SIGINT) == 130, stopped.log.read_text()
    text = stopped.log.read_text()
    assert f"resumed at {CHECKPOINT_EVERY}" in text and "the same command resumes" in text and "Traceback" not in text
    held = max(state.step for state in record.checkpoints().values())
    assert 4 * SAMPLE_EVERY < held < NUM_UPDATES and f"stopped at {held} of {NUM_UPDATES}" in text
    assert client.get_run(record.mlflow_run_id).info.status == "KILLED"

    resumed = Train(s3, tmp_path, "broken")
    assert resumed.end() == 0, resumed.log.read_text()
    assert f"resumed at {held}" in resumed.log.read_text()
    record = RunRecord.read("broken", str(tmp_path / "runs"))
    assert record.finished and client.get_run(record.mlflow_run_id).info.status == "FINISHED"
    names = [run.info.run_name for run in client.search_runs([client.get_run(record.mlflow_run_id).info.experiment_id])]
    assert sorted(names) == ["broken", "straight"]  # three processes, one MLflow run

    assert weights(record) == weights(expected)
    assert history(record) == history(expected)
    assert all(list(steps) == list(range(1, NUM_UPDATES + 1)) for steps in history(expected).values())
    model = Model.load(fetch_model("broken", "last", str(tmp_path / "runs")))
    images = model.sample(2, seed=3)
    assert model.step == NUM_UPDATES and images.shape == (2, 3, 32, 32) and bool(images.isfinite().all())

    again = Train(s3, tmp_path, "broken", "--address", "127.0.0.1:1")  # no Ray there: a finished run needs none
    assert again.end() == 0, again.log.read_text()
    assert f"complete: run broken at {NUM_UPDATES} updates" in again.log.read_text()

    step, drawn = 2 * CHECKPOINT_EVERY + 2, tmp_path / "update.png"
    replay = [CDRL, "replay", "straight", "--root", str(tmp_path / "runs"), "--step", str(step), "--picture", drawn]
    told = subprocess.run(replay, check=True, capture_output=True, text=True).stdout
    assert f"2 to make from the checkpoint at {step - 2}" in told and "equal the logged ones exactly" in told
    assert Image.open(drawn).height > 500
