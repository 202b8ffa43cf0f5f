"""Step: a registered version is scored again."""

from kfp import dsl

from components.submitted import submitted

__all__ = ["rescore"]


@dsl.container_component
def rescore(
    model: str, version: str, data: str, seed: int, root: str, tracking: str, address: str
) -> dsl.ContainerSpec:
    """Score a version with fresh noise under its own protocol; the card goes below the root, the version keeps its own.

    Args:
        model: the registered name.
        version: @champion, or / and a number or latest.
        data: URI of the dataset.
        seed: of the images that are drawn.
        root: folder of the runs, on a volume that all steps share.
        tracking: URI of the MLflow server; empty = a database below root.
        address: where the work is done: local, http://HOST:8265 or kuberay.
    """
    sets = ["--set", f"data.uri={data}", "--set", f"evaluation.seed={seed}"]
    places = ["--to", f"{root}/nightly/{model}{version}", "--root", root, "--tracking", tracking]
    return submitted(address, root, "evaluate", f"models:/{model}{version}", *sets, *places)
