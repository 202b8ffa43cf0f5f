"""Who may become champion: a score no worse than the champion's, measured in the same way, and some thresholds.

The Fréchet distances of a candidate and the champion differ by luck, too. A comparison is clear where its error bar
lies on one side of what is allowed; where it is not, further sets of images can make it clear (`further`), and where
they do not either, the figure itself decides and the verdict says that it was not clear.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from cdrl.config import GatesConfig
from cdrl.evaluation.protocol import ScoreCard, comparable

__all__ = ["Comparison", "Decision", "compare", "decide"]


@dataclass(frozen=True)
class Decision:
    """The gates' answer and why, one sentence per reason.

    Attributes:
        is_clear: whether more images could not change it.
    """

    passed: bool
    reasons: tuple[str, ...]
    is_clear: bool = True


@dataclass(frozen=True)
class Comparison:
    """The candidate's Fréchet distance minus the champion's.

    Attributes:
        difference: mean over the sets of images.
        half_width: of its error bar; None where nothing tells it.
        allowed: the largest difference that passes.
        num_sets: sets of images of each model.
    """

    difference: float
    half_width: float | None
    allowed: float
    num_sets: int

    @property
    def passed(self) -> bool:
        """Whether the candidate is no worse than allowed."""
        return self.difference <= self.allowed

    @property
    def is_clear(self) -> bool:
        """Whether the error bar lies on one side of what is allowed."""
        return self.half_width is not None and abs(self.difference - self.allowed) > self.half_width

    def describe(self, confidence: float) -> str:
        """The difference with its error bar."""
        sets = "" if self.num_sets == 1 else f" over {self.num_sets} sets of images"
        if self.half_width is None:
            bar = ", without an error bar: the score cards hold none"
        else:
            bar = f" ± {self.half_width:.4f} ({confidence:.0%}), {'clear' if self.is_clear else 'not clear'}"
        return f"difference {self.difference:+.4f}{bar}{sets}, allowed {self.allowed:+.4f}"


def decide(
    candidate: ScoreCard | None,
    champion: ScoreCard | None,
    gates: GatesConfig = GatesConfig(),  # noqa: B008 - frozen
    further: Sequence[float] = (),
) -> Decision:
    """Ask every gate.

    Args:
        champion: None if there is none.
        further: differences, as in `Comparison`, of further sets of as many images as the cards have.
    """
    if candidate is None:
        return Decision(False, ("it has no readable score card; run `cdrl evaluate` on its run and register again",))
    refusals = tuple(_below_thresholds(candidate, gates))
    fd = candidate.scores["frechet"]
    if fd is None or not math.isfinite(fd):
        return Decision(False, (f"its Fréchet distance is {fd}, not a finite number", *refusals))
    metric = candidate.protocol.metric
    if champion is None:
        return Decision(not refusals, (f"first champion, {metric} {fd:.4f}", *refusals))
    if differences := comparable(candidate, champion):
        why = f"its score cannot be compared with the champion's, the protocols differ: {'; '.join(differences)}"
        return Decision(False, (why, *refusals))
    best = champion.scores["frechet"]
    if best is None or not math.isfinite(best):
        return Decision(not refusals, (f"{metric} {fd:.4f}, the champion has no finite one", *refusals))
    found = compare(candidate, champion, gates, further)
    verdict = "is no worse than" if found.passed else "is worse than"
    if found.passed and fd > best:
        verdict = "is not worse by more than allowed than"
    reason = f"{metric} {fd:.4f} {verdict} the champion's {best:.4f}"
    bar = f" ({found.describe(gates.confidence)})" if fd != best or further else ""
    return Decision(found.passed and not refusals, (reason + bar, *refusals), bool(refusals) or found.is_clear)


def compare(
    candidate: ScoreCard, champion: ScoreCard, gates: GatesConfig, further: Sequence[float] = ()
) -> Comparison:
    """Compare two cards of one protocol with finite Fréchet distances.

    The error bar is one-sided and comes from the sets themselves (Student's t) as soon as there are two, before that
    from the cards. The decision is looked at up to 1 + `gates.max_sets` times, and the chance to be wrong, 1 -
    `gates.confidence`, is shared among these looks.
    """
    fd, best = float(candidate.scores["frechet"] or 0), float(champion.scores["frechet"] or 0)
    differences = [fd - best, *further]
    allowed, looks = gates.margin * best, 1 + gates.max_sets
    at = 1 - (1 - gates.confidence) / looks
    half_width = None
    if further:
        from scipy.stats import t  # takes half a second

        half_width = float(t.ppf(at, len(further))) * stdev(differences) / math.sqrt(len(differences))
    elif (errors := (_error(candidate), _error(champion))) and None not in errors:
        half_width = NormalDist().inv_cdf(at) * math.hypot(*(error for error in errors if error is not None))
    return Comparison(fmean(differences), half_width, allowed, len(differences))


def _below_thresholds(card: ScoreCard, gates: GatesConfig) -> Iterator[str]:
    if gates.min_label_accuracy is not None:
        found = card.scores["label_accuracy"]
        if found is None:
            yield "gates.min_label_accuracy is set, but its score card has no label accuracy"
        elif found < gates.min_label_accuracy:
            yield f"its label accuracy {found:.4f} is below gates.min_label_accuracy = {gates.min_label_accuracy:g}"
    if gates.max_memorised is not None:
        memorised = card.memorisation
        if memorised is None:
            yield "gates.max_memorised is set, but its score card has no check for memorisation"
        elif memorised.nearer > gates.max_memorised:
            yield (
                f"its samples lie nearer to a training image than held-out images do with probability "
                f"{memorised.nearer:.3f}, above gates.max_memorised = {gates.max_memorised:g}"
            )
    if gates.min_images_per_s is not None and card.images_per_s < gates.min_images_per_s:
        yield f"it draws {card.images_per_s:g} images/s, below gates.min_images_per_s = {gates.min_images_per_s:g}"


def _error(card: ScoreCard) -> float | None:
    """One standard error of the Fréchet distance; None in a card that has no error bars."""
    return card.errors.get("frechet")
