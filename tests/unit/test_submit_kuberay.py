"""`cdrl submit` and `cdrl jobs` against a Kubernetes API over HTTP."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdrl.cli import main
from tests.kubernetes_api import Api, serving
from tests.web import answering

SUBMIT = ("submit", "--address", "kuberay", "--name", "job")
TRAIN = ("train", "digits", "--set", "run.storage=s3://b/runs", "--set", "data.uri=s3://b/data")


class Cli:
    """Runs `cdrl ARGUMENTS` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Standard output; of a refusal its line."""
        self._monkeypatch.setattr(sys, "argv", ["cdrl", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = self._capsys.readouterr()
        assert caught.value.code == code, err + out
        return err if code else out


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path / "kubeconfig") as api:
        yield api


def status(api: Api, name: str, deployment: str, ray: str = "", **more: Any) -> None:
    """What the operator writes."""
    api.jobs[name]["status"] = {"jobDeploymentStatus": deployment, "jobStatus": ray, **more}


def test_a_job_from_submission_to_its_second_attempt(cli: Cli, api: Api) -> None:
    said = cli(*SUBMIT, "--", *TRAIN)
    assert said.startswith("submitted: job job\n")
    line = f"cdrl {' '.join(TRAIN)} --address auto"
    assert api.jobs["job"]["spec"]["entrypoint"] == line.replace("cdrl ", "cdrl jobs entry -- ", 1)
    there = ("--address", "kuberay")
    assert "PENDING" in cli("jobs", "status", "job", *there)
    status(api, "job", "Running", "RUNNING", startTime="2026-11-22T18:01:00Z")
    shown = cli("jobs", "status", "job", *there)
    assert "RUNNING" in shown and "2026-11-22 18:01:00 UTC" in shown and line in " ".join(shown.split())

    api.logs["job-x"], labels = "update 10\n", {"job-name": "job"}
    pod = {"metadata": {"name": "job-x", "creationTimestamp": "1", "labels": labels}, "status": {"phase": "Running"}}
    assert cli("jobs", "logs", "job", *there) == ""
    api.pods.append(pod)
    assert cli("jobs", "logs", "job", *there) == "update 10\n"

    cli("jobs", "stop", "job", *there)
    assert api.jobs["job"]["spec"]["suspend"] is True
    status(api, "job", "Suspended")
    assert "SUSPENDED" in cli("jobs", "list", *there)
    assert cli("jobs", "resume", "job", *there) == "resumed: job job\n"
    assert api.jobs["job"]["spec"]["suspend"] is False

    status(api, "job", "Failed", "FAILED", reason="AppFailed", message="the head was lost\nmore")
    assert "AppFailed: the head was lost" in cli("jobs", "status", "job", *there)
    failed = cli("jobs", "logs", "job", "--follow", *there, code=1)
    assert "error: job job ended as FAILED: AppFailed: the head was lost; `cdrl jobs resume job`" in failed
    assert cli("jobs", "resume", "job", *there) == "resumed: job job-2\n"
    assert api.jobs["job-2"]["spec"] == api.jobs["job"]["spec"]
    assert api.jobs["job-2"]["metadata"]["labels"]["cdrl/job"] == "job"
    shown = cli("jobs", "list", *there)
    assert shown.count("job ") >= 2 and "FAILED" in shown and "PENDING" in shown

    status(api, "job-2", "Complete", "SUCCEEDED")
    assert cli("jobs", "logs", "job", "--follow", *there) == ""
    assert "it has ended already: SUCCEEDED" in cli("jobs", "stop", "job", *there, code=2)


def test_a_mistake_of_the_user_ends_with_his_exit_code(cli: Cli, api: Api) -> None:
    cli(*SUBMIT, "--", *TRAIN)
    status(api, "job", "Complete", "STOPPED")
    assert "ended with exit code 2" in cli("jobs", "logs", "job", "--follow", "--address", "kuberay", code=2)


def test_a_job_is_refused_while_it_runs_and_under_a_name_that_is_taken(cli: Cli, api: Api) -> None:
    cli(*SUBMIT, "--", *TRAIN)
    assert "there is such a job, it is PENDING" in cli(*SUBMIT, "--", *TRAIN, code=2)
    assert "it is PENDING; stop it before" in cli("jobs", "resume", "job", "--address", "kuberay", code=2)
    nobody = cli("jobs", "status", "nobody", "--address", "kuberay", code=2)
    assert "error: job 'nobody': no such job in namespace 'default'; jobs: job" in nobody


def test_more_gpus_than_the_quota(cli: Cli, api: Api, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("workers: [{gpus: 8, replicas: 2}]")
    api.quotas.append({"metadata": {"name": "team"}, "spec": {"hard": {"requests.nvidia.com/gpu": "8"}}})
    gpu = ("--set", "cluster.use_gpu=true")
    line = cli(*SUBMIT, "--config", "job.yaml", "--", *TRAIN, *gpu, code=2)
    assert "the workers ask for 16 nvidia.com/gpu, quota 'team' of namespace 'default' allows 8" in line
    api.forbidden = ("resourcequotas",)  # then the API server holds it
    assert "submitted" in cli(*SUBMIT, "--config", "job.yaml", "--", *TRAIN, *gpu)


def test_kueue_decides_over_its_jobs(cli: Cli, api: Api, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("kueue_queue: team")
    cli(*SUBMIT, "--config", "job.yaml", "--", *TRAIN)
    assert "Kueue decides when it runs" in cli("jobs", "stop", "job", "--address", "kuberay", code=2)


def test_a_cluster_without_kuberay(cli: Cli, api: Api) -> None:
    api.has_kuberay = False
    assert "Kubernetes knows no RayJob: install KubeRay" in cli(*SUBMIT, "--", *TRAIN, code=2)


def test_a_role_that_may_not(cli: Cli, api: Api) -> None:
    api.forbidden = ("rayjobs",)
    assert "refuses in namespace 'default': rayjobs is forbidden: no role" in cli(*SUBMIT, "--", *TRAIN, code=2)


def test_a_wrong_token(cli: Cli, tmp_path: Path) -> None:
    with serving(tmp_path / "kubeconfig", token="wrong"):
        line = cli(*SUBMIT, "--", *TRAIN, code=2)
    assert "the token or certificate of KUBECONFIG is wrong" in line and "wrong\n" not in line


def test_a_cluster_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    line = cli(*SUBMIT, "--", *TRAIN, code=2)
    assert "no cluster is configured" in line and line.count("\n") == 1
    with serving(tmp_path / "kubeconfig"):
        pass
    line = cli(*SUBMIT, "--", *TRAIN, code=1)
    assert "the Kubernetes API of KUBECONFIG does not answer" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(500, 1, "the Kubernetes API answers with HTTP status 500"), (200, 2, "not that of a Kubernetes API")],
)
def test_another_program_listens_there(cli: Cli, tmp_path: Path, number: int, code: int, message: str) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    with serving(kubeconfig):
        pass
    with answering(number, b"<html>hello</html>", "text/html") as address:
        kubeconfig.write_text(re.sub(r"http://\S+", address, kubeconfig.read_text()))
        assert message in cli(*SUBMIT, "--", *TRAIN, code=code)


def test_a_missing_package_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert "needs the package kubernetes: pip install 'cdrl[cluster]'" in cli(*SUBMIT, "--", *TRAIN, code=2)


def test_a_dry_run_asks_nobody(cli: Cli, api: Api) -> None:
    api.forbidden = ("rayjobs", "resourcequotas")
    assert cli(*SUBMIT, "--dry-run", "--", *TRAIN).startswith("apiVersion: ray.io/v1\nkind: RayJob\n")
