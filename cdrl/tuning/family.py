"""A sweep in MLflow: the sweep is the parent run, each trial a child, and each of them ends."""

from collections.abc import Callable, Iterable
from pathlib import Path

from cdrl.errors import CdrlError
from cdrl.runs import RunRecord
from cdrl.tracking.journal import Journal
from cdrl.tracking.sync import synchronise
from cdrl.tuning.notes import Trial

__all__ = ["adopt", "settle"]

PARENT = "mlflow.parentRunId"


def adopt(directory: Path, parent: str) -> None:
    """Note in a trial's journal whose child it is; whoever sends the journal tells the server.

    Args:
        parent: the sweep's run at the server; empty where that has not answered yet.
    """
    journal = Journal(directory)
    if not parent or journal.last("start") is None:
        return
    tags = (entry["values"] for _, entry in journal.entries() if entry["kind"] == "tags")
    if not any(each.get(PARENT) == parent for each in tags):
        journal.append("tags", values={PARENT: parent})


def settle(trials: Iterable[Trial], folder: Path, parent: str, say: Callable[[str], None]) -> None:
    """Give every trial's runs their parent and their end, also those whose process was killed, and tell the server.

    Args:
        folder: of the trials' runs.
        say: told when the server does not take it; the journals keep it for `cdrl track sync`.
    """
    by_run = {trial.run or f"t{trial.number:03d}": trial for trial in trials}
    told = set()
    for place in sorted(folder.glob("t*/run.json")):
        trial = by_run.get(place.parent.name)
        journal = Journal(place.parent)
        try:
            adopt(place.parent, parent)
            status = journal.last("status")
            is_over = trial is None or trial.state in ("complete", "stopped")  # None: another took its place on the way
            if status is not None and status["status"] == "RUNNING" and is_over:
                journal.append("status", status="FINISHED")
            synchronise(RunRecord.read(str(place.parent)))
        except CdrlError as error:
            if str(error) not in told:
                say(f"{error}; the journals keep everything, `cdrl track sync {place.parent}` sends it")
            told.add(str(error))
