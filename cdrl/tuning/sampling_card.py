"""What a search of sampling settings found: the ranking with its protocols, and the choice."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from cdrl.config import SamplingConfig
from cdrl.evaluation.protocol import Scores, figure
from cdrl.runs import RunRecord, Which
from cdrl.tuning.sampling import Search, Searched
from cdrl.tuning.sampling_candidate import Candidate, Difference, pareto_front
from cdrl.tuning.sampling_space import plainest

__all__ = ["Row", "SearchCard", "setting_text"]


class Row(BaseModel):
    """One setting of the ranking.

    Attributes:
        setting: for people.
        difference: of its Fréchet distance from that of the run's own setting; None where it failed.
        is_within: as good as that.
        on_front, on_curve: no other is both cheaper and better; differs from the run's own in K alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    setting: str
    candidate: Candidate
    difference: Difference | None
    is_within: bool
    on_front: bool = False
    on_curve: bool = False


class SearchCard(BaseModel):
    """A search: its rows, those within the error bar first and the cheapest of them on top, then the others by score.

    Attributes:
        own: the run's own setting.
        confirmed: with more images of a fresh seed: the run's own setting, then what was tried.
        chosen: the cheapest that kept within the error bar there; None: the run's own setting stays.
        seconds_in_turns: of an image, by setting: the run's own and the chosen one, drawn in turns.
        floor, floor_errors, floor_of, num_floor: what real images get, which ones, and how many.
        summary: the result in one line.
        created: UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    which: Which
    step: int
    model_digest: str
    config_digest: str
    own: Row
    rows: tuple[Row, ...]
    confirmed: tuple[Row, ...]
    chosen: Row | None
    seconds_in_turns: dict[str, float]
    floor: Scores
    floor_errors: Scores
    floor_of: str
    num_floor: int
    summary: str
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of(cls, record: RunRecord, search: Search, found: Searched) -> "SearchCard":
        """The card of a search of a run."""
        num_levels = search.config.schedule.num_levels
        front = pareto_front(found.candidates)
        rows = [_row(each, found.candidates[0], front, num_levels) for each in found.candidates]
        confirmed = [_row(each, found.confirmed[0], [], num_levels) for each in found.confirmed]
        chosen = None if found.chosen is None else confirmed[found.confirmed.index(found.chosen)]
        in_turns = {row.setting: s for row, s in zip([confirmed[0], chosen], found.turns.seconds, strict=False) if row}
        return cls(
            run_id=record.run_id,
            which=search.which,
            own=rows[0],
            rows=tuple(sorted(rows, key=_place)),
            confirmed=tuple(confirmed),
            chosen=chosen,
            seconds_in_turns=in_turns,
            summary=_summary(confirmed[0], chosen, in_turns, len(confirmed) - 1),
            **found.scorer.provenance,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """What the run's record gets: the confirmed figures of the chosen setting and of the run's own."""
        own = self.confirmed[0].candidate
        best = own if self.chosen is None else self.chosen.candidate
        return {
            "sampling_search/frechet": best.frechet,
            "sampling_search/frechet_error": best.error,
            "sampling_search/own_frechet": own.frechet,
            "sampling_search/speedup": _speedup(self.confirmed[0], self.chosen, self.seconds_in_turns),
            "sampling_search/gradients": float(best.gradients),
            "sampling_search/own_gradients": float(own.gradients),
        }


def setting_text(sampling: SamplingConfig, own: SamplingConfig) -> str:
    """`K = 2, m = 2`, and what else differs from the run's own setting."""
    texts = [f"K = {sampling.steps_text}", f"m = {sampling.multiplier_text}"]
    texts += [f"denoise x{sampling.denoise_scale:g}"] if sampling.denoise_scale != own.denoise_scale else []
    texts += [f"w = {sampling.guidance_text}"] if sampling.guidance != own.guidance else []
    return ", ".join(texts)


def _row(candidate: Candidate, own: Candidate, front: list[Candidate], num_levels: int) -> Row:
    difference, sampling = Difference.of(candidate, own), candidate.sampling
    in_k_alone = plainest(own.sampling.model_copy(update={"num_steps": sampling.num_steps}), num_levels)
    return Row(
        setting=setting_text(sampling, own.sampling),
        candidate=candidate.model_copy(update={"deviations": ()}),  # they stay in the file of candidates
        difference=difference,
        is_within=difference is not None and difference.is_within,
        on_front=candidate in front,
        on_curve=isinstance(sampling.num_steps, int) and plainest(sampling, num_levels) == in_k_alone,
    )


def _place(row: Row) -> tuple[bool, float, float]:
    first = row.candidate.gradients if row.is_within else row.candidate.frechet
    return (not row.is_within, first, row.candidate.frechet)


def _summary(own: Row, chosen: Row | None, seconds: dict[str, float], num_tried: int) -> str:
    protocol = own.candidate.protocol
    if chosen is None:
        tried = f"; {num_tried} were tried with {protocol.num_generated} images" if num_tried else ""
        kept = f"{protocol.metric} {_figure(own)} at {own.setting}"
        return f"no cheaper setting kept within the error bar of the run's own: {kept}{tried}"
    change = chosen.difference or Difference(value=0.0, error=0.0)
    gap = f"{'higher' if change.value > 0 else 'lower'} by {figure(abs(change.value), change.error)}"
    fewer = f"{chosen.candidate.gradients} gradients of f an image instead of {own.candidate.gradients}"
    return (
        f"{chosen.setting}: {_speedup(own, chosen, seconds):.1f}x faster, {protocol.metric} {_figure(chosen)} beside "
        f"{_figure(own)} at {own.setting}, {gap}; {fewer}; {protocol.num_generated} images of a fresh seed each"
    )


def _speedup(own: Row, chosen: Row | None, seconds: dict[str, float]) -> float:
    return 1.0 if chosen is None else seconds[own.setting] / seconds[chosen.setting]


def _figure(row: Row) -> str:
    return figure(row.candidate.frechet, row.candidate.error)
