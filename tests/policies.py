"""What a platform team asks of every manifest. A rule yields what breaks it, and stands under its name."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.manifests import Document, named

__all__ = [
    *("CLUSTER_RULES", "DIGEST", "DIGESTS", "EVERYWHERE", "RULES", "SECRET", "SECRET_NAME", "SETTING", "TAG"),
    *("broken", "pods"),
]

SECRET = re.compile(
    r"(password|passwd|secret_?(access)?_?key|access_key_id|(?<!Account)token)"
    r"[\"']?[ \t]*[:=][ \t]*[\"']?[^\s\"'{}$,\[\]&*|`()?]",  # a reference is none
    re.IGNORECASE,
)
SECRET_NAME = re.compile(r"password|passwd|secret|token|credential|access_?key|private_?key", re.IGNORECASE)
SETTING = re.compile(r"(_MODE|_PATH|_URI|_FILE)$")  # the end of a name that speaks of a secret and holds none
EVERYWHERE = re.compile(r"0\.0\.0\.0(?!/)|\[?::\]?(?=$|:\d)")
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
TAG = re.compile(r":[A-Za-z0-9_][\w.-]*$")

Rule = Callable[[Document], Iterator[str]]


def pods(tree: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, pod spec) of every pod that a document makes, of whatever kind it is."""
    if isinstance(tree, list):
        for number, each in enumerate(tree):
            yield from pods(each, f"{where}[{number}]")
    if isinstance(tree, dict):
        if isinstance(tree.get("containers"), list):
            yield where, tree
        for key, value in tree.items():
            yield from pods(value, f"{where}.{key}" if where else key)


def containers(document: Document) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, container, its pod) of every container; Ray's autoscaler is one by another name."""
    for _, pod in pods(document):
        for each in (*pod.get("initContainers", []), *pod["containers"]):
            yield each["name"], each, pod


def _security(part: dict[str, Any]) -> dict[str, Any]:
    return dict(part.get("securityContext") or {})


def _non_root(document: Document) -> Iterator[str]:
    for name, container, pod in containers(document):
        effective = _security(pod) | _security(container)
        if effective.get("runAsNonRoot") is not True or not effective.get("runAsUser", 0) > 0:
            yield f"{name} may run as root"


def _no_privileges(document: Document) -> Iterator[str]:
    for name, container, pod in containers(document):
        security = _security(container)
        if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
            yield f"{name} may gain privileges"
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{name} shares the machine's network or processes"
    for where, pod in pods(document):
        for volume in pod.get("volumes", []):
            if "hostPath" in volume:
                yield f"{where} mounts {volume['name']} from the machine"


def _no_capabilities(document: Document) -> Iterator[str]:
    for name, container, _ in containers(document):
        capabilities = _security(container).get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{name} keeps capabilities"


def _seccomp(document: Document) -> Iterator[str]:
    for name, container, pod in containers(document):
        profile = (_security(pod) | _security(container)).get("seccompProfile", {})
        if profile.get("type") != "RuntimeDefault":
            yield f"{name} has no seccomp profile"


def _bounded(document: Document) -> Iterator[str]:
    for name, container, _ in containers(document):
        resources = container.get("resources", {})
        for what in ("requests", "limits"):
            if missing := {"cpu", "memory"} - set(resources.get(what, {})):
                yield f"{name} has no {what} of {', '.join(sorted(missing))}"


def _tagged(document: Document) -> Iterator[str]:
    for name, container, _ in containers(document):
        image = container.get("image", "")
        without_digest = DIGEST.sub("", image)
        if without_digest == image and not TAG.search(image) or without_digest.endswith(":latest"):
            yield f"{name}: image {image!r} has no version; expected NAME:TAG, not latest, or NAME@sha256:..."


def _pinned(document: Document) -> Iterator[str]:
    for name, container, _ in containers(document):
        if not DIGEST.search(container.get("image", "")):
            want = "add `digest: sha256:...` for it under images in its kustomization"
            yield f"{name}: image {container.get('image')!r} has no digest; {want}"


def _no_secrets(document: Document) -> Iterator[str]:
    if document["kind"] == "Secret":
        yield "a Secret with its values; make it by kubectl or an operator, as infra/README.md says"
    for name, container, _ in containers(document):
        for variable in container.get("env", []):
            known = variable["name"]
            if SECRET_NAME.search(known) and not SETTING.search(known) and variable.get("value"):
                yield f"{name}: {known} in clear"
        for part in (*container.get("command", []), *container.get("args", [])):
            if re.search(r"://[^/@\s]+:[^/@\s]+@", part) or SECRET.search(part):
                yield f"{name}: a secret in its command"
    if document["kind"] == "ConfigMap":
        for key, text in document.get("data", {}).items():
            if SECRET.search(text) or re.search(r"://[^/@\s]+:[^/@\s]+@", text):
                yield f"{key} holds a secret"


def _no_open_doors(document: Document) -> Iterator[str]:
    if document["kind"] == "Ingress":
        yield "an Ingress"
    if document["kind"] == "Service" and document["spec"].get("type", "ClusterIP") != "ClusterIP":
        yield f"of type {document['spec']['type']}: reachable from outside the cluster"
    cluster = document.get("spec", {}).get("rayClusterSpec", {})
    if document["kind"] == "RayJob" and cluster.get("authOptions", {}).get("mode") != "token":
        yield "Ray without token authentication"
    if cluster.get("headGroupSpec", {}).get("enableIngress"):
        yield "an Ingress to Ray's dashboard"
    if cluster.get("headGroupSpec", {}).get("serviceType", "ClusterIP") != "ClusterIP":
        yield "Ray's dashboard is reachable from outside the cluster"
    for name, container, _ in containers(document):
        command = [*container.get("command", []), *container.get("args", [])]
        if any(EVERYWHERE.search(part) for part in command) and "--app-name=basic-auth" not in command:
            yield f"{name} listens everywhere without logins"
        if any("hostPort" in port or "hostIP" in port for port in container.get("ports", [])):
            yield f"{name} takes a port of the machine"


def _no_token(document: Document) -> Iterator[str]:
    if document["kind"] == "ServiceAccount" and document.get("automountServiceAccountToken") is not False:
        yield "its token is mounted into every pod"
    autoscales = document.get("spec", {}).get("rayClusterSpec", {}).get("enableInTreeAutoscaling", False)
    for where, pod in pods(document):
        is_needed = autoscales and "headGroupSpec" in where  # the autoscaler makes and removes pods
        if pod.get("automountServiceAccountToken") is not False and not is_needed:
            yield f"{where} mounts a token of the API"


def _least_rights(document: Document) -> Iterator[str]:
    if document["kind"] in ("ClusterRole", "ClusterRoleBinding"):
        yield "rights in the whole cluster"
    for rule in document.get("rules", []) if document["kind"] == "Role" else []:
        if "*" in (*rule["apiGroups"], *rule["resources"], *rule["verbs"]):
            yield "a rule with *"
        if forbidden := {"secrets", "pods/exec", "pods/attach", "roles", "rolebindings"} & set(rule["resources"]):
            yield f"rights over {', '.join(sorted(forbidden))}"


RULES: dict[str, Rule] = {
    "non-root": _non_root,
    "no privileges": _no_privileges,
    "no capabilities": _no_capabilities,
    "seccomp": _seccomp,
    "requests and limits": _bounded,
    "a version, not latest": _tagged,
    "no secrets": _no_secrets,
    "no open doors": _no_open_doors,
    "no API token": _no_token,
    "least rights": _least_rights,
}


def _read_only(document: Document) -> Iterator[str]:
    for name, container, _ in containers(document):
        if _security(container).get("readOnlyRootFilesystem") is not True:
            yield f"{name} can write to its own image"


CLUSTER_RULES = RULES | {"read-only": _read_only}  # Ray writes where it likes
DIGESTS = CLUSTER_RULES | {"digests": _pinned}


def broken(document: Document, rules: dict[str, Rule] = RULES) -> list[tuple[str, str]]:
    """(rule, what is wrong and where) for all that breaks one."""
    return [(rule, f"{named(document)}: {what}") for rule, check in rules.items() for what in check(document)]
