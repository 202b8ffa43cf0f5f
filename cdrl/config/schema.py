"""The schema: one tree of frozen sections with strict keys.

Defaults are the CDRL paper's unconditional CIFAR-10 run (spec sections 6, 9, 11).
"""

import hashlib
import json
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cdrl.config.data import DataConfig
from cdrl.config.gates import GatesConfig
from cdrl.config.method import (
    Count,
    EnergyConfig,
    InitializerConfig,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    Section,
    TrainingConfig,
)
from cdrl.config.sentinel import SentinelConfig

__all__ = [
    "ClusterConfig",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "EnergyConfig",
    "EvaluationConfig",
    "GatesConfig",
    "InitializerConfig",
    "OptimizerConfig",
    "RunConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "Section",
    "SentinelConfig",
    "TrackingConfig",
    "TrainingConfig",
    "tree_digest",
]


class EvaluationConfig(Section):
    """The protocol of the scores."""

    extractor: Literal["classifier", "inception", "coordinates"] = Field(
        "inception", description="the feature net: Inception, a small net trained on the data, or the points themselves"
    )
    weights: str | None = Field(None, description="Inception weights: path or URI; default: torch-fidelity's download")
    weights_sha256: str | None = Field(None, description="expected SHA-256 of those weights")
    statistics: str | None = Field(
        None, description="where what the net saw in real images is kept: path or URI; default: data.cache"
    )
    num_samples: int = Field(50_000, ge=2, description="generated images")
    seed: int = Field(1, ge=0, description="seed of the generated images")


class ClusterConfig(Section):
    """Where the run executes. No part of the run's identity."""

    address: str | None = Field(None, description="Ray address; default: start Ray on this machine")
    num_workers: Count | tuple[Count, Count] = Field(
        1, description="Ray Train workers; [min, max] follows the machines that come and go"
    )
    use_gpu: bool = Field(False, description="one GPU per worker")
    gpu_share: float = Field(
        1.0, gt=0, le=1, description="with use_gpu: the share of a GPU of a worker; below 1 several runs share it"
    )
    max_failures: int = Field(3, ge=0, description="worker crashes that are ridden out")
    max_preemptions: int | None = Field(None, ge=0, description="lost machines that are ridden out; null = any number")
    resize_after_s: float = Field(60.0, gt=0, description="how often [min, max] workers look for more machines")
    hang_after_s: float = Field(
        900.0, gt=0, description="a worker that makes no progress for so long is named, killed and started again"
    )

    @field_validator("num_workers")
    @classmethod
    def _in_order(cls, num_workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(num_workers, tuple) and num_workers[0] > num_workers[1]:
            raise ValueError("expected [min, max] with min <= max")
        return num_workers

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The most workers that the run takes."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


Switch = Literal["auto", "always", "never"]
Precision = Literal["auto", "fp32", "tf32", "fp16", "bf16"]


class ComputeConfig(Section):
    """How the same mathematics is computed. No part of the run's identity; `auto` looks at the device."""

    formulation: Literal["fast", "plain"] = Field(
        "fast", description="prepared weights and a fused optimizer, or as it is written"
    )
    chain_precision: Precision = Field("auto", description="of a chain's gradient; auto: fp16 on Hopper, else tf32")
    loss_precision: Precision = Field("auto", description="of the positive and negative passes; auto: tf32 on CUDA")
    initializer_precision: Literal["auto", "fp32", "tf32", "bf16"] = Field("auto", description="auto: tf32 on CUDA")
    compile: Switch = Field("auto", description="compile the energy net's value and gradient; auto: on CUDA")
    cuda_graph: Switch = Field("auto", description="a chain's step as one CUDA graph; auto: on CUDA")
    channels_last: bool = Field(True, description="memory format of convolutions")
    fold_pooling: bool = Field(True, description="average pooling before the convolution that it follows")
    images_on_device: Switch = Field("auto", description="keep training images there; auto: up to 2 GB on CUDA")
    chunkwise: Switch = Field(
        "auto",
        description="chunk by chunk, for the same bits with any number of workers; auto: on CPUs that share a pair",
    )

    @model_validator(mode="after")
    def _plain_has_no_switches(self) -> "ComputeConfig":
        usual = ComputeConfig.model_fields
        switched = [name for name in usual if getattr(self, name) != usual[name].default]
        of_fast = [name for name in switched if name not in ("formulation", "images_on_device", "chunkwise")]
        if self.formulation == "plain" and of_fast:
            raise ValueError(f"formulation plain has no {', '.join(of_fast)}; leave out what belongs to fast")
        return self


class RunConfig(Section):
    """Where a run lives and how often it speaks. No part of the run's identity."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="folder of the run; default: name and identity"
    )
    root: str = Field("runs", description="local folder of runs, pictures and the default tracking database")
    storage: str | None = Field(None, description="where checkpoints go: a path or s3://; default: root")
    log_every: int = Field(50, ge=1, description="updates between metric records")
    sample_every: int = Field(5_000, ge=1, description="updates between sample grids")
    checkpoint_every: int = Field(5_000, ge=1, description="updates between checkpoints")
    keep_last: int = Field(2, ge=1, description="newest checkpoints that are kept, beside the best one")
    keep_every: int | None = Field(None, ge=1, description="also keep those after a multiple of so many updates")
    storage_patience_s: float = Field(
        600.0, ge=0, description="how long an outage of S3 is waited for before the run ends"
    )
    score_samples: int = Field(0, ge=0, description="images of the quick score that picks the best checkpoint; 0 = off")


class TrackingConfig(Section):
    """The MLflow server. No part of the run's identity."""

    uri: str | None = Field(None, description="tracking URI; default: SQLite under run.root")
    experiment: str = Field("cdrl", description="MLflow experiment")

    @field_validator("uri")
    @classmethod
    def _holds_no_password(cls, uri: str | None) -> str | None:
        if uri and urlsplit(uri).password:
            # the message shows the user what to do, not the password
            raise PydanticCustomError(
                "secret", "holds a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return uri


class Config(Section):
    """One run, whole. `name` becomes the registered model's name."""

    name: str = Field(..., pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="lower-case letters, digits and dashes")
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    energy: EnergyConfig = EnergyConfig()
    initializer: InitializerConfig | None = InitializerConfig()
    pairs: Literal["shared", "per_level"] | tuple[tuple[int, ...], ...] = Field(
        "shared", description="shared: one pair; per_level: one each; or groups of levels such as [[0,1],[2,3,4,5]]"
    )
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gates: GatesConfig = GatesConfig()
    cluster: ClusterConfig = ClusterConfig()
    compute: ComputeConfig = ComputeConfig()
    sentinel: SentinelConfig = SentinelConfig()
    run: RunConfig = RunConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> "Config":
        levels = list(range(self.schedule.num_levels))
        if isinstance(self.pairs, tuple) and sorted(level for group in self.pairs for level in group) != levels:
            raise ValueError(f"pairs {self.pairs} must hold each level 0 ... {levels[-1]} exactly once")
        for section, name in (("schedule", "step_scale"), ("sampling", "num_steps"), ("sampling", "step_multiplier")):
            value = getattr(getattr(self, section), name)
            if isinstance(value, tuple) and len(value) != len(levels):
                raise ValueError(f"{section}.{name} has {len(value)} values for {len(levels)} levels")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the whole resolved configuration."""
        return tree_digest(self.model_dump(mode="json"))

    @property
    def identity(self) -> dict[str, Any]:
        """The part that decides the trained weights: a run resumes only under the same identity."""
        whole = self.model_dump(mode="json")
        parts = {key: whole[key] for key in ("name", "data", "schedule", "energy", "initializer", "pairs", "training")}
        parts["data"] = self.data.identity
        # what a schedule does not use decides nothing
        unused = {"logsnr": None, "warp": 1.0, "weight_power": 1.0, "start": None, "start_with": "weights"}.items()
        for name in ("schedule", "training"):
            parts[name] = {key: value for key, value in parts[name].items() if (key, value) not in unused}
        return parts

    @property
    def run_id(self) -> str:
        """`run.name`, or `name-` + 8 hex digits of the identity: the same command finds its run again."""
        return self.run.name or f"{self.name}-{self.identity_digest[:8]}"

    @property
    def identity_digest(self) -> str:
        """SHA-256 (hex) of the identity."""
        return tree_digest(self.identity)


def tree_digest(tree: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a tree of plain values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
