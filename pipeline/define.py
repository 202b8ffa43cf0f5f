"""The graph: the steps of `make demo`, one after the other."""

from itertools import pairwise

from kfp import dsl, kubernetes

from components.evaluate import evaluate
from components.prepare import prepare
from components.promote import promote
from components.register import register
from components.sample import sample
from components.train import train

__all__ = ["ROOT", "cdrl_pipeline"]

ROOT = "/runs"
"""Where every step sees the shared volume: run records, score cards and pictures. Shards and checkpoints are on S3."""

USER = 10001
STORAGE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
TRACKING_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def _place(step: dsl.PipelineTask, volume: str, cpus: int = 2) -> dsl.PipelineTask:
    """What holds for every pod: the shared volume, credentials from Secrets, an ordinary user, limits, no cache."""
    kubernetes.mount_pvc(step, pvc_name=volume, mount_path=ROOT)
    kubernetes.use_secret_as_env(step, "cdrl-storage", {key: key for key in STORAGE_KEYS}, optional=True)
    kubernetes.use_secret_as_env(step, "cdrl-tracking", {key: key for key in TRACKING_KEYS}, optional=True)
    kubernetes.set_security_context(step, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    step.set_caching_options(False)  # what a step makes is out of Kubeflow's sight
    step.set_cpu_request(str(cpus)).set_cpu_limit(str(cpus))
    return step.set_memory_request(f"{2 * cpus}Gi").set_memory_limit(f"{2 * cpus}Gi")


@dsl.pipeline(name="cdrl", description="Prepare, train, evaluate, register, promote, sample.")
def cdrl_pipeline(
    run: str,
    source: str = "digits",
    config: str = "digits",
    model: str = "digits",
    data: str = "s3://cdrl/data/digits",
    storage: str = "s3://cdrl/runs",
    tracking: str = "http://mlflow:5000",
    volume: str = "cdrl-runs",
) -> None:
    """Submit with a new name for `run` to train anew, with an old one to resume it.

    Args:
        run: name of the run.
        source: what `cdrl data prepare` reads.
        config: name of a preset.
        model: the registered name, which is `name` in the configuration.
        data: URI of the dataset.
        storage: URI of the checkpoints.
        tracking: URI of the MLflow server.
        volume: the ReadWriteMany volume claim that all steps mount; writable by user 10001.
    """
    steps = [
        _place(prepare(source=source, data=data), volume),
        _place(train(config=config, run=run, data=data, root=ROOT, storage=storage, tracking=tracking), volume, cpus=4),
        _place(evaluate(run=run, root=ROOT), volume),
        _place(register(run=run, root=ROOT), volume),
        _place(promote(model=model, version=run, tracking=tracking), volume),
        _place(sample(run=run, root=ROOT), volume),
    ]
    steps[1].set_retry(3)  # a retry resumes
    for before, after in pairwise(steps):
        after.after(before)
