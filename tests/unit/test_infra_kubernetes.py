"""The kustomizations: what comes out of them fits Kubernetes' schemas, keeps the rules and hangs together."""

import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.manifests import Document, built, named, read
from tests.policies import CLUSTER_RULES, DIGESTS, RULES, broken, pods

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/kubernetes"
PLACES = ("base", "overlays/dev", "overlays/gpu", "overlays/production")
OLDEST, NEWEST = "1.31", "1.37"


@pytest.fixture(scope="module")
def places() -> dict[str, list[Document]]:
    return {place: built(FOLDER / place) for place in PLACES}


def one(documents: list[Document], name: str) -> Document:
    (found,) = (each for each in documents if named(each) == name)
    return found


@pytest.mark.parametrize("place", PLACES)
def test_it_is_what_kubectl_makes_of_it(place: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl to compare with")
    done = subprocess.run(["kubectl", "kustomize", FOLDER / place], capture_output=True, text=True, check=True)
    theirs = {named(each): each for each in yaml.safe_load_all(done.stdout)}
    assert {named(each): each for each in built(FOLDER / place)} == theirs


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("place", PLACES)
def test_every_document_fits_its_schema(places: dict[str, list[Document]], place: str, version: str) -> None:
    for document in places[place]:
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_a_document_that_does_not_fit_is_refused(places: dict[str, list[Document]]) -> None:
    planted = copy.deepcopy(one(places["base"], "Deployment/mlflow"))
    planted["spec"]["template"]["spec"]["containers"][0]["imge"] = "cdrl"
    with pytest.raises(kubernetes_validate.ValidationError, match="imge"):
        kubernetes_validate.validate(planted, NEWEST, strict=True)


@pytest.mark.parametrize("place", PLACES)
def test_every_document_keeps_the_rules(places: dict[str, list[Document]], place: str) -> None:
    rules = DIGESTS if place == "overlays/production" else CLUSTER_RULES
    assert [line for document in places[place] for line in broken(document, rules)] == []
    assert sum(1 for document in places[place] for _ in pods(document)) >= 2


def test_the_rayjob_keeps_the_rules() -> None:
    (job,) = read(FOLDER / "rayjob-train.yaml")
    assert broken(job) == [] and len(list(pods(job))) == 3


def _pod(document: Document) -> Any:
    return document["spec"]["template"]["spec"]


def _container(document: Document) -> Any:
    return _pod(document)["containers"][0]


def _ray(job: Document) -> Any:
    return job["spec"]["rayClusterSpec"]


def _head(job: Document) -> Any:
    return _ray(job)["headGroupSpec"]


MLFLOW, JOB = "Deployment/mlflow", "RayJob/cdrl-train"
DATABASE = "--backend-store-uri=postgresql://mlflow:hunter2@postgres/mlflow"
KEY = {"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"}
# (rule, document, a part of what is said, how it is broken)
PLANTED: list[tuple[str, str, str, Callable[[Document], object]]] = [
    ("non-root", MLFLOW, "may run as root", lambda d: _pod(d)["securityContext"].pop("runAsNonRoot")),
    ("non-root", MLFLOW, "may run as root", lambda d: _container(d)["securityContext"].update(runAsUser=0)),
    ("non-root", JOB, "ray-head may", lambda d: _head(d)["template"]["spec"]["securityContext"].pop("runAsNonRoot")),
    ("no privileges", MLFLOW, "may gain", lambda d: _container(d)["securityContext"].pop("allowPrivilegeEscalation")),
    ("no privileges", MLFLOW, "may gain", lambda d: _container(d)["securityContext"].update(privileged=True)),
    ("no privileges", MLFLOW, "shares the machine's", lambda d: _pod(d).update(hostNetwork=True)),
    ("no privileges", MLFLOW, "from the machine", lambda d: _pod(d)["volumes"].append({"name": "x", "hostPath": {}})),
    ("no capabilities", MLFLOW, "keeps", lambda d: _container(d)["securityContext"].pop("capabilities")),
    ("no capabilities", MLFLOW, "keeps", lambda d: _container(d)["securityContext"]["capabilities"].update(add=["X"])),
    ("seccomp", MLFLOW, "no seccomp", lambda d: _pod(d)["securityContext"].pop("seccompProfile")),
    ("requests and limits", MLFLOW, "limits of memory", lambda d: _container(d)["resources"]["limits"].pop("memory")),
    ("requests and limits", MLFLOW, "requests of cpu", lambda d: _container(d)["resources"]["requests"].pop("cpu")),
    ("a version, not latest", MLFLOW, "'cdrl:latest'", lambda d: _container(d).update(image="cdrl:latest")),
    ("a version, not latest", MLFLOW, "'cdrl' has no", lambda d: _container(d).update(image="cdrl")),
    ("a version, not latest", MLFLOW, "has no version", lambda d: _container(d).update(image="host:5000/cdrl")),
    ("no secrets", MLFLOW, "in clear", lambda d: _container(d)["env"].append(KEY)),
    ("no secrets", MLFLOW, "in its command", lambda d: _container(d)["command"].append(DATABASE)),
    ("no secrets", "ServiceAccount/mlflow", "a Secret with", lambda d: d.update(kind="Secret", data={"a": "aA=="})),
    ("no secrets", "ConfigMap/mlflow-auth", "secret", lambda d: d["data"].update(x="admin_password = hunter2")),
    ("no open doors", MLFLOW, "listens everywhere", lambda d: _container(d)["command"].remove("--app-name=basic-auth")),
    ("no open doors", MLFLOW, "a port of", lambda d: _container(d)["ports"][0].update(hostPort=5000)),
    ("no open doors", "Service/mlflow", "from outside", lambda d: d["spec"].update(type="LoadBalancer")),
    ("no open doors", JOB, "without token", lambda d: _ray(d).pop("authOptions")),
    ("no open doors", JOB, "Ingress", lambda d: _head(d).update(enableIngress=True)),
    ("no open doors", JOB, "dashboard", lambda d: _head(d).update(serviceType="NodePort")),
    ("no API token", MLFLOW, "mounts a token", lambda d: _pod(d).pop("automountServiceAccountToken")),
    ("no API token", "ServiceAccount/mlflow", "its token", lambda d: d.pop("automountServiceAccountToken")),
    ("least rights", "Role/cdrl-submit", "with *", lambda d: d["rules"][0].update(verbs=["*"])),
    ("least rights", "Role/cdrl-submit", "secrets", lambda d: d["rules"][1]["resources"].append("secrets")),
    ("least rights", "Role/cdrl-submit", "whole cluster", lambda d: d.update(kind="ClusterRole")),
    ("read-only", MLFLOW, "its own image", lambda d: _container(d)["securityContext"].pop("readOnlyRootFilesystem")),
    ("digests", MLFLOW, "'cdrl:0.1.0' has no digest; add", lambda d: _container(d).update(image="cdrl:0.1.0")),
]


@pytest.mark.parametrize(("rule", "name", "says", "plant"), PLANTED)
def test_breaking_a_rule_is_seen(
    places: dict[str, list[Document]], rule: str, name: str, says: str, plant: Callable[[Document], object]
) -> None:
    whole = read(FOLDER / "rayjob-train.yaml") if name == JOB else places["overlays/production"]
    document = copy.deepcopy(one(whole, name))
    plant(document)
    found = broken(document, RULES | {rule: DIGESTS[rule]})
    assert {each for each, _ in found} == {rule} and says in found[0][1]


def test_every_rule_was_broken_once() -> None:
    assert {rule for rule, *_ in PLANTED} == set(DIGESTS)


def test_an_image_that_is_not_pinned_in_production_is_named(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    place = tmp_path / "kubernetes/overlays/production/kustomization.yaml"
    plan = yaml.safe_load(place.read_text())
    plan["images"] = [each for each in plan["images"] if each["name"] != "postgres"]
    place.write_text(yaml.safe_dump(plan))
    found = [line for document in built(place.parent) for line in broken(document, DIGESTS)]
    assert [rule for rule, _ in found] == ["digests"]
    assert "StatefulSet/postgres: postgres: image 'postgres:17.6-bookworm' has no digest" in found[0][1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"namePrefix": "x-"}, "namePrefix"),
        ({"patches": [{"path": "patch.yaml"}]}, "Deployment/nobody, which stands there 0 times"),
        ({"patches": [{"patch": "- op: remove"}]}, "a patch is a file here"),
        ({"configMapGenerator": [{"name": "x", "files": []}]}, "a hash"),
    ],
)
def test_a_kustomization_that_is_not_understood_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    plan = {"namespace": "x", "resources": []} | change
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "patch.yaml").write_text("{apiVersion: apps/v1, kind: Deployment, metadata: {name: nobody}}")
    with pytest.raises(ValueError, match=says):
        built(tmp_path)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_named_is_there(places: dict[str, list[Document]], place: str) -> None:
    documents = places[place]
    there = {named(each) for each in documents}
    labels = [d["spec"]["template"]["metadata"]["labels"] for d in documents if "template" in d.get("spec", {})]
    for document in documents:
        for _, pod in pods(document):
            if account := pod.get("serviceAccountName"):
                assert f"ServiceAccount/{account}" in there
            for volume in pod.get("volumes", []):
                for key, kind, of in (
                    ("configMap", "ConfigMap", "name"),
                    ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
                ):
                    assert key not in volume or f"{kind}/{volume[key][of]}" in there
        if document["kind"] == "Service":
            selector = document["spec"]["selector"]
            assert any(selector.items() <= each.items() for each in labels)
        if document["kind"] == "RoleBinding":
            assert f"Role/{document['roleRef']['name']}" in there
            assert all(f"ServiceAccount/{each['name']}" in there for each in document["subjects"])


def test_nothing_is_reachable_that_no_policy_allows(places: dict[str, list[Document]]) -> None:
    for documents in places.values():
        policies = [each for each in documents if each["kind"] == "NetworkPolicy"]
        deny = one(policies, "NetworkPolicy/default-deny")["spec"]
        assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        for policy in policies:
            rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
            assert all(rule.get("from") or rule.get("to") for rule in rules), "a rule without a peer opens to all"
            for peer in (peer for rule in rules for peer in (*rule.get("from", []), *rule.get("to", []))):
                assert "ipBlock" not in peer or "169.254.0.0/16" in peer["ipBlock"]["except"]


def test_submitting_may_do_what_it_needs(places: dict[str, list[Document]]) -> None:
    rules = one(places["base"], "Role/cdrl-submit")["rules"]
    granted = {(what, verb) for rule in rules for what in rule["resources"] for verb in rule["verbs"]}
    jobs = {("rayjobs", verb) for verb in ("create", "get", "list", "watch", "patch", "delete")}
    reading = {("pods", "get"), ("pods", "list"), ("pods/log", "get"), ("services", "get")}
    assert granted == jobs | reading | {("resourcequotas", "get"), ("resourcequotas", "list")}


UNITS = {"m": 1e-3, "": 1.0, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(quantity: str) -> float:
    number = quantity.rstrip("mKMGTi")
    return float(number) * UNITS[quantity[len(number) :]]


@pytest.mark.parametrize("place", ["overlays/gpu", "overlays/production"])
def test_the_job_fits_beside_the_servers_into_the_quota(places: dict[str, list[Document]], place: str) -> None:
    (job,) = read(FOLDER / "rayjob-train.yaml")
    spec = job["spec"]["rayClusterSpec"]
    templates = [(1, job["spec"]["submitterPodTemplate"]["spec"]), (1, spec["headGroupSpec"]["template"]["spec"])]
    templates += [(group["maxReplicas"], group["template"]["spec"]) for group in spec["workerGroupSpecs"]]
    for document in places[place]:
        templates += [(document["spec"]["replicas"], pod) for _, pod in pods(document)]
    hard = one(places[place], "ResourceQuota/cdrl")["spec"]["hard"]
    for key in ("requests.cpu", "limits.cpu", "requests.memory", "limits.memory", "requests.nvidia.com/gpu"):
        kind, _, what = key.partition(".")
        asked = sum(
            number * amount(container["resources"][kind].get(what, "0"))
            for number, pod in templates
            for container in pod["containers"]
        )
        assert asked <= amount(hard[key]), key
