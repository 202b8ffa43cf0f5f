"""From an address to the place that it names."""

from cdrl.cluster.jobs import Place
from cdrl.cluster.spec import JobSpec
from cdrl.errors import ConfigError

__all__ = ["place_at"]


def place_at(address: str, spec: JobSpec | None = None, root: str = "runs") -> Place:
    """The place of jobs at `http://HOST:8265` or `kuberay`.

    Args:
        spec: of a KubeRay job; its namespace is looked at.

    Raises:
        ConfigError: another address.
        ClusterError: the cluster does not answer or does not let us in.
    """
    if address == "kuberay":
        from cdrl.cluster.kube_jobs import KubeJobs

        return KubeJobs(spec or JobSpec())
    if address == "local":
        raise ConfigError("--address local: a command that runs here is no job; expected http://HOST:8265 or kuberay")
    from cdrl.cluster.ray_jobs import RayJobs

    return RayJobs(address, root)
