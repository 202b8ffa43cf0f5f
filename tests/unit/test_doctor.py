"""`cdrl doctor`: what it says of an environment, and its exit code."""

import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cdrl.cli import main
from cdrl.cluster import doctor
from cdrl.cluster.doctor import Finding, examine
from cdrl.config import load
from tests.web import answering


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "CDRL_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["cdrl", "doctor", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return caught.value.code, out + err


def found(*settings: str, address: str | None = None) -> dict[str, Finding]:
    config = load("digits", settings) if settings else None
    return {finding.what: finding for finding in examine(config, address)}


def test_nothing_configured_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = run(monkeypatch, capsys)
    assert code == 0, said
    lines = dict(line[5:].split(": ", 1) for line in said.splitlines())
    assert {line[:5] for line in said.splitlines()} <= {"OK   ", "warn "}
    assert lines["S3"] == lines["Kubernetes"] == "not asked for" and lines["torch"].startswith("torch ")
    assert not list(tmp_path.iterdir())


def test_what_was_asked_for_and_does_not_answer_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    asked = ("--set", "tracking.uri=http://127.0.0.1:9", "--set", "run.storage=s3://bucket/runs")
    code, said = run(monkeypatch, capsys, "digits", *asked, "--address", "kuberay")
    assert code == 1 and "hunter2" not in said
    assert "fail MLflow: MLflow at http://127.0.0.1:9: no answer -> is the server running" in said
    assert "fail S3, run.storage: cannot write s3://bucket/runs/.cdrl-doctor-" in said
    assert "fail Kubernetes: --address kuberay: no cluster is configured" in said and "-> set KUBECONFIG" in said


def test_another_ray_there_than_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, b'{"version": "4", "ray_version": "2.51.0"}', "application/json") as address:
        finding = found(address=address)["Ray"]
    here = metadata.version("ray")
    assert (finding.state, finding.seen) == ("fail", f"Ray 2.51.0 there, {here} here")
    with answering(200, f'{{"version": "4", "ray_version": "{here}"}}'.encode()) as address:
        assert found(address=address)["Ray"].state == "OK"


class Usage(NamedTuple):
    total: float
    used: float
    free: float


@pytest.mark.parametrize(("free_gb", "state"), [(0.5, "fail"), (5, "warn"), (50, "OK")])
def test_a_disk_that_is_nearly_full(monkeypatch: pytest.MonkeyPatch, free_gb: float, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e11, 0, free_gb * 1e9))
    finding = found()["disk of run.root"]
    assert finding.state == state and finding.seen.startswith(f"{free_gb:.0f} GB free at ")


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64e6, 0, 64e6))  # Docker's default
    assert found()["/dev/shm"].state == "warn" and "--shm-size" in found()["/dev/shm"].advice


def test_versions_other_than_the_pins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert found()["versions"].state in ("OK", "warn")
    pins = tmp_path / "constraints.txt"
    pins.write_text("# pins\nnumpy==1.0.0\n")
    monkeypatch.setattr(doctor, "PINS", pins)
    finding = found()["versions"]
    assert finding.state == "warn" and finding.seen == f"numpy {metadata.version('numpy')} (pinned: 1.0.0)"
    wanted = ["numpy>=99", "no-such-package-of-cdrl", "ray>=1", "other; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    missing = found()
    assert missing["numpy"].state == "fail" and "expected >=99" in missing["numpy"].advice
    assert missing["no-such-package-of-cdrl"].seen == "not installed" and "other" not in missing


def test_settings_need_a_configuration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(monkeypatch, capsys, "--set", "run.root=x")
    assert code == 2 and "name one, such as `cdrl doctor digits" in said
