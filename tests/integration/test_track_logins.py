"""A real MLflow server that asks for a login and keeps files in an object store: without one, nothing is lost."""

import json
import secrets
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from mlflow import MlflowClient
from PIL import Image

import cdrl
from cdrl.cli import main
from cdrl.errors import RegistryError
from cdrl.registry.versions import Registry
from cdrl.runs import RunRecord
from cdrl.tracking.journal import Journal
from cdrl.tracking.run import TrackedRun
from tests.registry_parts import make_run, score
from tests.tracking_parts import MlflowServer, at_server, in_journal, record_of
from tests.training_parts import tiny_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
ADMIN = ("admin", secrets.token_hex(16))
READER = ("reader", secrets.token_hex(16))
LOGINS = {
    "wrong": ((ADMIN[0], "x" * 32), "HTTP status 401; MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD is wrong"),
    "missing": (None, "HTTP status 401; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    "reader": (READER, "HTTP status 403; the user of MLFLOW_TRACKING_USERNAME, 'reader', may not do this"),
}


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, _empty_tracking: Path, _s3_endpoint: str
) -> Iterator[tuple[MlflowServer, str]]:
    """(a server as infra/ starts it but for SQLite, the bucket of its files)"""
    folder = tmp_path_factory.mktemp("guarded")
    auth = (Path(__file__).parents[2] / "infra/kubernetes/base/basic-auth.ini").read_text()
    database = "postgresql+psycopg2://mlflow@postgres:5432/mlflow"
    assert database in auth
    (folder / "basic-auth.ini").write_text(auth.replace(database, f"sqlite:///{folder}/auth.db"))
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    variables = {
        **keys,
        "AWS_ENDPOINT_URL": _s3_endpoint,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic-auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": _s3_endpoint}.items():
            patch.setenv(name, value)
        boto3.session.Session().client("s3").create_bucket(Bucket="guarded")
        options = ["--app-name=basic-auth", "--default-artifact-root=s3://guarded/mlflow", "--no-serve-artifacts"]
        server = MlflowServer(folder, _empty_tracking, options, variables)
        server.start()
        user = json.dumps(dict(zip(("username", "password"), READER))).encode()
        login = f"Basic {b64encode(':'.join(ADMIN).encode()).decode()}"
        headers = {"Content-Type": "application/json", "Authorization": login}
        asked = urllib.request.Request(f"{server.uri}/api/2.0/mlflow/users/create", user, headers)
        urllib.request.urlopen(asked).close()
        yield server, "guarded"
        server.kill()


@pytest.fixture(autouse=True)
def _logged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NAME, PASSWORD):
        monkeypatch.delenv(name, raising=False)


def log_in(patch: pytest.MonkeyPatch, login: tuple[str, str] | None) -> None:
    for name, value in zip((NAME, PASSWORD), login or ("", "")):
        patch.setenv(name, value)


def stored(bucket: str) -> dict[str, int]:
    found = boto3.session.Session().client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return {each["Key"]: each["Size"] for each in found}


def cli(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `cdrl ARGUMENTS`."""
    patch.setattr("sys.argv", ["cdrl", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_a_run_with_a_login_keeps_its_files_in_the_store(
    guarded: tuple[MlflowServer, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bucket = guarded
    log_in(monkeypatch, ADMIN)
    record = make_run(tmp_path, uri=server.uri, experiment="login")
    run = TrackedRun.attach(record)
    for step in range(1, 101):
        run.log_metrics({"loss": 1 / step, "odd": float("nan")}, step)
    run.log_image("samples", Image.new("L", (8, 8), 7), 100)
    run.close()
    client = MlflowClient(server.uri)
    rows = at_server(client, record.mlflow_run_id)
    assert rows == in_journal(record.directory) and len(rows) == 200
    assert client.get_run(record.mlflow_run_id).info.artifact_uri.startswith(f"s3://{bucket}/mlflow/")

    score(record, 0.5)
    registry = Registry(server.uri)
    version = registry.register(record.run_id, root=str(tmp_path))
    assert version.files.startswith(f"s3://{bucket}/mlflow/")
    keys = stored(bucket)
    assert any(key.endswith(".safetensors") for key in keys) and any("/images/samples" in key for key in keys)
    assert not list(server.folder.rglob("*.safetensors")), "weights are in the store, and the server knows where"
    assert cdrl.load(version.files).digest == version.model_digest
    for file in record.directory.rglob("*"):
        assert not file.is_file() or ADMIN[1].encode() not in file.read_bytes()


@pytest.mark.parametrize("kind", LOGINS)
def test_without_the_right_login_no_step_is_lost(
    guarded: tuple[MlflowServer, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    server, _ = guarded
    login, says = LOGINS[kind]
    log_in(monkeypatch, ADMIN)
    MlflowClient(server.uri).create_experiment(kind)  # whoever makes one may do everything in it
    log_in(monkeypatch, login)
    config = tiny_config(f"run.root={tmp_path}", f"tracking.uri={server.uri}", f"tracking.experiment={kind}")
    told = list[str]()
    run = TrackedRun.start(config, "tiny", manifest_digest="ab" * 32)
    run.follow(told.append)
    for step in range(1, 101):
        run.log_metrics({"loss": 1 / step}, step)
    run.close()
    assert [line for line in told if says in line] == told[:1] and len(told) == 2, told
    assert "cdrl track sync" in told[1]
    record = record_of(run, tmp_path, config)
    steps = [entry["step"] for _, entry in Journal(record.directory).entries() if "loss" in entry.get("values", ())]
    assert steps == list(range(1, 101))

    root = ("--root", str(tmp_path))
    code, output, _ = cli(monkeypatch, capsys, "track", "status", "tiny", *root)
    assert code == 0 and "journal: FINISHED" in output and "no run there yet" in output
    code, _, error = cli(monkeypatch, capsys, "track", "sync", "tiny", *root, "--patience", "0")
    assert code == 2 and says in error and error.count("\n") == 1
    if kind != "reader":  # who may read everything
        code, _, error = cli(monkeypatch, capsys, "registry", "list", "--tracking", server.uri)
        assert code == 2 and says in error and error.count("\n") == 1

    log_in(monkeypatch, ADMIN)
    code, output, _ = cli(monkeypatch, capsys, "track", "sync", "tiny", *root)
    assert code == 0 and "FINISHED" in output
    record = RunRecord.read("tiny", str(tmp_path))
    rows = at_server(MlflowClient(server.uri), record.mlflow_run_id)
    assert rows == in_journal(record.directory) and sum(name == "loss" for name, *_ in rows) == 100


def test_who_may_read_only_is_told_so_by_the_registry(
    guarded: tuple[MlflowServer, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = guarded
    log_in(monkeypatch, ADMIN)
    record = make_run(tmp_path, uri=server.uri, experiment="read-only")
    score(record, 0.5)
    log_in(monkeypatch, READER)
    with pytest.raises(RegistryError, match="HTTP status 403; the user of MLFLOW_TRACKING_USERNAME, 'reader'"):
        Registry(server.uri).register(record.run_id, root=str(tmp_path))
