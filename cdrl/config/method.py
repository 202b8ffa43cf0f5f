"""The sections that are the method: noise levels, nets, training and sampling, with the paper's values as defaults."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

__all__ = [
    "Count",
    "EnergyConfig",
    "InitializerConfig",
    "OptimizerConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "Section",
    "TrainingConfig",
]

Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
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


class ScheduleConfig(Section):
    """The noise levels and the Langevin step size of each (spec section 2)."""

    family: Literal["cosine", "drl_t6", "drl_t1k", "table"] = Field(
        "cosine", description="cosine in logSNR (CDRL), DRL's T6 (any T) or T1k (T = 1000), or a table of your own"
    )
    num_levels: int = Field(6, ge=1, le=1000, description="T, the number of levels")
    logsnr_max: float = Field(9.8, description="cosine: logSNR of level 0, the almost clean end")
    logsnr_min: float = Field(-5.1, description="cosine: logSNR of the pure-noise end")
    warp: PositiveFloat = Field(
        1.0, description="cosine: t/T becomes (t/T)^warp; above 1, levels gather at the clean end (ours; the paper: 1)"
    )
    logsnr: tuple[float, ...] | None = Field(
        None, description="table: the T+1 values of logSNR, strictly falling, from almost clean to pure noise"
    )
    step_scale: PositiveFloat | tuple[PositiveFloat, ...] = Field(4e-4, description="b^2, one number or one per level")
    step_growth: Literal["sigma", "constant"] = Field(
        "sigma", description="c^2 of a level: sigma_s/sigma_0 (paper), or 1/sigma_0 for all (2-D toy)"
    )
    weight_power: float = Field(
        1.0, ge=0, description="the energy loss of a level weighs sigma_ts^-power; 0 = all alike (ours; the paper: 1)"
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_family(self) -> "ScheduleConfig":
        if (self.family == "table") != (self.logsnr is not None):
            raise ValueError(f"family 'table' and the values of logsnr go together, got family {self.family!r}")
        if self.logsnr is not None and len(self.logsnr) != self.num_levels + 1:
            raise ValueError(
                f"logsnr needs num_levels + 1 = {self.num_levels + 1} values, t = 0 ... T; got {len(self.logsnr)}"
            )
        if self.family != "cosine":
            for name in ("logsnr_max", "logsnr_min", "warp"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} belongs to family 'cosine'; family {self.family!r} has its own levels")
        return self


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
    num_steps: int = Field(
        15, ge=0, description="K, Langevin steps per level; 0 = initializer alone or, without one, one normal draw"
    )
    shared_noise: bool = Field(True, description="x_t and x_s share one noise draw (variance reduction)")
    label_dropout: float = Field(0.1, ge=0, lt=1, description="probability that a label becomes null")
    energy: OptimizerConfig = OptimizerConfig(warmup_offset=0)
    initializer: OptimizerConfig = OptimizerConfig(lr=1e-5, warmup_offset=500)
    clip_norm: PositiveFloat | None = Field(1.0, description="global gradient norm of each network; null = no clipping")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the weight average, ramped by (1+n)/(10+n)")
    initializer_only_fraction: float = Field(
        0.0, ge=0, lt=1, description="first part of the budget: initializer alone, regressing the posterior mean (ours)"
    )
    anchor: float = Field(0.0, ge=0, description="weight of that regression beside the teaching loss (ours)")
    start: str | None = Field(
        None, description="checkpoint (a folder: path or URI) of a run with the same networks to begin with (ours)"
    )
    start_with: Literal["weights", "state"] = Field(
        "weights", description="state: also its optimizers and its number of updates"
    )

    @model_validator(mode="after")
    def _chunks_divide_the_batch(self) -> "TrainingConfig":
        if self.start is None and self.start_with != "weights":
            raise ValueError("start_with belongs to start; set start too or leave start_with out")
        if self.batch_size % self.num_chunks:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_chunks {self.num_chunks}")
        return self


class SamplingConfig(Section):
    """How samples are drawn from a trained ladder (spec section 7)."""

    num_steps: Steps | tuple[Steps, ...] = Field(
        15,
        description="K, Langevin steps, one number or one per level from level 0 on; 0 = initializer alone or, without "
        "one, one normal draw",
    )
    step_multiplier: PositiveFloat | tuple[PositiveFloat, ...] = Field(
        1.0, description="m, one number or one per level: the Langevin step size becomes m^2 s^2"
    )
    noise_scale: float = Field(1.0, ge=0, description="factor on the Langevin noise")
    denoise_scale: float = Field(2.0, ge=0, description="final denoise: 0 off, 1 consistent, 2 parity with the release")
    guidance: float = Field(0.0, description="w: (1+w) conditional - w unconditional")
    batch_size: int = Field(256, ge=1, description="images of one sampling batch; part of the randomness")

    @property
    def steps_text(self) -> str:
        """`8`, or `8,8,4,4,2,2` from level 0 on."""
        return _listed(self.num_steps)

    @property
    def multiplier_text(self) -> str:
        """`1`, or `1,1,1.4` from level 0 on."""
        return _listed(self.step_multiplier)


def _listed(value: float | tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in (value if isinstance(value, tuple) else (value,)))
