"""Step instead of a sweep: the configuration as it is."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["freeze"]


@dsl.container_component
def freeze(config: str, run: str, root: str) -> dsl.ContainerSpec:
    """Check a configuration and write it where a sweep would leave its best one.

    Args:
        config: name of a preset, or a YAML file that every step sees.
        run: name of the run that will train it.
        root: folder of the runs, on a volume that all steps share.
    """
    args = [config, "--to", f"{root}/{run}-sweep/best.yaml"]
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "config", "show"], args=args)
