"""The section of the gates before the registry's champion."""

from pydantic import Field

from cdrl.config.method import Section

__all__ = ["GatesConfig"]


class GatesConfig(Section):
    """Who may become champion. No part of the run's identity."""

    margin: float = Field(
        0.0, ge=0, description="a Fréchet distance that is worse by up to this share of the champion's passes"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="at which a comparison counts as clear")
    max_sets: int = Field(
        0, ge=0, description="sets of further images drawn of both models while it is not clear; 0 = the cards decide"
    )
    min_label_accuracy: float | None = Field(None, ge=0, le=1, description="lowest label accuracy; null = any")
    max_memorised: float | None = Field(
        None,
        ge=0,
        le=1,
        description="highest probability that a sample is nearer to a training image than held-out images are (0.5 = "
        "as fresh data, 1 = copies); null = any",
    )
    min_images_per_s: float | None = Field(
        None, gt=0, description="slowest sampling, as the score card measured it; null = any"
    )
    history: str | None = Field(
        None,
        description="folder or s3:// of the promotions, read when a model is registered first; default: beside the "
        "SQLite database, else registry/ in run.storage or run.root",
    )
