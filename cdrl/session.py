"""A Ray session: the cluster that runs already, one at an address, or one on this machine while it is needed."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

from cdrl.config import ClusterConfig
from cdrl.errors import ConfigError

__all__ = ["connected"]

PROBE_TIMEOUT_S = 5.0


@contextmanager
def connected(
    cluster: ClusterConfig,
    *,
    num_cpus: int | None = None,
    resources: dict[str, float] | None = None,
    dashboard: bool = False,
) -> Iterator[None]:
    """Ray as it runs already, else at `cluster.address`, else started here and ended with the block.

    A session started here is authenticated by a random token and listens on loopback.

    Args:
        num_cpus, resources: of a session started here; default: what the workers need, and no others.
        dashboard: whether that one has a dashboard, without which nobody can ask for the state of others' workers.

    Raises:
        ConfigError: no cluster at the address, or it has fewer CPUs or GPUs than the fewest workers need.
    """
    import ray

    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            if cluster.address is None:
                stack.enter_context(_loopback())
                # Ray turns token authentication on by itself; given no token, it would leave one in the home folder
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
                ray.init(
                    "local",  # also where RAY_ADDRESS names another cluster
                    num_cpus=num_cpus or cluster.max_workers,
                    resources=resources,
                    include_dashboard=dashboard,
                    dashboard_host="127.0.0.1",
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            else:
                _connect(cluster.address)
        there = ray.cluster_resources()
        gpus = cluster.min_workers * cluster.gpu_share if cluster.use_gpu else 0
        for kind, needed in (("CPU", cluster.min_workers), ("GPU", gpus)):
            if there.get(kind, 0) < needed:
                raise ConfigError(
                    f"cluster.num_workers: {cluster.min_workers} workers need {needed:g} {kind}s, "
                    f"the Ray cluster has {there.get(kind, 0):g}"
                )
        yield


@contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray use the loopback address, as it does on systems where it makes no clusters.

    On Linux it takes this machine's address in the network, whatever address it is told, and listens on all of them.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # the processes it starts read the first one
    try:
        yield
    finally:
        os.environ.pop(name) if before[0] is None else os.environ.update({name: before[0]})
        ray_constants.ENABLE_RAY_CLUSTER = before[1]


def _connect(address: str) -> None:
    """Connect to a cluster, after a probe: at a port where nobody listens Ray would try for minutes and then exit."""
    import ray

    try:
        if address != "auto":
            parts = urlsplit(address if "://" in address else f"//{address}")
            local = not parts.scheme and parts.hostname in ("localhost", "127.0.0.1", "::1")
            # Ray takes this machine's address in the network instead of a local one
            host = ray.util.get_node_ip_address() if local else parts.hostname
            socket.create_connection((host, parts.port), PROBE_TIMEOUT_S).close()
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # a ConnectionError is an OSError
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"cluster.address {address!r}: no Ray cluster answers: {reason}; "
            "expected host:port, ray://host:port or auto"
        ) from None
