"""Step: a source becomes Arrow shards and a manifest."""

from kfp import dsl

from components.submitted import submitted

__all__ = ["prepare"]


@dsl.container_component
def prepare(source: str, data: str, workers: int, max_bad: int, root: str, address: str) -> dsl.ContainerSpec:
    """Prepare a dataset; one that is already there with the same digests of its sources is left as it is.

    Args:
        source: digits, torchvision:NAME or another source of `cdrl data prepare`.
        data: URI of the dataset, s3://bucket/key.
        workers: Ray workers that decode; 0 = one process.
        max_bad: rows that may be left out because they cannot be read.
        root: folder of the runs, on a volume that all steps share.
        address: where the work is done: local, http://HOST:8265 or kuberay.
    """
    return submitted(address, root, "data", "prepare", source, data, "--workers", workers, "--max-bad", max_bad)
