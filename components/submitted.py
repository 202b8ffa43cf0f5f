"""A heavy step's command line: `cdrl submit` in the step's pod, the work where `address` says."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["submitted"]


def submitted(address: object, root: object, *command: object) -> dsl.ContainerSpec:
    """Run `cdrl COMMAND` and wait: in the pod itself (`local`), on a Ray cluster, or on one that KubeRay makes.

    Below `root` a note of the job is kept.
    """
    args = ["--address", address, "--root", root, "--wait", "--", *command]
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "submit"], args=args)
