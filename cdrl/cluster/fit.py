"""Whether a job, the cluster that is made for it and the namespace belong together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cdrl.cluster.spec import JobSpec
from cdrl.config import Config
from cdrl.errors import ConfigError

__all__ = ["check_fit", "over_quota"]


def check_fit(config: Config, spec: JobSpec) -> None:
    """Look at what would be found out on the cluster only, and late.

    Raises:
        ConfigError: workers without a place, GPUs that nobody uses, or checkpoints on a disk that goes with its pod.
    """
    gpus = sum(group.gpus * group.most for group in spec.workers)
    if config.cluster.use_gpu and config.cluster.min_workers > gpus:
        raise ConfigError(
            f"cluster.num_workers: {config.cluster.min_workers} workers need a GPU each, the job has {gpus}; "
            "raise workers.replicas or workers.gpus of the job"
        )
    if gpus and not config.cluster.use_gpu:
        raise ConfigError(f"cluster.use_gpu is false, but the job takes {gpus} GPUs; set it, or leave out workers.gpus")
    for setting, uri in (("run.storage", config.run.storage or config.run.root), ("data.uri", config.data.uri)):
        on_volume = spec.volume is not None and str(uri).startswith(f"{spec.volume_path}/") or uri == spec.volume_path
        if not (str(uri).startswith("s3://") or on_volume):
            raise ConfigError(
                f"{setting} {uri!r} is on a pod's own disk, which goes with the pod; expected s3://BUCKET/KEY"
                + (f" or below {spec.volume_path}" if spec.volume else ", or give the job a volume")
            )


def over_quota(spec: JobSpec, quotas: Sequence[Mapping[str, Any]]) -> str | None:
    """What is too much, in one line; None if the job can ever run.

    Args:
        quotas: ResourceQuota objects as plain values. What others use at the moment is no reason: the job waits.
    """
    wanted = Counter[str]()
    for group in spec.workers:
        if group.gpus:
            wanted[group.gpu_resource] += group.gpus * group.replicas
    for quota in quotas:
        hard = (quota.get("spec") or {}).get("hard") or {}
        for resource, number in wanted.items():
            for key in (f"requests.{resource}", f"limits.{resource}"):
                if key in hard and number > int(hard[key]):
                    name = (quota.get("metadata") or {}).get("name", "?")
                    return (
                        f"the workers ask for {number} {resource}, quota {name!r} of namespace {spec.namespace!r} "
                        f"allows {hard[key]}; lower workers.replicas or workers.gpus"
                    )
    return None
