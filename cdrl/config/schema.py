"""The schema: one tree of frozen sections with strict keys.

Defaults are the CDRL paper's unconditional CIFAR-10 run (spec sections 6, 9, 11).
"""

import hashlib
import json
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

__all__ = [
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EnergyConfig",
    "EvaluationConfig",
    "InitializerConfig",
    "OptimizerConfig",
    "RunConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "Section",
    "TrackingConfig",
    "TrainingConfig",
    "tree_digest",
]


Count = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("expected no true or false here")
        return value


class DataConfig(Section):
    """The prepared dataset that a run reads."""

    uri: str = Field("runs/data/cifar10", description="directory of shards and manifest: a path, file:// or s3://")
    shape: tuple[Count, ...] = Field((3, 32, 32), description="(channels, height, width), or (dims,) for points")
    num_classes: int = Field(0, ge=0, description="classes of the label; 0 = unconditional")
    flip: bool = Field(True, description="mirror images left-right with probability 1/2")
    cache: str | None = Field(None, description="where shards from S3 are kept; default: cdrl-cache in the temp folder")

    @field_validator("shape")
    @classmethod
    def _image_or_point(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) not in (1, 3):
            raise ValueError("expected [channels, height, width] or [dims]")
        return shape


class ScheduleConfig(Section):
    """The noise levels and the Langevin step size of each (spec section 2)."""

    family: Literal["cosine", "drl_t6"] = Field("cosine", description="cosine in logSNR (CDRL) or DRL's T6")
    num_levels: int = Field(6, ge=1, le=1000, description="T, the number of levels")
    logsnr_max: float = Field(9.8, description="logSNR of level 0, the almost clean end")
    logsnr_min: float = Field(-5.1, description="logSNR of the pure-noise end")
    step_scale: PositiveFloat | tuple[PositiveFloat, ...] = Field(4e-4, description="b^2, one number or one per level")
    step_growth: Literal["sigma", "constant"] = Field(
        "sigma", description="c^2 of a level: sigma_s/sigma_0 (paper), or 1/sigma_0 for all (2-D toy)"
    )


class EnergyConfig(Section):
    """The energy net f (spec section 9.1)."""

    kind: Literal["conv", "mlp"] = Field("conv", description="residual conv net for images, MLP for points")
    width: int = Field(128, ge=2, description="channels of the first stage")
    multipliers: tuple[Count, ...] = Field(
        (1, 2, 2, 2), min_length=1, description="channels per stage, in units of width"
    )
    num_blocks: int = Field(8, ge=1, description="residual blocks per stage")
    patch: int = Field(1, ge=1, description="pixel-unshuffle factor before the first convolution")
    embedding_width: int | None = Field(None, description="width of the level embedding; default 4 x width")
    base_measure: float = Field(
        0.0, ge=0, description="weight of a standard normal base measure on x_s (ours; the paper has none)"
    )


class InitializerConfig(Section):
    """The initializer g, a residual U-Net (spec section 9.2)."""

    kind: Literal["unet", "mlp"] = Field("unet", description="U-Net for images, MLP for points")
    width: int = Field(64, ge=2, description="channels of the first resolution")
    multipliers: tuple[Count, ...] = Field(
        (1, 1, 1), min_length=1, description="channels per resolution, in units of width"
    )
    num_blocks: int = Field(3, ge=1, description="residual blocks per resolution")
    attention_resolutions: tuple[int, ...] = Field((16, 8), description="feature-map sides that get attention")
    groups: int = Field(32, ge=1, description="groups of the group normalisation")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout probability while training")
    patch: int = Field(1, ge=1, description="pixel-unshuffle factor before the first convolution")


class OptimizerConfig(Section):
    """Adam with linear warm-up, then constant or cosine decay (spec section 11)."""

    lr: float = Field(1e-4, gt=0, description="learning rate after warm-up")
    warmup_updates: int = Field(10_000, ge=1, description="updates of linear warm-up")
    warmup_offset: int = Field(0, ge=0, description="updates by which the warm-up is already advanced at the start")
    final_fraction: float = Field(1.0, gt=0, le=1, description="cosine decay to this fraction of lr; 1 = constant")


class TrainingConfig(Section):
    """One run's updates (spec section 6; the last three are ours, for short budgets)."""

    num_updates: int = Field(400_000, ge=1, description="optimizer updates of each pair")
    batch_size: int = Field(256, ge=1, description="images of the global batch of a pair")
    num_chunks: int = Field(8, ge=1, description="equal pieces of the batch with randomness of their own")
    seed: int = Field(5, ge=0, description="decides initial weights, data order, levels and noise")
    num_steps: int = Field(15, ge=0, description="K, Langevin steps per level")
    shared_noise: bool = Field(True, description="x_t and x_s share one noise draw (variance reduction)")
    label_dropout: float = Field(0.1, ge=0, lt=1, description="probability that a label becomes null")
    energy: OptimizerConfig = OptimizerConfig(warmup_offset=0)
    initializer: OptimizerConfig = OptimizerConfig(lr=1e-5, warmup_offset=500)
    clip_norm: float = Field(1.0, gt=0, description="global gradient norm of each network")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the weight average, ramped by (1+n)/(10+n)")
    initializer_only_fraction: float = Field(
        0.0, ge=0, lt=1, description="first part of the budget: initializer alone, regressing the posterior mean (ours)"
    )
    anchor: float = Field(0.0, ge=0, description="weight of that regression beside the teaching loss (ours)")

    @model_validator(mode="after")
    def _chunks_divide_the_batch(self) -> "TrainingConfig":
        if self.batch_size % self.num_chunks:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_chunks {self.num_chunks}")
        return self


class SamplingConfig(Section):
    """How samples are drawn from a trained ladder (spec section 7)."""

    num_steps: int = Field(15, ge=0, description="K, Langevin steps per level; 0 = initializer alone")
    step_multiplier: float = Field(1.0, gt=0, description="m: the Langevin step size becomes m^2 s^2")
    noise_scale: float = Field(1.0, ge=0, description="factor on the Langevin noise")
    denoise_scale: float = Field(2.0, ge=0, description="final denoise: 0 off, 1 consistent, 2 parity with the release")
    guidance: float = Field(0.0, description="w: (1+w) conditional - w unconditional")
    batch_size: int = Field(256, ge=1, description="images of one sampling batch; part of the randomness")


class EvaluationConfig(Section):
    """The protocol of the scores."""

    extractor: Literal["classifier", "inception", "coordinates"] = Field(
        "inception", description="the feature net: Inception, a small net trained on the data, or the points themselves"
    )
    weights: str | None = Field(None, description="Inception weights: path or URI; default: torch-fidelity's download")
    weights_sha256: str | None = Field(None, description="expected SHA-256 of those weights")
    num_samples: int = Field(50_000, ge=2, description="generated images")
    seed: int = Field(1, ge=0, description="seed of the generated images")


class ClusterConfig(Section):
    """Where the run executes. No part of the run's identity."""

    address: str | None = Field(None, description="Ray address; default: start Ray on this machine")
    num_workers: int = Field(1, ge=1, description="Ray Train workers")
    use_gpu: bool = Field(False, description="one GPU per worker")
    max_failures: int = Field(3, ge=0, description="worker crashes that are ridden out")


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
    cluster: ClusterConfig = ClusterConfig()
    run: RunConfig = RunConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> "Config":
        levels = list(range(self.schedule.num_levels))
        if isinstance(self.pairs, tuple) and sorted(level for group in self.pairs for level in group) != levels:
            raise ValueError(f"pairs {self.pairs} must hold each level 0 ... {levels[-1]} exactly once")
        scale = self.schedule.step_scale
        if isinstance(scale, tuple) and len(scale) != len(levels):
            raise ValueError(f"schedule.step_scale has {len(scale)} values for {len(levels)} levels")
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
        parts["data"] = {key: value for key, value in parts["data"].items() if key not in ("uri", "cache")}
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
