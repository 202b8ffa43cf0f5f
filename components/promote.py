"""Step 5: the gate."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["promote"]


@dsl.container_component
def promote(model: str, version: str, tracking: str) -> dsl.ContainerSpec:
    """Make a version the champion if it is no worse under the same protocol; a refusal fails the step and says why.

    Args:
        model: the registered name.
        version: a number, latest, or the run that made it.
        tracking: URI of the MLflow server.
    """
    return dsl.ContainerSpec(
        image=IMAGE, command=["cdrl", "registry", "promote"], args=[model, version, "--tracking", tracking]
    )
