"""Step 6: a picture."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["sample"]


@dsl.container_component
def sample(run: str, root: str) -> dsl.ContainerSpec:
    """Draw a grid of samples from a run's best checkpoint.

    Args:
        run: name of the run.
        root: folder of the run's record.
    """
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "sample"], args=[run, "--root", root])
