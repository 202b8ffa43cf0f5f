"""Step: the gates' answer, which decides whether anything is promoted."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["gate"]


@dsl.container_component
def gate(
    model: str,
    version: str,
    max_sets: int,
    root: str,
    tracking: str,
    decision: dsl.OutputPath(str),  # type: ignore[valid-type]  # a value that kfp reads
) -> dsl.ContainerSpec:
    """Ask the gates of a version's configuration; either answer is a success.

    Args:
        model: the registered name.
        version: a number, latest, or the run that made it.
        max_sets: sets of further images of candidate and champion while it is not clear which is better.
        root: folder of the runs.
        tracking: URI of the MLflow server; empty = a database below root.
        decision: passed or refused.
    """
    sets = ["--set", f"gates.max_sets={max_sets}"]
    args = [model, version, *sets, "--root", root, "--tracking", tracking, "--decision", decision]
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "registry", "gate"], args=args)
