"""The data section: which prepared dataset a run reads, and how it comes to the machine."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from cdrl.config.method import Count, Section

__all__ = ["DataConfig"]

STREAM = ("stream", "window")  # what decides the order of a streamed split


class DataConfig(Section):
    """The prepared dataset that a run reads."""

    uri: str = Field("runs/data/cifar10", description="directory of shards and manifest: a path, file:// or s3://")
    digest: str | None = Field(
        None, pattern=r"^[0-9a-f]{12,64}$", description="of the manifest, 12 hex digits or more; null: what is there"
    )
    shape: tuple[Count, ...] = Field((3, 32, 32), description="(channels, height, width), or (dims,) for points")
    num_classes: int = Field(0, ge=0, description="classes of the label; 0 = unconditional")
    flip: bool = Field(True, description="mirror images left-right with probability 1/2")
    cache: str | None = Field(None, description="where shards from S3 are kept; default: cdrl-cache in the temp folder")
    cache_bytes: int | None = Field(
        None, ge=1, description="room for shards in the cache; the least recently used ones give way; null: no bound"
    )
    stream: bool = Field(False, description="keep only the shards of two windows at hand: data larger than the disk")
    window: int = Field(8, ge=1, description="shards whose rows are mixed with each other when streaming")

    @field_validator("shape")
    @classmethod
    def _image_or_point(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) not in (1, 3):
            raise ValueError("expected [channels, height, width] or [dims]")
        return shape

    @model_validator(mode="after")
    def _only_a_stream_has_windows(self) -> "DataConfig":
        if not self.stream and self.window != DataConfig.model_fields["window"].default:
            raise ValueError("window belongs to stream; set stream too or leave window out")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides the trained weights; the order of a stream does, where the shards come from does not."""
        decisive = ("shape", "num_classes", "flip", *(STREAM if self.stream else ()))
        whole = self.model_dump(mode="json")
        return {key: whole[key] for key in decisive}
