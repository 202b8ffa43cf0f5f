"""From a job's specification to KubeRay's RayJob: a pure function, the same arguments give the same YAML."""

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from cdrl.cluster.spec import JobSpec, Pod, WorkerGroup, check_name

__all__ = ["ATTEMPT_LABEL", "COMMAND_ANNOTATION", "JOB_LABEL", "KUEUE_LABEL", "render", "to_yaml"]

JOB_LABEL, ATTEMPT_LABEL, COMMAND_ANNOTATION = "cdrl/job", "cdrl/attempt", "cdrl/command"
KUEUE_LABEL, VOLCANO_LABEL = "kueue.x-k8s.io/queue-name", "volcano.sh/queue-name"

USER = 10001  # of the image
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
SMALL = {"cpu": "500m", "memory": "1Gi"}
"""Of the containers that only speak to others: the submitter and the autoscaler."""

GRACE_S, START_S = 20, 8
"""Of a pod from the notice to the end; and how much of it passes before Ray is told."""


def render(name: str, command: Sequence[str], spec: JobSpec, attempt: int = 1) -> dict[str, Any]:
    """The RayJob that runs `cdrl COMMAND` on a cluster of its own.

    Args:
        name: what the user calls the job; later attempts are named NAME-2, NAME-3, ...
        attempt: 1, or higher for a resumed one.

    Raises:
        ConfigError: a name that Kubernetes or KubeRay would refuse.
    """
    labels = {"app.kubernetes.io/name": "cdrl", JOB_LABEL: name, ATTEMPT_LABEL: str(attempt)}
    if spec.kueue_queue:
        labels[KUEUE_LABEL] = spec.kueue_queue
    if spec.volcano_queue:
        labels[VOLCANO_LABEL] = spec.volcano_queue
    line = shlex.join(["cdrl", *command])
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": check_name(name if attempt == 1 else f"{name}-{attempt}"),
            "namespace": spec.namespace,
            "labels": labels,
            "annotations": {COMMAND_ANNOTATION: line},
        },
        "spec": {
            # a failure is tried again on a new cluster; `jobs entry` keeps the user's mistakes from being one
            "entrypoint": shlex.join(["cdrl", "jobs", "entry", "--", *command]),
            "submissionMode": "K8sJobMode",
            "backoffLimit": spec.retries,
            "activeDeadlineSeconds": spec.deadline_s,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": spec.ttl_s,
            "suspend": spec.suspend,
            "submitterConfig": {"backoffLimit": 2},
            "submitterPodTemplate": {"spec": _submitter(spec)},
            "rayClusterSpec": _cluster(spec),
        },
    }


def to_yaml(manifest: dict[str, Any]) -> str:
    """The manifest as a file for kubectl."""
    return yaml.dump(manifest, Dumper=_WithoutAnchors, sort_keys=False, width=120)


class _WithoutAnchors(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _cluster(spec: JobSpec) -> dict[str, Any]:
    cluster: dict[str, Any] = {"rayVersion": spec.ray_version, "authOptions": {"mode": "token"}}
    if spec.autoscaling:
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 120,
            "resources": {"requests": SMALL, "limits": SMALL},
            "securityContext": CONTAINER_SECURITY,
        }
    if redis := spec.fault_tolerant_head:
        cluster["gcsFaultToleranceOptions"] = {"redisAddress": redis.redis_address}
        if secret := redis.password:
            reference = {"valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
            cluster["gcsFaultToleranceOptions"]["redisPassword"] = reference
    cluster["headGroupSpec"] = {
        "serviceType": "ClusterIP",
        "enableIngress": False,
        "rayStartParams": {"num-cpus": "0"},  # the head coordinates; no worker lands on it
        "template": {"spec": _head(spec)},
    }
    cluster["workerGroupSpecs"] = [
        {
            "groupName": group.name,
            "replicas": group.replicas,
            "minReplicas": group.least,  # KubeRay asks for both, autoscaling or not
            "maxReplicas": group.most,
            "rayStartParams": {},
            "template": {"spec": _worker(spec, group)},
        }
        for group in spec.workers
    ]
    return cluster


def _head(spec: JobSpec) -> dict[str, Any]:
    # it outlives the workers, whose notices it passes on
    pod = _ray_pod(spec, spec.head, "ray-head", {}, ["sleep", str(GRACE_S + 5)])
    pod["automountServiceAccountToken"] = spec.autoscaling  # the autoscaler makes and removes pods
    pod["terminationGracePeriodSeconds"] = GRACE_S + 10
    return pod


def _worker(spec: JobSpec, group: WorkerGroup) -> dict[str, Any]:
    grace_s = group.spot.grace_s if group.spot else GRACE_S
    # workers answer with a checkpoint within about two seconds
    leaving = ["cdrl", "jobs", "leave", "--grace", str(grace_s - START_S)]
    gpus = {group.gpu_resource: str(group.gpus)} if group.gpus else {}
    pod = _ray_pod(spec, group, "ray-worker", gpus, leaving)
    pod["terminationGracePeriodSeconds"] = grace_s
    selector, tolerations = dict(group.node_selector), []
    if group.gpus:
        tolerations.append({"key": group.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    if group.gpu_type:
        selector[group.gpu_label] = group.gpu_type
    if group.spot:
        selector[group.spot.label] = group.spot.value
        taint = {"key": group.spot.label, "operator": "Equal", "value": group.spot.value, "effect": "NoSchedule"}
        tolerations.append(taint)
    if selector:
        pod["nodeSelector"] = selector
    if tolerations:
        pod["tolerations"] = tolerations
    return pod


def _ray_pod(spec: JobSpec, pod: Pod, name: str, gpus: dict[str, str], before_stop: list[str]) -> dict[str, Any]:
    resources = {"cpu": pod.cpus, "memory": pod.memory, **gpus}
    container: dict[str, Any] = {
        "name": name,
        "image": spec.image,
        "securityContext": CONTAINER_SECURITY,
        "env": [
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(spec.stop_wait_s)},
        ],
        "envFrom": [{"secretRef": {"name": secret}} for secret in spec.secrets],
        "resources": {"requests": resources, "limits": resources},
        "lifecycle": {"preStop": {"exec": {"command": before_stop}}},
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "ray-logs", "mountPath": "/tmp/ray"},
        ],
    }
    volumes: list[dict[str, Any]] = [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shared_memory}},
        {"name": "ray-logs", "emptyDir": {}},
    ]
    if spec.volume:
        container["volumeMounts"].append({"name": "runs", "mountPath": spec.volume_path})
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": spec.volume}})
    selector = {"nodeSelector": pod.node_selector} if pod.node_selector else {}
    return _pod(spec, container) | {"volumes": volumes} | selector


def _submitter(spec: JobSpec) -> dict[str, Any]:
    container = {
        "name": "ray-job-submitter",
        "image": spec.image,
        "securityContext": CONTAINER_SECURITY,
        "resources": {"requests": SMALL, "limits": SMALL},
    }
    return _pod(spec, container)


def _pod(spec: JobSpec, container: dict[str, Any]) -> dict[str, Any]:
    """What holds for every pod."""
    account = {"serviceAccountName": spec.service_account} if spec.service_account else {}
    return {
        "restartPolicy": "Never",
        **account,
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "containers": [container],
    }
