"""Search the settings of a trained model's sampler: as good as the run's own, and cheaper.

Optuna (TPE, two objectives: gradients of f and Fréchet distance) proposes, beside the points where the search begins.
A search is a function of its arguments; what was scored before is looked up. So the same command goes on where it
stopped. The cheapest settings within the error bar of the run's own are then tried with more images of a fresh seed,
since the best of many is partly luck.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState, create_trial

from cdrl.config import Config, SamplingConfig
from cdrl.config.resolve import override
from cdrl.errors import ConfigError, DataError
from cdrl.evaluation.scorer import Progress, Scorer
from cdrl.method.sampling import num_gradients
from cdrl.runs import RunRecord, Which
from cdrl.tuning.sampling_candidate import Book, Candidate, cheaper_and_as_good
from cdrl.tuning.sampling_space import SamplingSpace
from cdrl.tuning.sampling_start import starting_points
from cdrl.tuning.sampling_turns import Turns, in_turns

__all__ = ["FOLDER", "Search", "Searched", "sampling_search"]

FOLDER = "sampling-search"  # in the run's folder
PARTS = "parts"
MAX_REPEATS = 100  # proposals one after the other that are all known: the space is used up
MAX_CONFIRMED = 5


@dataclass(frozen=True)
class Search:
    """What is searched, and how long.

    Attributes:
        config: the run's, with changes as `evaluate` allows; its sampling is the run's own setting.
        num_proposals: settings beside those where the search begins.
        num_images: drawn at each setting.
        num_confirming: drawn to confirm, with the seed after `evaluation.seed`.
    """

    config: Config
    space: SamplingSpace
    num_proposals: int
    num_images: int
    num_confirming: int
    which: Which = "best"


@dataclass(frozen=True)
class Searched:
    """All candidates, and what became of those that were tried again.

    Attributes:
        candidates: in the order of the search, the run's own setting first.
        confirmed: the run's own setting with more images, then the settings that were tried, cheapest first.
        chosen: the first of these that kept within the error bar; None where none did.
        turns: the run's own setting and, if there is one, the chosen one in turns.
        scorer: that of the confirmation.
    """

    candidates: list[Candidate]
    confirmed: list[Candidate]
    chosen: Candidate | None
    turns: Turns
    scorer: Scorer


def sampling_search(record: RunRecord, search: Search, progress: Progress | None = None) -> Searched:
    """Score settings and choose one.

    Raises:
        ConfigError: the run has no checkpoint; too few images for its metric; as `evaluate`.
        TrackingError: a damaged line among earlier candidates.
        DataError, StorageError, RegistryError: as `evaluate`.
    """
    ref, folder, config = record.checkpoint(search.which), record.directory / FOLDER, search.config
    if search.num_confirming <= search.num_images:
        raise ConfigError(
            f"expected more images to confirm ({search.num_confirming}) than at each setting ({search.num_images})"
        )
    book, report = Book(folder), progress or (lambda what, done, total: None)
    candidates: list[Candidate] = []
    start = starting_points(config.sampling, search.space, config.schedule.num_levels)
    total = len(start) + search.num_proposals
    report("settings", 0, total)
    with _scoring(ref, config, search.num_images, 0, book, folder, report) as first:
        for sampling in start:
            candidates.append(first(sampling))
            report("settings", len(candidates), total)
        for candidate in _proposed(search, first, candidates):
            candidates.append(candidate)
            report("settings", len(candidates), total)
    report("settings", total, total)  # also where the space is used up
    with _scoring(ref, config, search.num_confirming, 1, book, folder, report) as second:
        own, chosen = second(config.sampling), None
        confirmed = [own]
        for candidate in cheaper_and_as_good(candidates, candidates[0])[:MAX_CONFIRMED]:
            again = second(candidate.sampling)
            confirmed.append(again)
            if cheaper_and_as_good([again], own):
                chosen = again
                break
        compared = [own.sampling, *([chosen.sampling] if chosen else [])]
        turns = in_turns(second.scorer, compared)
    return Searched(candidates, confirmed, chosen, turns, second.scorer)


def _proposed(search: Search, scored: "_Scored", start: list[Candidate]) -> Iterator[Candidate]:
    """New candidates one by one, each with all before it in mind."""
    own, num_levels = search.config.sampling, search.config.schedule.num_levels
    distributions = search.space.distributions(num_levels)
    known = {each.sampling.model_dump_json(): each for each in start}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=search.config.evaluation.seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for each in start:
        params = search.space.params(each.sampling, own, num_levels)
        if params is not None and not each.failure:
            values = [float(each.gradients), each.frechet]
            study.add_trial(create_trial(params=params, distributions=distributions, values=values))
    num_new = num_repeated = 0
    while num_new < search.num_proposals and num_repeated < MAX_REPEATS:
        trial = study.ask(distributions)
        sampling = search.space.sampling(trial.params, own, num_levels)
        key = sampling.model_dump_json()
        new = key not in known
        candidate = known[key] = scored(sampling) if new else known[key]
        if candidate.failure:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, [float(candidate.gradients), candidate.frechet])
        if new:
            num_new, num_repeated = num_new + 1, 0
            yield candidate
        else:
            num_repeated += 1


class _Scored:
    """Settings with their scores, for one number of images and one seed."""

    def __init__(self, scorer: Scorer, book: Book, own: SamplingConfig) -> None:
        self.scorer, self._book, self._own = scorer, book, own

    def __call__(self, sampling: SamplingConfig) -> Candidate:
        scorer, model = self.scorer, self.scorer.model
        protocol = scorer.protocol(sampling)
        if (known := self._book.find(protocol, model.digest)) is not None:
            return known
        gradients = num_gradients(
            model.schedule.num_levels,
            num_steps=sampling.num_steps,
            guidance=sampling.guidance,
            denoise_scale=sampling.denoise_scale,
            has_initializer=model.config.initializer is not None,
        )
        of = {"protocol": protocol, "model_digest": model.digest, "gradients": gradients}
        try:
            drawn = scorer.draw(sampling)
        except (ConfigError, DataError) as error:
            if sampling == self._own:
                raise  # there is nothing to compare with
            return self._book.add(Candidate(**of, failure=str(error)))
        found = drawn.scored
        candidate = Candidate(
            **of,
            seconds=drawn.seconds / len(drawn.images),
            scores=found.scores,
            errors=found.errors,
            deviations=found.deviations,
        )
        self._book.add(candidate)
        if (shelf := scorer.shelf(sampling)) is not None:
            shelf.clear()
        return candidate


@contextmanager
def _scoring(
    ref: str, config: Config, num_images: int, later: int, book: Book, folder: Path, report: Progress
) -> Iterator[_Scored]:
    """A scorer that draws `num_images` with the seed `evaluation.seed + later`, and its session."""
    what = "images to confirm" if later else "images of a setting"

    def told(text: str, done: int, total: int) -> None:
        report(what if text.startswith("images at") else text, done, total)

    evaluation = [f"evaluation.num_samples={num_images}", f"evaluation.seed={config.evaluation.seed + later}"]
    scorer = Scorer(ref, override(config, evaluation), parts=str(folder / PARTS), progress=told)
    num_features = scorer.reference.measured.rows.shape[1]
    if num_images <= num_features:
        raise ConfigError(
            f"{num_images} images at each setting: the Fréchet distance of {num_features} features needs more than "
            f"{num_features}; draw more"
        )
    with scorer.session():
        yield _Scored(scorer, book, config.sampling)
