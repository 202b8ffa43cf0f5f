"""The pipelines: the committed YAML is the code's, Kubeflow's own schema reads it, and its pods keep the policies."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from components.image import checked_image
from pipeline import graph
from pipeline.compile import COMMITTED, documents
from pipeline.define import PIPELINES
from pipeline.parameters import PATTERNS, RANGES
from pipeline.pod import ROOT

Documents = list[dict[str, Any]]
SECRET = re.compile(r"(password|secret_?(access)?_?key|access_key_id|token|bearer)\s*[:=]\s*\S", re.IGNORECASE)
STEPS = {
    "cdrl": "prepare choose[tune|freeze] train evaluate report register gate promote close",
    "train": "prepare freeze train close",
    "sweep": "prepare tune train evaluate report close",
    "nightly": "rescore rescore-2 report report-2 gate promote",
}


@pytest.fixture(params=sorted(PIPELINES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def committed(name: str) -> Documents:
    text = (COMMITTED / f"{name}.yaml").read_text()
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def containers(documents: Documents) -> dict[str, dict[str, Any]]:
    executors = documents[0]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()}


def pods(documents: Documents) -> dict[str, dict[str, Any]]:
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): settings for name, settings in executors.items()}


def tasks(documents: Documents) -> dict[str, dict[str, Any]]:
    """Every task that is a container, by name."""
    spec = documents[0]
    graphs = [spec["root"]["dag"], *(each["dag"] for each in spec["components"].values() if "dag" in each)]
    found = [(key, task) for dag in graphs for key, task in dag["tasks"].items()]
    return {key: task for key, task in found if graph.executor_of(spec, task) is not None}


def test_the_committed_file_is_what_the_code_makes(name: str) -> None:
    assert committed(name) == documents(name), "run: python -m pipeline compile --all"


def test_nothing_else_is_committed() -> None:
    assert {path.name for path in COMMITTED.iterdir()} == {f"{name}.yaml" for name in PIPELINES}


def test_kubeflow_reads_it(name: str) -> None:
    pipeline, platform = committed(name)
    json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    for settings in pods([pipeline, platform]).values():
        json_format.ParseDict(settings, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_an_unknown_field_would_not_be_read() -> None:
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict(committed("train")[0] | {"stepps": {}}, pipeline_spec_pb2.PipelineSpec())


def test_its_steps_are_these_in_this_order(name: str) -> None:
    spec = committed(name)[0]
    flat = STEPS[name].replace("choose[tune|freeze]", "tune freeze").split()
    assert list(graph.leaves(spec)) == flat
    assert len(set(flat)) == len(tasks([spec])), "a step's name is the folder of its outputs"


def test_every_parameter_has_a_range_and_only_the_run_must_be_said(name: str) -> None:
    inputs = committed(name)[0]["root"]["inputDefinitions"]["parameters"]
    assert set(inputs) <= {*RANGES, *PATTERNS}
    assert [key for key, each in inputs.items() if "defaultValue" not in each] == (["run"] if "run" in inputs else [])


def test_promotion_waits_for_the_gate_and_asks_a_single_value() -> None:
    for which in ("cdrl", "nightly"):
        spec = committed(which)[0]
        (key, task), *more = [
            (key, task)
            for dag in (spec["root"]["dag"], *(each["dag"] for each in spec["components"].values() if "dag" in each))
            for key, task in dag["tasks"].items()
            if task["taskInfo"]["name"] == "passed"
        ]
        assert not more and task["dependentTasks"] == ["gate"]
        asked = "inputs.parameter_values['pipelinechannel--gate-decision']"
        assert task["triggerPolicy"]["condition"] == f"{asked} == 'passed'"
        assert list(spec["components"]["comp-gate"]["outputDefinitions"]["parameters"]) == ["decision"]


def test_the_record_is_closed_whatever_happened() -> None:
    for which in ("cdrl", "train", "sweep"):
        (last,) = [task for task in tasks(committed(which)).values() if graph.is_last(task)]
        assert last["taskInfo"]["name"] == "close"


def problems(documents: Documents) -> list[str]:
    """What is wrong with the pods of a compiled pipeline."""
    found = []
    for step, container in containers(documents).items():
        pod = pods(documents).get(step, {})
        resources = container.get("resources", {})
        names = ("resourceCpuLimit", "resourceMemoryLimit", "resourceCpuRequest", "resourceMemoryRequest")
        if not set(names) <= set(resources):
            found.append(f"{step}: no limits")
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or int(security.get("runAsUser", 0)) == 0:
            found.append(f"{step}: may run as root")
        if int(pod.get("activeDeadlineSeconds", 0)) <= 0:
            found.append(f"{step}: no deadline")
        if [mount["mountPath"] for mount in pod.get("pvcMount", ())] != [ROOT]:
            found.append(f"{step}: not on the shared volume")
        secrets = {secret["secretName"] for secret in pod.get("secretAsEnv", ())}
        if secrets != {"cdrl-storage", "cdrl-tracking", "cdrl-ray"}:
            found.append(f"{step}: credentials not from Secrets")
        if container.get("env"):
            found.append(f"{step}: an environment value in clear")
        try:
            checked_image(container["image"])
        except ValueError:
            found.append(f"{step}: an image that may change")
        if container["command"][0] != "cdrl" and step.partition("-")[0] != "report":
            found.append(f"{step}: no command of cdrl")
        if re.search(r"pip3? install|ensurepip", " ".join(container["command"])):
            found.append(f"{step}: installs when it runs")
    for step, task in tasks(documents).items():
        if task["cachingOptions"].get("enableCache", False):
            found.append(f"{step}: Kubeflow's cache")
        if task.get("retryPolicy", {}).get("maxRetryCount", 0) < 1 and not graph.is_last(task):
            found.append(f"{step}: no retry")
    if SECRET.search(json.dumps(documents)):
        found.append("a secret in clear")
    return found


def test_the_pods_keep_the_policies(name: str) -> None:
    assert problems(committed(name)) == []


def _exec(documents: Documents, step: str) -> dict[str, Any]:
    return containers(documents)[step]


BROKEN: dict[str, Callable[[Documents], object]] = {
    "train: no limits": lambda them: _exec(them, "train")["resources"].pop("resourceMemoryLimit"),
    "train: may run as root": lambda them: pods(them)["train"]["securityContext"].update(runAsUser="0"),
    "train: no deadline": lambda them: pods(them)["train"].pop("activeDeadlineSeconds"),
    "train: not on the shared volume": lambda them: pods(them)["train"].pop("pvcMount"),
    "train: credentials not from Secrets": lambda them: pods(them)["train"]["secretAsEnv"].pop(),
    "train: an environment value in clear": lambda them: _exec(them, "train").update(env=[{"name": "A", "value": "b"}]),
    "train: an image that may change": lambda them: _exec(them, "train").update(image="cdrl:latest"),
    "train: no command of cdrl": lambda them: _exec(them, "train").update(command=["sh"]),
    "train: installs when it runs": lambda them: _exec(them, "train")["command"].append("pip install torch"),
    "train: Kubeflow's cache": lambda them: tasks(them)["train"]["cachingOptions"].update(enableCache=True),
    "train: no retry": lambda them: tasks(them)["train"].pop("retryPolicy"),
    "a secret in clear": lambda them: _exec(them, "train")["args"].append("--token=hunter2"),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_policy_is_seen(problem: str) -> None:
    broken = copy.deepcopy(json.loads(json.dumps(committed("train"))))
    BROKEN[problem](broken)
    assert problems(broken) == [problem]
