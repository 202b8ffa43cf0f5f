"""What holds for every step: its pod, its patience, its place in line."""

import os
from itertools import pairwise

from kfp import dsl, kubernetes

__all__ = ["ROOT", "VOLUME", "heavy", "in_order", "light"]

ROOT = "/runs"
"""Where every step sees the shared volume: run records, sweeps, score cards. Shards and checkpoints are on S3."""

VOLUME = os.environ.get("CDRL_VOLUME", "cdrl-runs")
"""The ReadWriteMany volume claim behind it, writable by user 10001. Read when a pipeline is compiled."""

USER = 10001
STORAGE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
TRACKING_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
RAY_KEYS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
HOUR_S = 3600


def heavy(step: dsl.PipelineTask, cpus: int = 2, hours: int = 12) -> dsl.PipelineTask:
    """A step that trains or draws, in its pod or elsewhere; tried again it goes on where it was."""
    return _placed(step, cpus, hours * HOUR_S).set_retry(3, backoff_duration="60s", backoff_factor=2.0)


def light(step: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step of seconds; tried again it does nothing twice."""
    return _placed(step, 1, HOUR_S).set_retry(1, backoff_duration="30s")


def in_order(*steps: dsl.PipelineTask) -> None:
    """One after the other."""
    for before, after in pairwise(steps):
        after.after(before)


def _placed(step: dsl.PipelineTask, cpus: int, timeout_s: int) -> dsl.PipelineTask:
    """The shared volume, credentials from Secrets, an ordinary user, limits, a deadline, no cache of Kubeflow's.

    What a step makes is out of Kubeflow's sight. The commands themselves know what is done, by the digests of data and
    configuration.
    """
    kubernetes.mount_pvc(step, pvc_name=VOLUME, mount_path=ROOT)
    for secret, keys in (("storage", STORAGE_KEYS), ("tracking", TRACKING_KEYS), ("ray", RAY_KEYS)):
        kubernetes.use_secret_as_env(step, f"cdrl-{secret}", {key: key for key in keys}, optional=True)
    kubernetes.set_security_context(step, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_timeout(step, timeout_s)
    step.set_caching_options(False)
    step.set_cpu_request(str(cpus)).set_cpu_limit(str(cpus))
    return step.set_memory_request(f"{2 * cpus}Gi").set_memory_limit(f"{2 * cpus}Gi")
