"""Who may become champion: a finite score that is no worse than the champion's, measured in the same way."""

import math
from dataclasses import dataclass

from cdrl.evaluation.protocol import ScoreCard, comparable

__all__ = ["Decision", "decide"]


@dataclass(frozen=True)
class Decision:
    """The gate's answer and why, one sentence per reason."""

    passed: bool
    reasons: tuple[str, ...]


def decide(candidate: ScoreCard | None, champion: ScoreCard | None) -> Decision:
    """Compare a candidate's Fréchet distance (lower is better; equal passes) with the champion's, if there is one."""
    if candidate is None:
        return Decision(False, ("it has no readable score card; run `cdrl evaluate` on its run and register again",))
    fd = candidate.scores["frechet"]
    if fd is None or not math.isfinite(fd):
        return Decision(False, (f"its Fréchet distance is {fd}, not a finite number",))
    if champion is None:
        return Decision(True, (f"first champion, {candidate.protocol.metric} {fd:.4f}",))
    if differences := comparable(candidate, champion):
        why = "; ".join(differences)
        return Decision(False, (f"its score cannot be compared with the champion's, the protocols differ: {why}",))
    best = champion.scores["frechet"]
    if best is None or not math.isfinite(best):
        return Decision(True, (f"{candidate.protocol.metric} {fd:.4f}, the champion has no finite one",))
    verdict = "is no worse than" if fd <= best else "is worse than"
    return Decision(fd <= best, (f"{candidate.protocol.metric} {fd:.4f} {verdict} the champion's {best:.4f}",))
