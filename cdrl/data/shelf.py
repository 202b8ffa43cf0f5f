"""A few mapped shards of many: those that are expected come in the background, others when they are asked for."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import copy_context

from cdrl.data.shards import Rows

__all__ = ["Shelf"]


class Shelf:
    """Shards by number; for one reading thread.

    Args:
        load: maps a shard; called in a background thread too, with the context of the one that expects it.
        give_up: called for a shard that has left the shelf.
        capacity: shards on the shelf; those that were used last stay, and all that are expected.
    """

    def __init__(self, load: Callable[[int], Rows], give_up: Callable[[int], None], capacity: int) -> None:
        self._load, self._give_up, self._capacity = load, give_up, capacity
        self._shards: OrderedDict[int, Future[Rows]] = OrderedDict()
        self._expected: Sequence[int] = ()

    def expect(self, numbers: Sequence[int]) -> None:
        """Fetch these shards in the background, the first one first, and keep them until others are expected."""
        if list(numbers) == self._expected:
            return
        self._expected = list(numbers)
        missing = {number: self._place(number) for number in numbers if number not in self._shards}
        # a daemon: an outage of the storage shall not keep a process that wants to end
        threading.Thread(target=copy_context().run, args=(self._fill, missing), daemon=True).start()

    def __getitem__(self, number: int) -> Rows:
        """The rows of a shard.

        Raises:
            DataError, StorageError: it cannot be fetched or is not what it should be.
        """
        if number not in self._shards:
            self._fill({number: self._place(number)})
        self._shards.move_to_end(number)
        return self._shards[number].result()

    def _place(self, number: int) -> Future[Rows]:
        for leaving in [other for other in self._shards if other not in self._expected]:
            if len(self._shards) < self._capacity:
                break
            future = self._shards.pop(leaving)
            if not future.cancel():
                future.exception()  # waits for a fetch that is under way
            del future  # and with it the mapping
            self._give_up(leaving)
        return self._shards.setdefault(number, Future())

    def _fill(self, missing: dict[int, Future[Rows]]) -> None:
        for number in list(missing):
            future = missing.pop(number)
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._load(number))
                except BaseException as error:  # noqa: B036 (it belongs to the thread that reads)
                    future.set_exception(error)
            del future
