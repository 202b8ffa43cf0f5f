"""The pipeline: the committed YAML is the code's, Kubeflow's own schema reads it, and its steps are the demo's."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.compile import COMPILED, compile_pipeline
from pipeline.define import ROOT

STEPS = ["prepare", "train", "evaluate", "register", "promote", "sample"]


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(COMPILED.read_text()))


def pod_settings(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): settings for name, settings in executors.items()}


def test_the_committed_file_is_what_the_code_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_pipeline(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == COMPILED.read_text(), (
        "run: python -m pipeline compile --out pipeline/cdrl-pipeline.yaml"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["again.yaml"], "nothing is left beside it"


def test_kubeflow_reads_it(documents: list[dict[str, Any]]) -> None:
    pipeline, platform = documents
    spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    assert spec.pipeline_info.name == "cdrl"
    for settings in pod_settings(documents).values():
        json_format.ParseDict(settings, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_an_unknown_field_would_not_be_read(documents: list[dict[str, Any]]) -> None:
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict(documents[0] | {"stepps": {}}, pipeline_spec_pb2.PipelineSpec())


def test_its_steps_are_the_demos_one_after_the_other(documents: list[dict[str, Any]]) -> None:
    tasks = documents[0]["root"]["dag"]["tasks"]
    follows = {tuple(task.get("dependentTasks", ())): name for name, task in tasks.items()}
    order = [follows[()]]
    while (order[-1],) in follows:
        order.append(follows[(order[-1],)])
    assert order == STEPS
    assert len(tasks) == len(STEPS)


def test_no_step_is_answered_from_kubeflows_cache(documents: list[dict[str, Any]]) -> None:
    for task in documents[0]["root"]["dag"]["tasks"].values():
        assert not task["cachingOptions"].get("enableCache", False)


def test_every_pod_shares_the_volume_and_is_an_ordinary_user(documents: list[dict[str, Any]]) -> None:
    pods = pod_settings(documents)
    assert set(pods) == set(STEPS)
    for settings in pods.values():
        assert [mount["mountPath"] for mount in settings["pvcMount"]] == [ROOT]
        assert settings["securityContext"]["runAsNonRoot"] is True
        assert {secret["secretName"] for secret in settings["secretAsEnv"]} == {"cdrl-storage", "cdrl-tracking"}


def test_every_step_has_limits(documents: list[dict[str, Any]]) -> None:
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        assert {"resourceCpuLimit", "resourceMemoryLimit"} <= set(executor["container"]["resources"])


def test_only_the_name_of_the_run_must_be_said(documents: list[dict[str, Any]]) -> None:
    inputs = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert [name for name, each in inputs.items() if "defaultValue" not in each] == ["run"]


def test_the_command_compiles(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compile", "--out", str(tmp_path / "pipeline.yaml")])
    assert done.exit_code == 0
    assert (tmp_path / "pipeline.yaml").read_text() == COMPILED.read_text()


@pytest.mark.parametrize("out", ["absent/pipeline.yaml", "pipeline.txt"])
def test_a_wrong_place_is_refused(tmp_path: Path, out: str) -> None:
    assert CliRunner().invoke(app, ["compile", "--out", str(tmp_path / out)]).exit_code == 2
    assert list(tmp_path.iterdir()) == []
