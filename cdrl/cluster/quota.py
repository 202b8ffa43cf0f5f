"""Whether what a job asks for is allowed at all: GPUs against the quotas of a namespace."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cdrl.cluster.spec import JobSpec

__all__ = ["over_quota"]


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
