"""Score a run: its checkpoint, then card and pictures in the run's folder and in its journal."""

from cdrl.config import Config
from cdrl.evaluation.evaluate import Evaluation, Progress, evaluate
from cdrl.evaluation.insight import CURVES, learning_plot
from cdrl.evaluation.protocol import ScoreCard
from cdrl.method.pairs import groups_of_levels
from cdrl.runs import RunRecord, Which
from cdrl.tracking.run import TrackedRun

__all__ = ["FOLDER", "evaluate_run", "figures"]

FOLDER = "evaluation"  # in the run's folder
PARTS = "evaluation-parts"


def evaluate_run(
    record: RunRecord, which: Which = "best", *, config: Config | None = None, progress: Progress | None = None
) -> Evaluation:
    """Score a checkpoint; keep the result in `<run folder>/evaluation/` and in MLflow.

    Args:
        config: the run's own, with changes as `evaluate` allows; default: unchanged.

    Raises:
        TrackingError: the run's tracking server is out of reach; that is found out first.
        As `evaluate`.
    """
    journal = TrackedRun.attach(record)
    result = evaluate(
        record.checkpoint(which),
        config or record.config,
        run_id=record.run_id,
        which=which,
        parts=str(record.directory / PARTS),
        progress=progress,
    )
    if (learning := learning_plot(_histories(journal, record.config))) is not None:
        result.pictures["learning"] = learning
    result.write(record.directory / FOLDER)
    journal.log_metrics(figures(result.card), result.card.step)
    journal.flush()
    journal.log_artifact(record.directory / FOLDER, FOLDER)
    journal.describe(_summary(result.card), f"{FOLDER}/samples.png")
    return result


def _histories(journal: TrackedRun, config: Config) -> dict[str, dict[int, float]]:
    """What the curves of learning show, of every pair; a metric that was not recorded is empty."""
    num_pairs = len(groups_of_levels(config.pairs, config.schedule.num_levels))
    prefixes = ["", *(f"pair_{pair}/" for pair in range(num_pairs) if num_pairs > 1)]
    names = [prefix + name for prefix in prefixes for group in CURVES.values() for name in group]
    return {name: journal.history(name) for name in names}


def figures(card: ScoreCard) -> dict[str, float]:
    """`score/frechet`, `score_error/frechet`, `score_k0/...`, `floor/...`; what was not measured is left out."""
    groups = {"score": card.scores, "score_error": card.errors, "score_k0": card.k0 or {}, "floor": card.floor}
    flat = {f"{group}/{name}": value for group, scores in groups.items() for name, value in scores.items()}
    if card.memorisation is not None:
        flat |= {"memorisation/nearer": card.memorisation.nearer, "memorisation/copies": card.memorisation.copies}
    return {name: value for name, value in flat.items() if value is not None}


def _summary(card: ScoreCard) -> str:
    """The scores in one sentence, with their protocol."""
    k0 = "" if card.k0 is None else f", {card.k0['frechet']:.3f} for the initializer alone (K = 0)"
    error = f" ± {card.errors['frechet']:.3f}" if card.errors.get("frechet") is not None else ""
    return (
        f"**{card.protocol.metric} {card.scores['frechet']:.3f}{error}** at update {card.step}{k0}, "
        f"{card.floor['frechet']:.3f} for real images. {card.protocol.describe()}"
    )
