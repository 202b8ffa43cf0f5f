"""Some levels of a finished run trained again, into the same run (`cdrl train RUN --levels 3`).

Levels are independent in training, so a pair can be trained from its start while the others stay what they are. That is
a run of its own, below the folder of the first, with its own checkpoints, metrics and rescues: it resumes, and nothing
of the first run changes before it is complete. Then a new checkpoint of the first run holds the new pairs beside the
old ones, newer than all others.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cdrl import storage
from cdrl.build import pairs_of
from cdrl.config import Config, tree_digest
from cdrl.errors import ConfigError
from cdrl.model import Model
from cdrl.runs import RunRecord, step_folder
from cdrl.training.checkpoint import train_file
from cdrl.training.job import Again, Score
from cdrl.training.launch import Outcome, differences, launch
from cdrl.training.store import new_attempt
from cdrl.weights import pair_file

__all__ = ["pairs_of", "train_again"]


def train_again(
    record: RunRecord,
    config: Config,
    levels: Sequence[int],
    *,
    score: Score | None = None,
    console: Console | None = None,
) -> Outcome:
    """Train the pairs of some levels from their start and put them into the run.

    Args:
        record: a finished run.
        config: its configuration, of which `training` may differ, and what is no part of the identity.
        levels: all levels of each pair that is trained again.
        score, console: as in `launch`.

    Raises:
        ConfigError: the run is not finished, a pair serves other levels too, or more than `training` differs.
        Whatever `launch` raises.
    """
    pairs = pairs_of(config, levels)
    if not record.finished:
        raise ConfigError(f"run {record.run_id!r} is not finished; train it to its end before levels are trained again")
    kept = {**record.config.identity, "training": None}, {**config.identity, "training": None}
    if differing := differences(*kept):
        raise ConfigError(f"--levels: only training.* may differ from run {record.run_id!r}: {'; '.join(differing)}")
    base = record.checkpoint("best")
    named = "-".join(map(str, sorted(set(levels))))[:40].strip("-")
    trained = tree_digest([sorted(set(levels)), config.training.model_dump(mode="json")])
    run = config.run.model_copy(
        update={
            "name": f"levels-{named}-{trained[:8]}",
            "root": str(record.directory),
            "storage": record.checkpoint_uri if config.run.storage else None,
        }
    )
    compute = config.compute.model_copy(update={"chunkwise": "auto"})  # the workers may share pairs now
    tracking = config.tracking.model_copy(update={"uri": record.tracking_uri})
    config = config.model_copy(update={"run": run, "tracking": tracking, "compute": compute})
    outcome = launch(config, score=score, again=Again(pairs, base), console=console)
    if outcome.complete:
        _put(record, base, outcome.record, pairs)
    return outcome


def _put(record: RunRecord, base: str, again: RunRecord, pairs: tuple[int, ...]) -> None:
    """Write a checkpoint of the run with these pairs from the other one; state.json last."""
    newer = again.checkpoint("last")
    old, new = record.checkpoints()[base], again.checkpoints()[newer]
    ours = {file(number) for number in pairs for file in (pair_file, train_file)}
    newest = record.checkpoints()[record.checkpoint("last")]
    if all(newest.files.get(file) == new.files[file] for file in ours):
        return  # they are there already
    # after all others, whatever the step of the one with the other pairs
    place = storage.join(record.checkpoint_uri, step_folder(newest.step, new_attempt(record.checkpoint_uri)))
    with tempfile.TemporaryDirectory(prefix="cdrl-again-") as name:
        folder = Path(name)
        files: dict[str, str] = {}
        for file in sorted({*old.files, *ours} - {"model.json"}):
            source, card = (newer, new) if file in ours else (base, old)
            storage.download(storage.join(source, file), folder / file, sha256=card.files[file])
            storage.upload(folder / file, storage.join(place, file))
            files[file] = card.files[file]
        storage.download(storage.join(newer, "model.json"), folder / "model.json", sha256=new.files["model.json"])
        model = replace(Model.load(folder), config=record.config, step=old.step)
        model.write_card(folder, {name: digest for name, digest in files.items() if name.startswith("pair-")})
        storage.upload(folder / "model.json", storage.join(place, "model.json"))
        files["model.json"] = model.digest
    card = old.model_copy(update={"score": new.score, "score_error": new.score_error, "files": files})
    storage.write_bytes(storage.join(place, "state.json"), card.sealed())
