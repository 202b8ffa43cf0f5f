"""What runs within a KubeRay job's pods: around the command, and when a pod is taken away."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from cdrl.cluster.ray_jobs import connect
from cdrl.errors import ClusterError

__all__ = ["entry", "leave"]

MISTAKE = 2
STOPPED_AFTER_S = 60.0


def entry(command: Sequence[str]) -> int:
    """Run `cdrl COMMAND`; returns its exit code.

    KubeRay begins a failed job again on a new cluster, whatever its exit code. A mistake of the user would be the same
    there, so the job stops itself then: a stopped job counts as complete and is not begun again.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)  # the command gets it too, and writes its checkpoint
    code = subprocess.call([sys.executable, "-m", "cdrl.cli", *command])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    described = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if code != MISTAKE or described is None:
        return 128 - code if code < 0 else code
    job = json.loads(described)["metadata"]["job_submission_id"]
    connect(_dashboard()).stop_job(job)
    time.sleep(STOPPED_AFTER_S)  # Ray ends this process
    return code


def leave(grace_s: float) -> None:
    """Tell Ray that this machine goes, then wait: workers answer with a checkpoint.

    Raises:
        ClusterError: Ray does not know this machine, or refuses.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2

    client, here = GcsClient(address=os.environ["RAY_ADDRESS"]), ray.util.get_node_ip_address()
    alive = [node for node in client.get_all_node_info(timeout=10).values() if node.state == 0]
    nodes = [node.node_id for node in alive if node.node_manager_address == here]
    if not nodes:
        raise ClusterError(f"the Ray cluster at {os.environ['RAY_ADDRESS']} has no living machine {here}")
    reason = autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION
    deadline_ms = int((time.time() + grace_s) * 1000)
    accepted, why = client.drain_node(nodes[0].hex(), reason, "the pod is being deleted", deadline_ms)
    if not accepted:
        raise ClusterError(f"Ray does not let machine {here} go: {why}")
    time.sleep(grace_s)


def _dashboard() -> str:
    """The dashboard of the cluster that this process is a part of."""
    from ray.dashboard.utils import ray_address_to_api_server_url

    return str(ray_address_to_api_server_url(os.environ["RAY_ADDRESS"]))
