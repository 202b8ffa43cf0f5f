"""`python -m pipeline` and mistakes: one line that says what to do, exit code 2, nothing left behind."""

import json
import sys
from pathlib import Path

import pytest

from pipeline import __main__ as command
from pipeline.compile import COMMITTED
from tests.web import answering

DIGEST = "registry.example/team/cdrl@sha256:" + "0a" * 32


class Said:
    """Runs `python -m pipeline ARGUMENTS`; exit code, standard output and error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command.main()
        said = self._capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err


class Refused(Said):
    """The one line of a refusal."""

    def __call__(self, *arguments: object) -> str:  # type: ignore[override]
        code, _, line = super().__call__(*arguments)
        assert code == 2 and line.startswith("error: ") and line.count("\n") == 1, (code, line)
        return line


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("URL", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"CDRL_KUBEFLOW_{name}", raising=False)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(monkeypatch, capsys)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(monkeypatch, capsys)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.image.IMAGE", DIGEST)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("num_trials=-1", "parameter num_trials: expected a whole number 0 ... 10000, got '-1'"),
        ("num_trials=2.5", "parameter num_trials: expected a whole number 0 ... 10000, got '2.5'"),
        ("num_updates=many", "parameter num_updates: expected a whole number 1 ... 1000000000, got 'many'"),
        ("num_updates=nan", "got 'nan'"),
        ("max_sets=101", "parameter max_sets: expected a whole number 0 ... 100"),
        ("model=Digits!", "parameter model: expected the `name` of its configuration, got 'Digits!'"),
        ("data=", "parameter data: expected a path or s3://bucket/key, got ''"),
        ("data=--overwrite", "parameter data: expected a path"),
        ("tracking=http://me:hunter2@mlflow", "parameter tracking: it holds a password"),
        ("num_trails=3", "pipeline cdrl has no parameter 'num_trails' (did you mean num_trials?); it has address,"),
        ("num_trials", "--set 'num_trials': expected PARAMETER=VALUE"),
        ("run=monday", "--set run=...: there is --run"),
        ("root=other", "--set root=...: there is --root"),
    ],
)
def test_a_parameter_that_does_not_fit(refused: Refused, setting: str, message: str) -> None:
    line = refused("run", "--set", setting)
    assert message in line and "hunter2" not in line
    assert list(Path().iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", "a/b"), "parameter run: expected up to 58 letters, digits, - and _, got 'a/b'"),
        (("--run", "x" * 59), "parameter run: expected up to 58"),
        (("--address", "ftp://x"), "parameter address: expected local, http://HOST:8265 or kuberay, got 'ftp://x'"),
        (("--config", "digitz"), "digitz"),
        (("--config", "cifar10"), "config cifar10: where do its images come from? Say --set source="),
        (("--root", ""), "parameter root: expected a folder"),
    ],
)
def test_an_option_that_does_not_fit(refused: Refused, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused("run", *arguments)
    assert list(Path().iterdir()) == []


def test_a_folder_of_runs_that_is_a_file(refused: Refused) -> None:
    Path("file").write_text("")
    assert "cannot be written" in refused("run", "--root", "file")


@pytest.mark.parametrize("out", ["absent/pipeline.yaml", "pipeline.txt"])
def test_a_wrong_place_for_the_yaml(refused: Refused, out: str) -> None:
    assert f"--out {out}: expected a .yaml file in a folder that exists" in refused("compile", "--out", out)
    assert list(Path().iterdir()) == []


def test_a_place_that_cannot_be_written(refused: Refused) -> None:
    Path("pipeline.yaml").mkdir()
    assert "pipeline.yaml: cannot be written: Is a directory" in refused("compile")


def test_the_command_compiles(said: Said, pinned: None) -> None:
    code, out, _ = said("compile", "train", "--out", "mine.yaml")
    assert (code, out) == (0, f"mine.yaml: image {DIGEST}\n")
    assert Path("mine.yaml").read_text() == (COMMITTED / "train.yaml").read_text(), "components name theirs at import"


def test_latest_is_not_compiled(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.image.IMAGE", "cdrl:latest")
    assert "CDRL_IMAGE=cdrl:latest: expected NAME@sha256:... or NAME:TAG, not latest" in refused("compile")


def test_a_submission_asks_for_a_digest(refused: Refused) -> None:
    assert "expected NAME@sha256:...; a digest names the same image for ever" in refused("submit")


@pytest.mark.parametrize("url", ["", "ml-pipeline:8888", "ftp://x", "http://me:hunter2@x"])
def test_an_endpoint_that_is_none(refused: Refused, pinned: None, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CDRL_KUBEFLOW_URL", url)
    line = refused("submit")
    assert "CDRL_KUBEFLOW_URL: expected http(s)://HOST[:PORT][/PATH]" in line and "hunter2" not in line


def test_an_endpoint_where_nobody_listens(refused: Refused, pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDRL_KUBEFLOW_URL", "http://127.0.0.1:9")
    assert "Kubeflow at http://127.0.0.1:9 cannot be reached: " in refused("submit")


@pytest.mark.parametrize("code", [401, 403])
def test_a_wrong_token_is_told_apart_from_none(
    refused: Refused, pinned: None, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with answering(code) as url:
        monkeypatch.setenv("CDRL_KUBEFLOW_URL", url)
        assert f"asks for a token: set CDRL_KUBEFLOW_TOKEN or CDRL_KUBEFLOW_TOKEN_FILE ({code})" in refused("submit")
        monkeypatch.setenv("CDRL_KUBEFLOW_TOKEN", "s3cr3t")
        line = refused("submit")
        assert f"refused the token ({code})" in line and "s3cr3t" not in line


def test_a_login_page_is_not_kubeflow(refused: Refused, pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, b"<html>Log in</html>", "text/html") as url:
        monkeypatch.setenv("CDRL_KUBEFLOW_URL", url)
        assert "answered with a web page, not as Kubeflow Pipelines: a login in front of it?" in refused("submit")


def test_another_server_is_not_kubeflow(refused: Refused, pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(404) as url:
        monkeypatch.setenv("CDRL_KUBEFLOW_URL", url)
        assert "answered 404; expected the address of Kubeflow Pipelines" in refused("submit")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_token_file_that_cannot_be_read(
    refused: Refused, pinned: None, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is not None:
        Path("token").write_bytes(content)
    monkeypatch.setenv("CDRL_KUBEFLOW_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CDRL_KUBEFLOW_TOKEN_FILE", "token")
    assert "CDRL_KUBEFLOW_TOKEN_FILE: token cannot be read" in refused("submit")


def test_a_root_off_the_shared_volume(refused: Refused, pinned: None) -> None:
    assert "parameter root: expected a folder below /runs" in refused("submit", "--set", "root=/tmp/x")


def test_a_pipeline_is_submitted(said: Said, pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"run_id": "r-1", "experiment_id": "e-1", "experiments": [{"experiment_id": "e-1"}], "multi_user": False}
    Path("token").write_text("s3cr3t\n")
    with answering(200, json.dumps(answer).encode(), "application/json") as url:
        monkeypatch.setenv("CDRL_KUBEFLOW_URL", url + "/")
        monkeypatch.setenv("CDRL_KUBEFLOW_TOKEN_FILE", "token")
        code, out, err = said("submit", "train", "--run", "monday")
    assert (code, err) == (0, "")
    assert out == f"submitted: monday, image {DIGEST}: {url}/#/runs/details/r-1\n"


def test_no_difference_exits_with_0(said: Said) -> None:
    code, out, _ = said("diff")
    assert code == 0 and out.count(": the same\n") == 4


def test_a_difference_is_named_and_exits_with_1(said: Said) -> None:
    text = (COMMITTED / "train.yaml").read_text()
    Path("old.yaml").write_text(text.replace("defaultValue: 2000.0", "defaultValue: 100.0"))
    code, out, _ = said("diff", "old.yaml", "--which", "train")
    assert code == 1
    assert "-pipeline.root.inputDefinitions.parameters.num_updates.defaultValue: 100.0\n" in out
    assert "+pipeline.root.inputDefinitions.parameters.num_updates.defaultValue: 2000.0\n" in out


def test_what_runs_on_kubeflow_is_compared(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.compile import documents

    pipeline, platform = documents("train")
    pipeline["components"]["comp-train"]["executorLabel"] = "exec-other"
    answer = {"run_id": "r-1", "pipeline_spec": {"pipeline_spec": pipeline, "platform_spec": platform}}
    with answering(200, json.dumps(answer).encode(), "application/json") as url:
        monkeypatch.setenv("CDRL_KUBEFLOW_URL", url)
        code, out, _ = said("diff", "--on", "r-1", "--which", "train")
    assert code == 1 and "-pipeline.components.comp-train.executorLabel: 'exec-other'\n" in out


@pytest.mark.parametrize("content", [None, "", "- 1", "a: [", "a: 1"])
def test_a_file_that_is_no_pipeline(refused: Refused, content: str | None) -> None:
    if content is not None:
        Path("a.yaml").write_text(content)
    assert "a.yaml: " in refused("diff", "a.yaml")
