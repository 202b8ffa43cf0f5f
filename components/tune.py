"""Step: a sweep, which leaves the best configuration that it found."""

from kfp import dsl

from components.submitted import placed, submitted

__all__ = ["tune"]


@dsl.container_component
def tune(
    config: str,
    space: str,
    num_trials: int,
    num_updates: int,
    run: str,
    data: str,
    root: str,
    storage: str,
    tracking: str,
    address: str,
) -> dsl.ContainerSpec:
    """Search a space around a configuration, or go on with the sweep of this name where it stopped.

    Args:
        config: name of a preset, or a YAML file that every step sees.
        space: what is searched.
        num_trials: configurations that are tried.
        num_updates: updates of each trial.
        run: name of the run that will train the best one; the sweep is named after it.
        data: URI of the dataset.
        root: folder of the runs, on a volume that all steps share.
        storage: URI of the checkpoints, s3://bucket/key; empty = root.
        tracking: URI of the MLflow server; empty = a database below root.
        address: where the work is done: local, http://HOST:8265 or kuberay.
    """
    own = ["--name", f"{run}-sweep", "--set", f"training.num_updates={num_updates}"]
    places = placed(data, root, storage, tracking)
    return submitted(address, root, "tune", config, "--space", space, "--num-trials", num_trials, *own, *places)
