"""The RayJob that is rendered: equal to the committed one, valid for KubeRay, refused where KubeRay would refuse."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate import latest_version, validate

from cdrl.cli.commands import checked, on_cluster
from cdrl.cluster.fit import check_fit, over_quota
from cdrl.cluster.manifest import render, to_yaml
from cdrl.cluster.spec import JobSpec, check_name, read_spec
from cdrl.errors import ConfigError
from tests.unit import test_infra

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "infra/kubernetes/rayjob-train.yaml"
COMMAND = shlex.split(
    "train cifar10 --set cluster.num_workers=4 --set cluster.use_gpu=true --set data.uri=s3://cdrl/data/cifar10 "
    "--set run.storage=s3://cdrl/runs --set run.root=/runs --set tracking.uri=http://mlflow:5000"
)
EVERYTHING = """
image: registry.example/team/cdrl@sha256:{digest}
production: true
namespace: research
service_account: cdrl-train
secrets: [cdrl-storage]
volume: runs
fault_tolerant_head: {{redis_address: "redis:6379", password: {{name: redis}}}}
workers:
  - {{name: steady, replicas: 1, gpus: 2, gpu_type: NVIDIA-H100-80GB-HBM3, node_selector: {{zone: a}}}}
  - name: spot
    replicas: 2
    min_replicas: 0
    max_replicas: 8
    gpus: 1
    spot: {{label: cloud.google.com/gke-spot, grace_s: 25}}
"""

rayjob_crd = test_infra.crd  # a fixture


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The submitter, the head and each worker group."""
    cluster = job["spec"]["rayClusterSpec"]
    of_ray = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [job["spec"]["submitterPodTemplate"]["spec"], *of_ray]


def spec_of(folder: Path, text: str) -> JobSpec:
    path = folder / "job.yaml"
    path.write_text(text)
    return read_spec(str(path))


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, Any]:
    return render("all", ["config", "list"], spec_of(tmp_path, EVERYTHING.format(digest="ab" * 32)), attempt=2)


def test_the_committed_manifest_is_what_is_rendered() -> None:
    spec = read_spec(str(ROOT / "infra/jobs/train.yaml"))
    config = checked(COMMAND)
    assert config is not None
    check_fit(config, spec)
    text = COMMITTED.read_text()
    comment = [line for line in text.splitlines(keepends=True) if line.startswith("#")]
    assert text == "".join(comment) + to_yaml(render("cdrl-train", on_cluster(COMMAND), spec))


def test_the_same_job_is_the_same_text(everything: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(everything)) == everything and "&id" not in to_yaml(everything)


def test_everything_at_once_fits_the_custom_resource(
    everything: dict[str, Any], rayjob_crd: Draft202012Validator
) -> None:
    assert [error.message for error in rayjob_crd.iter_errors(everything)] == []
    del everything["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]
    everything["spec"]["rayClusterSpec"]["enableAutoscaling"] = True
    assert [error.message for error in rayjob_crd.iter_errors(everything)]


def test_every_pod_fits_kubernetes_own_schema(everything: dict[str, Any]) -> None:
    assert len(pods(everything)) == 4
    for pod in pods(everything):
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        validate(document, latest_version(), strict=True)


def test_what_was_asked_for_is_there(everything: dict[str, Any]) -> None:
    cluster = everything["spec"]["rayClusterSpec"]
    steady, spot = (group["template"]["spec"] for group in cluster["workerGroupSpecs"])
    assert everything["metadata"]["name"] == "all-2" and everything["metadata"]["namespace"] == "research"
    assert steady["nodeSelector"] == {"zone": "a", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert spot["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    taint = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert taint in spot["tolerations"] and taint not in steady["tolerations"]
    grace = int(spot["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert 5 < grace < spot["terminationGracePeriodSeconds"] == 25
    assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["version"] == "v2"
    password = {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    assert cluster["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379", "redisPassword": password}
    head = cluster["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP" and head["enableIngress"] is False
    assert head["template"]["spec"]["automountServiceAccountToken"] is True, "the autoscaler speaks to the API"
    assert steady["automountServiceAccountToken"] is False
    for pod in pods(everything)[1:]:
        env = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
        assert env == {"RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": "60"}


@pytest.mark.parametrize(
    ("text", "label", "value"),
    [
        ("kueue_queue: team", "kueue.x-k8s.io/queue-name", "team"),
        ("volcano_queue: team", "volcano.sh/queue-name", "team"),
    ],
)
def test_a_queue_is_a_label(tmp_path: Path, text: str, label: str, value: str) -> None:
    assert render("job", ["config", "list"], spec_of(tmp_path, text))["metadata"]["labels"][label] == value


def test_a_command_arrives_as_it_was_given() -> None:
    command = ["sample", "a b", "--picture", "x; rm -rf $HOME"]
    assert shlex.split(render("job", command, JobSpec())["spec"]["entrypoint"]) == [
        *("cdrl", "jobs", "entry", "--"),
        *command,
    ]


@pytest.mark.parametrize("name", ["a", "train-digits-3fa9c1", "x" * 47])
def test_a_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "Train", "-a", "a-", "1a", "a_b", "a.b", "a/b", "x" * 48, "é"])
def test_a_name_that_kuberay_would_refuse(name: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 47 lower-case letters"):
        check_name(name)


def test_an_attempt_may_make_a_name_too_long() -> None:
    with pytest.raises(ConfigError, match="1 to 47"):
        render("x" * 46, ["config", "list"], JobSpec(), attempt=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("production: true", "image 'cdrl:0.1.0' has no digest; production expects NAME@sha256:DIGEST"),
        ("image: cdrl:latest", "latest is another image tomorrow"),
        ("image: 'cdrl 1'", "image: String should match pattern"),
        ("imge: x", "imge: no such setting"),
        ("workers: []", "workers: Tuple should have at least 1 item"),
        ("workers: [{replicas: 2, min_replicas: 3}]", "expected min_replicas <= replicas <= max_replicas, got 3, 2, 2"),
        ("workers: [{gpu_type: H100}]", "gpu_type without gpus"),
        ("workers: [{}, {}]", "each group needs a name of its own, got workers, workers"),
        ("workers: [{memory: 16 GB}]", "workers.0.memory: String should match pattern"),
        ("workers: [{spot: {}}]", "workers.0.spot.label: Field required"),
        ("workers: [{max_replicas: 4}]\nkueue_queue: q", "a queue admits a fixed number of pods"),
        ("kueue_queue: a\nvolcano_queue: b", "one of them holds the job back, not both"),
        ("ray_version: 2.51.9", "token authentication needs Ray 2.52 or newer"),
        ("retries: -1", "retries: Input should be greater than or equal to 0"),
        ("fault_tolerant_head: {redis_address: redis}", "fault_tolerant_head.redis_address"),
        ("secrets: [{password: hunter2}]", "secrets.0: Input should be a valid string"),
        ("- a", "Input should be a valid dictionary"),
        ("{", "not YAML"),
    ],
)
def test_a_specification_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(tmp_path, text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_specification_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the file: No such file"):
        read_spec(str(tmp_path / "no.yaml"))


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("workers: [{gpus: 2}]", ["cluster.use_gpu=true", "cluster.num_workers=4"], "need a GPU each, the job has 2"),
        ("workers: [{gpus: 2}]", [], "cluster.use_gpu is false, but the job takes 2 GPUs"),
        ("{}", ["run.storage=runs"], "run.storage 'runs' is on a pod's own disk"),
        ("volume: v", ["run.storage=/elsewhere"], "or below /runs"),
        ("{}", ["data.uri=data/x"], "data.uri 'data/x' is on a pod's own disk"),
    ],
)
def test_a_training_that_does_not_fit_its_cluster(
    tmp_path: Path, text: str, settings: list[str], message: str
) -> None:
    there = ["data.uri=s3://b/data", "run.storage=s3://b/runs"]
    given = [part for setting in [*there, *settings] for part in ("--set", setting)]
    config = checked(["train", "cifar10", *given])
    assert config is not None
    with pytest.raises(ConfigError) as caught:
        check_fit(config, spec_of(tmp_path, text))
    assert message in str(caught.value)


def test_more_gpus_than_the_quota_allows(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "workers: [{gpus: 2, replicas: 3}, {name: other, gpus: 1}]")

    def quota(**hard: str) -> dict[str, Any]:
        return {"metadata": {"name": "team"}, "spec": {"hard": hard}}

    pods, seven = quota(pods="1"), quota(**{"requests.nvidia.com/gpu": "7"})
    six = quota(**{"limits.nvidia.com/gpu": "6"})
    assert over_quota(spec, []) is None and over_quota(spec, [pods, seven]) is None
    said = over_quota(spec, [seven, six])
    assert said and "ask for 7 nvidia.com/gpu, quota 'team' of namespace 'default' allows 6;" in said


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train digits", "train digits --address auto"),
        ("train digits --workers 4", "train digits --workers 4 --address auto"),
        ("train digits --address h:1", "train digits --address h:1"),
        ("train digits --set cluster.address=h:1", "train digits --set cluster.address=h:1"),
        ("evaluate digits --workers 4", "evaluate digits --workers 4 --set cluster.address=auto"),
        ("evaluate digits", "evaluate digits"),
        ("data prepare digits s3://b/d", "data prepare digits s3://b/d"),
        ("data prepare digits s3://b/d --workers 2", "data prepare digits s3://b/d --workers 2 --address auto"),
        ("registry list", "registry list"),
    ],
)
def test_on_a_cluster_a_command_takes_the_ray_that_is_there(line: str, expected: str) -> None:
    assert " ".join(on_cluster(line.split())) == expected
    checked(expected.split())
