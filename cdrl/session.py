"""A Ray session: the cluster that runs already, one at an address, or one on this machine for as long as it is needed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from cdrl.config import ClusterConfig
from cdrl.errors import ConfigError

__all__ = ["connected"]


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[None]:
    """Ray as it runs already, else at `cluster.address`, else started here and ended with the block.

    A session started here is authenticated by a random token, listens on loopback and has no dashboard.

    Raises:
        ConfigError: no cluster at the address, or it has fewer CPUs or GPUs than `cluster.num_workers` need.
    """
    import ray

    started = not ray.is_initialized()
    if started and cluster.address is None:
        # Ray turns token authentication on by itself; given no token, it would leave one in the home folder
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if started:
        options = {"address": cluster.address} if cluster.address else {
            "num_cpus": cluster.num_workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1",
        }
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
        except ConnectionError as error:
            raise ConfigError(f"cluster.address {cluster.address!r}: no Ray cluster answers: {error}") from None
    try:
        there = ray.cluster_resources()
        for kind, needed in (("CPU", cluster.num_workers), ("GPU", cluster.num_workers * cluster.use_gpu)):
            if there.get(kind, 0) < needed:
                raise ConfigError(
                    f"cluster.num_workers: {cluster.num_workers} workers need {needed} {kind}s, "
                    f"the Ray cluster has {there.get(kind, 0):g}"
                )
        yield
    finally:
        if started:
            ray.shutdown()
