"""A heavy step's command line: `cdrl submit` in the step's pod, the work where `address` says."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["placed", "submitted"]


def submitted(address: object, root: object, *command: object) -> dsl.ContainerSpec:
    """Run `cdrl COMMAND` and wait: in the pod itself (`local`), on a Ray cluster, or on one that KubeRay makes.

    Below `root` a note of the job is kept.
    """
    args = ["--address", address, "--root", root, "--wait", "--", *command]
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "submit"], args=args)


def placed(data: object, root: object, storage: object, tracking: object) -> list[str]:
    """The settings that say where a run finds its data and leaves what it makes."""
    places = {"data.uri": data, "run.root": root, "run.storage": storage, "tracking.uri": tracking}
    return [part for key, place in places.items() for part in ("--set", f"{key}={place}")]
