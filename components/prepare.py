"""Step 1: a source becomes Arrow shards and a manifest."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["prepare"]


@dsl.container_component
def prepare(source: str, data: str) -> dsl.ContainerSpec:
    """Prepare a dataset; one that is already there is left as it is.

    Args:
        source: digits, torchvision:NAME or another source of `cdrl data prepare`.
        data: URI of the dataset, s3://bucket/key.
    """
    return dsl.ContainerSpec(image=IMAGE, command=["cdrl", "data", "prepare"], args=[source, data])
