"""Step: a run."""

from kfp import dsl

from components.submitted import submitted

__all__ = ["train"]


@dsl.container_component
def train(
    run: str, num_updates: int, data: str, root: str, storage: str, tracking: str, address: str
) -> dsl.ContainerSpec:
    """Train the configuration that the sweep, or the step instead of it, left; or resume the run where it stopped.

    Args:
        run: name of the run; later steps find it by this name.
        num_updates: updates of the whole training.
        data: URI of the dataset.
        root: folder of the run's record, on a volume that all steps share.
        storage: URI of the checkpoints, s3://bucket/key; empty = root.
        tracking: URI of the MLflow server; empty = a database below root.
        address: where the work is done: local, http://HOST:8265 or kuberay.
    """
    settings = {
        "run.name": run,
        "training.num_updates": num_updates,
        "data.uri": data,
        "run.root": root,
        "run.storage": storage,
        "tracking.uri": tracking,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return submitted(address, root, "train", f"{root}/{run}-sweep/best.yaml", *sets)
