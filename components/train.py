"""Step 2: a run."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["train"]


@dsl.container_component
def train(config: str, run: str, data: str, root: str, storage: str, tracking: str) -> dsl.ContainerSpec:
    """Train, or resume the run of this name where it stopped.

    Args:
        config: name of a preset.
        run: name of the run; later steps find it by this name.
        data: URI of the dataset.
        root: folder of the run's record, on a volume that all steps share.
        storage: URI of the checkpoints, s3://bucket/key.
        tracking: URI of the MLflow server.
    """
    settings = {"run.name": run, "data.uri": data, "run.root": root, "run.storage": storage, "tracking.uri": tracking}
    args = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "train"], args=[config, *args])
