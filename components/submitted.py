"""A heavy step's command line: `cdrl submit` in the step's pod, the work where `address` says."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["submitted"]


def submitted(address: object, *command: object) -> dsl.ContainerSpec:
    """Run `cdrl COMMAND` and wait: in the pod itself (`local`), on a Ray cluster, or on one that KubeRay makes."""
    args = ["--address", address, "--wait", "--", *command]
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "submit"], args=args)
