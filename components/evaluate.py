"""Step: the score card of a run."""

from kfp import dsl

from components.submitted import submitted

__all__ = ["evaluate"]


@dsl.container_component
def evaluate(run: str, root: str, address: str) -> dsl.ContainerSpec:
    """Score a run's best checkpoint by the protocol of its configuration, beside K = 0 and the real-vs-real floor.

    Args:
        run: name of the run.
        root: folder of the run's record.
        address: where the work is done: local, http://HOST:8265 or kuberay.
    """
    return submitted(address, root, "evaluate", run, "--root", root)
