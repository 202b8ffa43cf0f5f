"""Step: a new champion."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["promote"]


@dsl.container_component
def promote(model: str, version: str, max_sets: int, root: str, tracking: str) -> dsl.ContainerSpec:
    """Make a version the champion; the gates are asked once more, and a refusal fails the step and says why.

    Args:
        model: the registered name.
        version: a number, latest, or the run that made it.
        max_sets: as the gates were asked before.
        root: folder of the runs.
        tracking: URI of the MLflow server; empty = a database below root.
    """
    sets = ["--set", f"gates.max_sets={max_sets}"]
    args = [model, version, *sets, "--root", root, "--tracking", tracking]
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "registry", "promote"], args=args)
