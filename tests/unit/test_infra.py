"""The image and the manifest: pinned, without privileges or secrets, and naming commands that exist."""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from cdrl.config import load
from tests.commands import parse

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra/docker/Dockerfile"
SCHEMAS = Path(os.environ.get("CDRL_KUBERAY_SCHEMAS", ROOT.parent / "shared/schemas/kuberay"))
PLAIN = ("RAY_USAGE_STATS_ENABLED", "RAY_JOB_STOP_WAIT_TIME_S")  # switches, no secrets
SECRET = re.compile(r"(password|secret_?(access)?_?key|access_key_id|(?<!Account)token)\s*[:=]\s*\S", re.IGNORECASE)


@pytest.fixture
def rayjob() -> dict[str, Any]:
    job = yaml.safe_load((ROOT / "infra/kubernetes/rayjob-train.yaml").read_text())
    return dict(json.loads(json.dumps(job)))  # YAML anchors share objects: a test shall break one part alone


def instructions(word: str) -> list[str]:
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split(" ")[0] == word]


def test_the_image_pins_its_base_by_tag_and_digest() -> None:
    arguments = dict(line.split("=", 1) for line in instructions("ARG"))
    assert re.fullmatch(r"3\.(1[1-9])\.\d+-slim-\w+", arguments["PYTHON_TAG"])
    bases = [line.split(" AS ")[0] for line in instructions("FROM")]
    assert len(bases) == 2, "one stage builds, one ships"
    assert set(bases) == {"python:${PYTHON_TAG}${PYTHON_DIGEST:+@${PYTHON_DIGEST}}"}


def test_the_image_runs_as_an_ordinary_user() -> None:
    final = DOCKERFILE.read_text().rsplit("\nFROM ", 1)[1]
    user = re.findall(r"^USER (\S+)$", final, re.MULTILINE)[-1]
    assert user.isdigit() and int(user) > 0, "a number, so that runAsNonRoot can be checked"
    assert f"--uid {user} " in final


def test_every_library_of_the_image_comes_from_the_pins() -> None:
    installs = [part for line in instructions("RUN") for part in line.split("&&") if "pip install" in part]
    assert len(installs) == 3
    assert all("-c constraints.txt" in install or "--no-deps" in install for install in installs)


def test_the_image_copies_only_what_the_ignore_file_admits() -> None:
    admitted = (ROOT / "infra/docker/Dockerfile.dockerignore").read_text().split()
    assert admitted[admitted.index("*") + 1] == "!setup.cfg"
    copied = [line.split()[:-1] for line in instructions("COPY") if not line.startswith("--from")]
    for source in {path.split("/")[0] for sources in copied for path in sources}:
        assert f"!{source}" in admitted
        assert source == "README.md" or (ROOT / source).exists()


@pytest.mark.parametrize("path", sorted(path.name for path in (ROOT / "infra").rglob("*") if path.is_file()))
def test_no_file_of_infra_holds_a_secret(path: str) -> None:
    (file,) = (ROOT / "infra").rglob(path)
    assert SECRET.findall(file.read_text()) == []


@pytest.mark.parametrize("planted", ["ENV MLFLOW_TRACKING_PASSWORD=hunter2", "AWS_SECRET_ACCESS_KEY: abc"])
def test_a_planted_secret_is_seen(planted: str) -> None:
    assert SECRET.search(planted)


def templates(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, pod spec) of the submitter, the head and each worker group."""
    cluster = job["spec"]["rayClusterSpec"]
    yield "submitter", job["spec"]["submitterPodTemplate"]["spec"]
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def problems(job: dict[str, Any]) -> list[str]:
    """What is wrong by the rules that no schema holds."""
    found = []
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    if (job["apiVersion"], job["kind"]) != ("ray.io/v1", "RayJob"):
        found.append("kind")
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append("no token authentication")
    if not (spec.get("shutdownAfterJobFinishes") and spec.get("ttlSecondsAfterFinished", 0) > 0):
        found.append("the cluster stays when the job is over")
    if not (spec.get("backoffLimit", 0) > 0 and spec.get("activeDeadlineSeconds", 0) > 0):
        found.append("no retry or no deadline")
    for group in cluster["workerGroupSpecs"]:
        if not group["replicas"] == group.get("minReplicas") == group.get("maxReplicas"):
            found.append("without autoscaling the replica counts are one number")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        if not all(isinstance(value, str) for value in group["rayStartParams"].values()):
            found.append("rayStartParams are strings")
    for name, pod in templates(job):
        pod_security = pod.get("securityContext", {})
        if not (pod_security.get("runAsNonRoot") and pod_security.get("runAsUser", 0) > 0):
            found.append(f"{name}: may run as root")
        for container in pod["containers"]:
            security = container.get("securityContext", {})
            if security.get("allowPrivilegeEscalation") is not False or security["capabilities"]["drop"] != ["ALL"]:
                found.append(f"{name}: keeps privileges")
            if not {"cpu", "memory"} <= set(container.get("resources", {}).get("limits", {})):
                found.append(f"{name}: no limits")
            if any("value" in variable and variable["name"] not in PLAIN for variable in container.get("env", [])):
                found.append(f"{name}: an environment value in clear")
    return found


def test_the_manifest_keeps_the_rules(rayjob: dict[str, Any]) -> None:
    assert problems(rayjob) == []


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "kind": lambda job: job.update(kind="RayCluster"),
    "no token authentication": lambda job: job["spec"]["rayClusterSpec"].pop("authOptions"),
    "the cluster stays when the job is over": lambda job: job["spec"].update(ttlSecondsAfterFinished=0),
    "no retry or no deadline": lambda job: job["spec"].pop("backoffLimit"),
    "without autoscaling the replica counts are one number": lambda job: _workers(job).pop("minReplicas"),
    "rayStartParams are strings": lambda job: _workers(job)["rayStartParams"].update({"num-gpus": 1}),
    "head: may run as root": lambda job: _head(job)["securityContext"].pop("runAsNonRoot"),
    "head: keeps privileges": lambda job: _head(job)["containers"][0].pop("securityContext"),
    "head: no limits": lambda job: _head(job)["containers"][0]["resources"]["limits"].pop("memory"),
    "head: an environment value in clear": lambda job: _head(job)["containers"][0]["env"][0].update(name="A"),
}


def _head(job: dict[str, Any]) -> Any:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


def _workers(job: dict[str, Any]) -> Any:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_manifest_is_caught(rayjob: dict[str, Any], problem: str) -> None:
    BROKEN[problem](rayjob)
    assert problems(rayjob) == [problem]


def test_the_entrypoint_is_a_command_and_a_configuration_that_exist(rayjob: dict[str, Any]) -> None:
    program, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert program == "cdrl"
    given = parse(parse(arguments)["command"])
    config = load(given["source"], given["overrides"])
    gpus = sum(
        group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert config.cluster.use_gpu and config.cluster.num_workers == gpus
    assert str(config.run.storage).startswith("s3://"), "a pod's own disk does not outlive it"


def test_image_ray_and_user_are_the_same_everywhere(rayjob: dict[str, Any]) -> None:
    from components.image import IMAGE

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]
    for _, pod in templates(rayjob):
        assert [container["image"] for container in pod["containers"]] == [IMAGE]
        assert f"USER {pod['securityContext']['runAsUser']}\n" in DOCKERFILE.read_text()


def strict(schema: Any) -> Any:
    """KubeRay's structural schema as a strict JSON schema: an unknown field is an error."""
    if not isinstance(schema, dict):
        return [strict(part) for part in schema] if isinstance(schema, list) else schema
    out = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        out["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    return out


@pytest.fixture(scope="module")
def crd() -> Draft202012Validator:
    path = SCHEMAS / "ray.io_rayjobs.yaml"
    if not path.is_file():
        pytest.skip(f"no KubeRay schemas at {SCHEMAS}; CDRL_KUBERAY_SCHEMAS names their folder")
    document = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (item for item in document["spec"]["versions"] if item["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def test_the_manifest_fits_the_custom_resource(rayjob: dict[str, Any], crd: Draft202012Validator) -> None:
    assert [error.message for error in crd.iter_errors(rayjob)] == []


@pytest.mark.parametrize(
    "path, value",
    [
        (("spec", "backOffLimit"), 3),
        (("spec", "ttlSecondsAfterFinished"), "600"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "password"),
        (("spec", "rayClusterSpec", "workerGroupSpecs"), {"replicas": 1}),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "imge"), "cdrl"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    rayjob: dict[str, Any], crd: Draft202012Validator, path: tuple[Any, ...], value: Any
) -> None:
    place: Any = rayjob
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert list(crd.iter_errors(rayjob))
