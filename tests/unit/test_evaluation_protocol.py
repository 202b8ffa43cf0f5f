"""A figure and its protocol: what makes two figures comparable."""

import pytest
from pydantic import ValidationError

from cdrl.config import SamplingConfig
from cdrl.evaluation.protocol import Protocol, ScoreCard, Scores, comparable

SCORES: Scores = {"frechet": 1.25, "precision": 0.5, "recall": 0.75, "label_accuracy": None}
PROTOCOL = Protocol(
    metric="FD (digits-cnn)",
    extractor="cdrl-classifier/features",
    extractor_digest="ab" * 32,
    judge_digest=None,
    judge_accuracy=None,
    manifest_digest="cd" * 32,
    num_reference=1297,
    num_generated=4000,
    neighbours=3,
    max_neighbour_rows=10_000,
    labels="none",
    sampling=SamplingConfig(num_steps=8),
    seed=1,
)


def card(protocol: Protocol = PROTOCOL, model_digest: str = "ef" * 32) -> ScoreCard:
    return ScoreCard(
        protocol=protocol,
        scores=SCORES,
        k0=None,
        k0_sampling=None,
        floor=SCORES,
        floor_of="nothing",
        num_floor=500,
        model_digest=model_digest,
        config_digest="01" * 32,
        step=10,
        seconds=2.0,
        images_per_s=2000.0,
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"metric": "FID"},
        {"extractor_digest": "00" * 32},
        {"manifest_digest": "00" * 32},
        {"num_generated": 4001},
        {"num_reference": 1296},
        {"labels": "as reference"},
        {"seed": 2},
        {"judge_digest": "00" * 32},
    ],
)
def test_a_change_of_any_point_makes_scores_incomparable(changed: dict[str, object]) -> None:
    other = PROTOCOL.model_copy(update=changed)
    assert other.digest != PROTOCOL.digest
    (difference,) = comparable(card(), card(other))
    assert difference.startswith(f"{next(iter(changed))}: ")


@pytest.mark.parametrize("name, value", [("num_steps", 9), ("denoise_scale", 0.0), ("guidance", 0.5)])
def test_a_change_of_sampling_makes_scores_incomparable(name: str, value: float) -> None:
    sampling = PROTOCOL.sampling.model_copy(update={name: value})
    other = PROTOCOL.model_copy(update={"sampling": sampling})
    assert other.digest != PROTOCOL.digest
    before = getattr(PROTOCOL.sampling, name)
    assert comparable(card(), card(other)) == [f"sampling.{name}: {before!r} against {value!r}"]


def test_the_model_is_no_part_of_the_protocol() -> None:
    assert comparable(card(), card(model_digest="00" * 32)) == []


def test_a_card_survives_json() -> None:
    once = ScoreCard.model_validate_json(card().model_dump_json())
    assert once == card().model_copy(update={"created": once.created})
    assert once.protocol.digest == PROTOCOL.digest


def test_a_protocol_knows_no_other_points() -> None:
    with pytest.raises(ValidationError, match="ema"):
        Protocol(**{**PROTOCOL.model_dump(), "ema": False})
    with pytest.raises(ValidationError, match="nfe"):
        Protocol(**{**PROTOCOL.model_dump(), "nfe": 48})


def test_it_is_told_in_one_line() -> None:
    text = PROTOCOL.describe()
    assert "\n" not in text
    for part in ("FD (digits-cnn)", "4000 generated", "1297 real", "K = 8", "guidance 0", PROTOCOL.digest[:8]):
        assert part in text
