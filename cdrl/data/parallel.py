"""Independent tasks, in this process or spread over Ray Data's workers: the same tasks, hence the same bytes.

Ray takes some ten seconds to start, so small sources are prepared without it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from cdrl import errors, storage
from cdrl.config import ClusterConfig
from cdrl.data.job import Card
from cdrl.errors import CdrlError, JobFailed
from cdrl.session import connected

__all__ = ["each", "session"]

C = TypeVar("C", bound=Card)

PATIENCE_S = 600.0  # hours of work do not end with an outage of minutes


def session(workers: int, address: str | None) -> AbstractContextManager[None]:
    """Ray for `each`; nothing if `workers` is 0."""
    return connected(ClusterConfig(num_workers=workers, address=address)) if workers else nullcontext()


def each(tasks: Sequence[Callable[[], C]], kind: type[C], workers: int) -> Iterator[C]:
    """Run the tasks and yield their cards as they are finished, in any order.

    Args:
        workers: 0 = one task after the other in this process, else so many at a time on Ray, of one CPU each.

    Raises:
        CdrlError: what a task raises.
        JobFailed: Ray gave a task up, such as after its worker was killed several times.
    """
    if workers:
        yield from _on_ray(tasks, kind, workers)
        return
    for task in tasks:
        with storage.patience(PATIENCE_S):
            card = task()
        yield card


def _on_ray(tasks: Sequence[Callable[[], C]], kind: type[C], workers: int) -> Iterator[C]:
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    tickets = [ray.put(task) for task in tasks]

    def outcome(row: dict[str, Any]) -> dict[str, str]:
        try:
            with storage.patience(PATIENCE_S):
                return {"card": ray.get(tickets[row["id"]])().model_dump_json(), "error": "", "message": ""}
        except CdrlError as error:  # as text: Ray would wrap it in a traceback of many lines
            known = next(base.__name__ for base in type(error).__mro__ if base.__name__ in errors.__all__)
            return {"card": "", "error": known, "message": str(error)}

    dataset = ray.data.range(len(tasks), override_num_blocks=len(tasks))
    pool = ray.data.TaskPoolStrategy(size=min(workers, len(tasks)))
    try:
        for row in dataset.map(outcome, compute=pool, num_cpus=1).iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            yield kind.model_validate_json(row["card"])
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise JobFailed(f"Ray gave up: {reason}; the same command goes on where this one stopped") from None
