"""Step: a run."""

from kfp import dsl

from components.submitted import placed, submitted

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
    own = ["--set", f"run.name={run}", "--set", f"training.num_updates={num_updates}"]
    places = placed(data, root, storage, tracking)
    return submitted(address, root, "train", f"{root}/{run}-sweep/best.yaml", *own, *places)
