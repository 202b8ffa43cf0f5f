"""Step 3: the score card of a run."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["evaluate"]


@dsl.container_component
def evaluate(run: str, root: str) -> dsl.ContainerSpec:
    """Score a run's best checkpoint by the protocol of its configuration, beside K = 0 and the real-vs-real floor.

    Args:
        run: name of the run.
        root: folder of the run's record.
    """
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "evaluate"], args=[run, "--root", root])
