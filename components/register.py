"""Step: a version in the registry."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["register"]


@dsl.container_component
def register(run: str, root: str) -> dsl.ContainerSpec:
    """Make a model version of a run's best checkpoint and its score card.

    Args:
        run: name of the run.
        root: folder of the run's record.
    """
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "registry", "register"], args=[run, "--root", root])
