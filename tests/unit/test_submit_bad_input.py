"""Addresses, names and Ray clusters that do not do what is asked: one line each, from real connections."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cdrl.cli import main
from cdrl.cluster.jobs import Job, default_name, newest, settle
from cdrl.cluster.ray_jobs import token
from cdrl.cluster.spec import check_name
from cdrl.errors import ConfigError, JobFailed, JobRefused
from tests.web import answering

COMMAND = ("--", "config", "list")
VERSION = b'{"version": "1", "ray_version": "2.60.0", "ray_commit": "x"}'
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `cdrl ARGUMENTS`, expects a refusal and gives back its line."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "CDRL_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def refuse(*arguments: str, code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["cdrl", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        line = capsys.readouterr().err
        assert caught.value.code == code and line.startswith("error: ") and line.count("\n") == 1, line
        assert not list(tmp_path.iterdir()), "nothing is left behind"
        return line

    return refuse


@pytest.mark.parametrize("address", ["", "here", "ray://127.0.0.1:10001", "http://", "http://127.0.0.1:x", "k8s"])
def test_an_address_that_is_none(refused: Refused, address: str) -> None:
    assert "expected local, http://HOST:8265 or kuberay" in refused("submit", "--address", address, *COMMAND)


def test_a_password_in_an_address_is_refused_and_not_shown(refused: Refused) -> None:
    line = refused("jobs", "list", "--address", "http://me:hunter2@127.0.0.1:8265")
    assert "'***@127.0.0.1:8265'" in line and "set RAY_AUTH_TOKEN" in line and "hunter2" not in line


def test_here_are_no_jobs(refused: Refused) -> None:
    assert "a command that runs here is no job" in refused("jobs", "list")


def test_nobody_listens(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, VERSION, "application/json") as elsewhere:
        monkeypatch.setenv("RAY_ADDRESS", elsewhere)  # Ray's own client would go there instead
        line = refused("submit", "--address", "http://127.0.0.1:9", *COMMAND, code=1)
    assert "no Ray dashboard answers at http://127.0.0.1:9: no connection; is the cluster running" in line


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (401, b"Unauthorized: Missing authentication token", 2, "refuses: it wants a token; set RAY_AUTH_TOKEN"),
        (500, b"oops", 1, "500 Server Error"),
        (404, b"", 2, "404"),
        (200, b"<html>hello</html>", 2, "another program than Ray listens there"),
        (200, b"[]", 2, "list indices"),
        (200, b"{}", 2, "ray_version"),
    ],
)
def test_an_answer_that_is_not_rays(refused: Refused, status: int, body: bytes, code: int, message: str) -> None:
    with answering(status, body) as address:
        line = refused("jobs", "list", "--address", address, code=code)
    assert message in line and address in line


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_token(refused: Refused, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    with answering(status, b"Forbidden: Invalid authentication token") as address:
        line = refused("jobs", "status", "x", "--address", address)
    assert "refuses: the token is wrong; set RAY_AUTH_TOKEN" in line and "hunter2" not in line


def test_a_name_is_looked_at_before_the_cluster(refused: Refused) -> None:
    line = refused("submit", "--address", "http://127.0.0.1:9", "--name", "My_Job", *COMMAND)
    assert "--name 'My_Job': expected 1 to 47 lower-case letters" in line


def test_a_command_is_looked_at_before_the_cluster(refused: Refused) -> None:
    assert "no command 'fly'" in refused("submit", "--address", "http://127.0.0.1:9", "--", "fly")


def test_a_token_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    path = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH: cannot read .*No such file"):
        token()
    path.write_text("secret\n")
    assert token() == "secret"
    path.write_text("hunter2\nInjected: header")
    with pytest.raises(ConfigError, match="^RAY_AUTH_TOKEN: expected printable ASCII without spaces$"):
        token()


@pytest.mark.parametrize(
    ("command", "stem"), [("train digits", "train-digits"), ("data prepare X", "data-prepare"), ("7 --a", "job")]
)
def test_a_default_name_is_a_name(command: str, stem: str) -> None:
    name = default_name(command.split())
    assert check_name(name).startswith(stem + "-") and default_name(command.split()) != name


def job(identity: str, name: str, attempt: int, status: str = "FAILED", code: int | None = None) -> Job:
    return Job(identity, name, attempt, status, "cdrl config list", exit_code=code)


def test_a_name_means_its_latest_attempt_and_an_id_itself() -> None:
    jobs = [job("a", "a", 1), job("a-10", "a", 10), job("a-2", "a", 2), job("a-2", "a-2", 1)]
    assert newest(jobs, "a") == jobs[1]
    assert newest(jobs, "a-10") == jobs[1]
    assert newest(jobs[:3], "a-2") == jobs[2]
    assert newest(jobs, "b") is None


def test_how_a_job_ended_is_an_exit_code() -> None:
    settle(job("a", "a", 1, "SUCCEEDED", 0))
    with pytest.raises(JobRefused, match="exit code 2") as mine:
        settle(job("a", "a", 1, "FAILED", 2))
    assert mine.value.exit_code == 2
    for status, code in (("FAILED", 1), ("FAILED", 143), ("STOPPED", None)):
        with pytest.raises(JobFailed, match="`cdrl jobs resume a` goes on") as failed:
            settle(job("a", "a", 1, status, code))
        assert failed.value.exit_code == 1
