"""Jobs with a cluster of their own: RayJobs of KubeRay, through the Kubernetes API."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from cdrl.cluster.fit import over_quota
from cdrl.cluster.jobs import Job, check_new, find, job_id, newest
from cdrl.cluster.manifest import ATTEMPT_LABEL, COMMAND_ANNOTATION, JOB_LABEL, KUEUE_LABEL, render
from cdrl.cluster.spec import JobSpec, check_name
from cdrl.errors import ClusterError, ClusterOutage, ConfigError

__all__ = ["KubeJobs"]

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
ANSWER_S = 30
LATER = {"Complete": "STOPPED", "Failed": "FAILED", "Suspended": "SUSPENDED", "Suspending": "SUSPENDED"}


class KubeJobs:
    """The RayJobs of one namespace. The object is the record: it stays when its cluster is gone."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._client = _client()

    def submit(self, name: str, command: Sequence[str]) -> str:
        """Begin `cdrl COMMAND` on a cluster of its own; returns the job's id.

        Raises:
            ConfigError: not a name, there is such a job, or more GPUs than a quota of the namespace allows.
        """
        manifest = render(name, command, self._spec)
        check_new(self.jobs(), name)
        if too_much := over_quota(self._spec, self._quotas()):
            raise ConfigError(too_much)
        return self._create(manifest)

    def jobs(self) -> list[Job]:
        """All jobs of cdrl in the namespace, the oldest first."""
        with _translated(self._spec.namespace):
            found = self._custom().list_namespaced_custom_object(**self._where(), label_selector=JOB_LABEL)
            items = sorted(found["items"], key=lambda item: str(item["metadata"].get("creationTimestamp", "")))
            return [_job(item) for item in items]

    def job(self, ref: str) -> Job:
        """The job of an id, or the newest attempt of a name.

        Raises:
            ClusterError: no such job.
        """
        return find(self.jobs(), ref, f"in namespace {self._spec.namespace!r}")

    def logs(self, job: Job) -> str:
        """What the command has written: the log of the pod that submitted it, which outlives the cluster."""
        from kubernetes.client import CoreV1Api

        core, place = CoreV1Api(self._client), self._spec.namespace
        with _translated(place):
            pods = core.list_namespaced_pod(
                place, label_selector=f"job-name={job.id}", _request_timeout=ANSWER_S, _preload_content=False
            )
            names = [
                pod["metadata"]["name"]
                for pod in sorted(json.loads(pods.data)["items"], key=lambda pod: pod["metadata"]["creationTimestamp"])
                if pod.get("status", {}).get("phase") != "Pending"
            ]
            if not names:
                return ""
            answer = core.read_namespaced_pod_log(
                names[-1], place, _request_timeout=ANSWER_S, _preload_content=False
            )
            return str(answer.data.decode(errors="replace"))

    def stop(self, job: Job) -> None:
        """Suspend it: every worker writes a checkpoint at the notice, then the cluster is taken down.

        Raises:
            ClusterError: it has ended, or Kueue decides over it.
        """
        if job.finished:
            raise ClusterError(f"job {job.id}: it has ended already: {job.status}")
        self._suspend(job, True)

    def resume(self, ref: str) -> str:
        """A suspended job goes on; of one that has ended, the next attempt begins.

        Raises:
            ClusterError: it is running, there is none, or Kueue decides over it.
        """
        before = self.job(ref)
        if before.status == "SUSPENDED":
            self._suspend(before, False)
            return before.id
        if not before.finished:
            raise ClusterError(f"job {before.id}: it is {before.status}; stop it before it is resumed")
        latest = newest(self.jobs(), before.name) or before
        ended, number = self._object(before), latest.attempt + 1
        labels = ended["metadata"]["labels"] | {ATTEMPT_LABEL: str(number)}
        annotations = {COMMAND_ANNOTATION: before.line}
        metadata = {"name": check_name(job_id(before.name, number)), "labels": labels, "annotations": annotations}
        kind = {key: ended[key] for key in ("apiVersion", "kind")}
        return self._create({**kind, "metadata": metadata, "spec": ended["spec"] | {"suspend": False}})

    def _create(self, manifest: dict[str, Any]) -> str:
        with _translated(self._spec.namespace):
            made = self._custom().create_namespaced_custom_object(**self._where(), body=manifest)
        return str(made["metadata"]["name"])

    def _suspend(self, job: Job, suspended: bool) -> None:
        if KUEUE_LABEL in self._object(job)["metadata"]["labels"]:
            what = f"{{\"spec\":{{\"active\":{str(not suspended).lower()}}}}}"
            raise ClusterError(
                f"job {job.id}: Kueue decides when it runs; find its workload with `kubectl get workloads "
                f"-n {self._spec.namespace}`, then `kubectl patch workload NAME --type merge -p '{what}'`"
            )
        with _translated(self._spec.namespace):
            self._custom().patch_namespaced_custom_object(
                **self._where(), name=job.id, body={"spec": {"suspend": suspended}}
            )

    def _object(self, job: Job) -> dict[str, Any]:
        with _translated(self._spec.namespace):
            return dict(self._custom().get_namespaced_custom_object(**self._where(), name=job.id))

    def _quotas(self) -> list[dict[str, Any]]:
        """The namespace's quotas; none where we may not look: the API server will hold them anyway."""
        from kubernetes.client import ApiException, CoreV1Api

        with _translated(self._spec.namespace):
            try:
                answer = CoreV1Api(self._client).list_namespaced_resource_quota(
                    self._spec.namespace, _request_timeout=ANSWER_S, _preload_content=False
                )
            except ApiException as error:
                if error.status == 403:
                    return []
                raise
            return list(json.loads(answer.data)["items"])

    def _custom(self) -> Any:
        from kubernetes.client import CustomObjectsApi

        return CustomObjectsApi(self._client)

    def _where(self) -> dict[str, Any]:
        return {
            "group": GROUP,
            "version": VERSION,
            "plural": PLURAL,
            "namespace": self._spec.namespace,
            "_request_timeout": ANSWER_S,
        }


def _client() -> Any:
    """A client of the cluster that KUBECONFIG names, or of the one that this pod is in.

    Raises:
        ConfigError: the package is not installed, or there is no configuration.
    """
    try:
        from kubernetes import client, config
    except ImportError:
        raise ConfigError("--address kuberay needs the package kubernetes: pip install 'cdrl[cluster]'") from None
    # read now, and not when the package was imported
    places = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    try:
        if "KUBECONFIG" in os.environ or Path(places).exists():
            config.load_kube_config(places)
        else:
            config.load_incluster_config()
    except (config.ConfigException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--address kuberay: no cluster is configured: {reason}; set KUBECONFIG") from None
    settings = client.Configuration.get_default_copy()
    settings.retries = False  # of connections that are refused: one line at once
    return client.ApiClient(settings)


def _job(item: dict[str, Any]) -> Job:
    """A RayJob as one of ours."""
    status, metadata = item.get("status") or {}, item["metadata"]
    deployment, ray = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    # `jobs entry` stops its own job after a mistake of the user; others are stopped by suspending them
    refused = deployment == "Complete" and ray == "STOPPED"
    if deployment == "Complete" and ray == "SUCCEEDED":
        shown = "SUCCEEDED"
    else:
        shown = "FAILED" if refused else LATER.get(deployment) or ("RUNNING" if ray == "RUNNING" else "PENDING")
    if not status and (item.get("spec") or {}).get("suspend"):
        shown = "SUSPENDED"
    said = [str(status[key]) for key in ("reason", "message") if status.get(key)] if not refused else []
    return Job(
        id=metadata["name"],
        name=metadata["labels"][JOB_LABEL],
        attempt=int(metadata["labels"].get(ATTEMPT_LABEL, "1")),
        status=shown,
        line=(metadata.get("annotations") or {}).get(COMMAND_ANNOTATION, ""),
        message=": ".join(said).partition("\n")[0],
        exit_code=2 if refused else None,
        began=_time(status.get("startTime")),
        ended=_time(status.get("endTime")),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


@contextmanager
def _translated(namespace: str) -> Iterator[None]:
    """One line of our own for whatever the Kubernetes client raises."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise _explained(error, namespace) from None
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterOutage(f"the Kubernetes API of KUBECONFIG does not answer: {reason}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(f"the answer is not that of a Kubernetes API: {type(error).__name__} {error}") from None


def _explained(error: Any, namespace: str) -> ClusterError:
    try:
        said = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        said = str(error.reason)
    if error.status == 401:
        return ClusterError(f"Kubernetes refuses: the token or certificate of KUBECONFIG is wrong or old ({said})")
    if error.status == 403:
        return ClusterError(f"Kubernetes refuses in namespace {namespace!r}: {said}; ask for a role that may")
    if error.status == 404 and "could not find the requested resource" in said or said == "Not Found":
        return ClusterError("Kubernetes knows no RayJob: install KubeRay 1.7 or newer with its custom resources")
    if error.status in (400, 409, 422):
        return ClusterError(f"Kubernetes refuses the job: {said}")
    if error.status is not None and error.status >= 500:
        return ClusterOutage(f"the Kubernetes API answers with HTTP status {error.status}: {said}")
    return ClusterError(f"Kubernetes: {said}")
