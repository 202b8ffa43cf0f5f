"""Journal, registry and served model over HTTP: a real MLflow server and a real scoring server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cdrl import config as configuration
from cdrl.model import Model
from cdrl.pictures import to_uint8
from cdrl.registry.load import verified
from cdrl.registry.promote import promote
from cdrl.registry.versions import Registry
from cdrl.tracking.run import TrackedRun
from cdrl.tracking.server import default_uri
from tests.registry_parts import checkpoint, make_run, score
from tests.training_runs import CDRL

pytestmark = pytest.mark.integration


@contextmanager
def serving(*program: str, port: int, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on the loopback, in a process group of its own, that answers when this yields its address."""
    command = [*program, "--host", "127.0.0.1", "--port", str(port)]
    variables = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts uvicorn by its name
    }
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=variables, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while not _answers(f"{address}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield address, process
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):  # the second for children that outlive their parent
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)


@pytest.fixture
def tracking_server(run_root: Path, tmp_path: Path) -> Iterator[str]:
    """An MLflow server on the database of the folder of runs, as `mlflow server` opens it for a user."""
    store = ["--backend-store-uri", default_uri(run_root), "--artifacts-destination", str(tmp_path / "kept")]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--workers", "1"]
    with serving(*command, port=_free_port(), log=tmp_path / "server.log") as (address, _):
        yield address


def test_a_run_becomes_a_served_champion(
    run_root: Path, tmp_path: Path, tracking_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a run that was tracked in the SQLite file shows its pictures in the server's UI
    local = TrackedRun.start(configuration.load("toy", [f"run.root={run_root}"]), "local", manifest_digest="0" * 64)
    local.log_image("samples", Image.new("L", (8, 8), 200), step=3)
    picture = next(artifact.path for artifact in _client(local.uri).list_artifacts(local.mlflow_run_id, "images"))
    query = urllib.parse.urlencode({"run_uuid": local.mlflow_run_id, "path": picture})
    with urllib.request.urlopen(f"{tracking_server}/get-artifact?{query}") as response:
        assert len(response.read()) > 0

    # a run that is tracked over HTTP keeps its files at the server
    record = make_run(run_root, uri=tracking_server, experiment="served")
    journal = TrackedRun.attach(record)
    journal.log_metrics({"frechet": 0.5}, 10)
    journal.log_image("samples", Image.new("L", (8, 8), 100), step=10)
    journal.close()
    run = _client(tracking_server).get_run(record.mlflow_run_id)
    assert run.data.metrics == {"frechet": 0.5} and run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert list((tmp_path / "kept").rglob("samples*.png"))

    score(record, 0.5)
    registry = Registry(tracking_server)
    version = registry.register(record.run_id, root=str(run_root))
    assert registry.register(record.run_id, root=str(run_root)) == version
    assert Path(registry.history("tiny").uri).parent == run_root / "registry"
    promote(registry, "tiny", "latest")
    with verified("tiny@champion", tracking=tracking_server) as (_, proven):
        assert proven.run_id == record.run_id
    model = Model.load(checkpoint(record))
    assert registry.load("tiny@champion").digest == model.digest

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr(sys, "path", list(sys.path))
    expected = to_uint8(model.sample(3, labels=2, seed=5)).numpy()
    served = mlflow.pyfunc.load_model("models:/tiny@champion")
    drawn = served.predict(pd.DataFrame({"n": [3], "label": ["b"]}), params={"seed": 5})
    assert np.array_equal(drawn, expected)

    command = [CDRL, "serve", "models:/tiny@champion", "--tracking", tracking_server]
    with serving(*command, port=_free_port(), log=tmp_path / "scoring.log") as (address, process):
        request = {"dataframe_records": [{"n": 3, "label": "b"}], "params": {"seed": 5}}
        status, answer = _post(f"{address}/invocations", request)
        assert status == 200 and np.array_equal(np.array(answer["predictions"], dtype=np.uint8), expected)
        status, answer = _post(f"{address}/invocations", {"dataframe_records": [{"n": 3, "label": "nine"}]})
        assert status == 400 and "label 'nine'" in answer["message"]
        taken = subprocess.run([*command, "--port", address.rpartition(":")[2]], capture_output=True, text=True)
        assert taken.returncode == 2 and "cannot listen there: Address already in use" in taken.stderr
        process.terminate()
        assert process.wait(30) == 0 and not _answers(f"{address}/health"), "the server goes with the command"


PROMOTER = """
import sys
from cdrl.registry.history import Overtaken
from cdrl.registry.promote import promote
from cdrl.registry.versions import Registry

registry = Registry(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    champion, candidate = line.split()
    try:
        promote(registry, "tiny", candidate, expected=int(champion))
    except Overtaken:
        print("lost", flush=True)
    else:
        print("won", flush=True)
"""


def test_two_processes_race_and_one_wins_twenty_times(run_root: Path) -> None:
    registry = Registry(default_uri(run_root))
    for seed in range(3):
        record = make_run(run_root, seed=seed)
        score(record, 0.5)
        registry.register(record.run_id, root=str(run_root))
    promote(registry, "tiny", "3")
    command = [sys.executable, "-c", PROMOTER, registry.uri]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    promoters = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        assert [promoter.stdout.readline() for promoter in promoters] == ["ready\n"] * 2
        champion = 3
        for _ in range(20):
            candidates = [number for number in (1, 2, 3) if number != champion]
            for promoter, candidate in zip(promoters, candidates):
                promoter.stdin.write(f"{champion} {candidate}\n")
            told = [promoter.stdout.readline() for promoter in promoters]
            assert sorted(told) == ["lost\n", "won\n"]
            champion = candidates[told.index("won\n")]
            assert registry.find("tiny@champion").number == champion
    finally:
        for promoter in promoters:
            promoter.communicate()
    chain = registry.history("tiny").read()
    assert len(chain.entries) == 22
    assert all(entry.before == earlier.champion for earlier, entry in zip(chain.entries, chain.entries[1:]))
    assert chain.head.champion == champion


def test_a_version_brings_its_own_code(run_root: Path) -> None:
    record = make_run(run_root)
    version = Registry(default_uri(run_root)).register(record.run_id, root=str(run_root))
    script = (
        "import sys, mlflow, pandas; served = mlflow.pyfunc.load_model(sys.argv[1]);"
        "print(served.predict(pandas.DataFrame({'n': [1]})).shape);"
        "import cdrl; print(cdrl.__file__);"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'ray', 'boto3', 'typer', 'kfp', 'sklearn'}))"
    )
    environment = os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    arguments = [sys.executable, "-c", script, version.files]
    run = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=run_root)
    assert run.returncode == 0, run.stderr
    shape, code, unwanted = run.stdout.split("\n")[:3]
    assert shape == "(1, 1, 8, 8)" and code.startswith(version.files) and unwanted == ""


def _client(uri: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=uri)


def _post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
