"""Where a run goes on: at its newest checkpoint that is whole, on all ranks the same one."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from cdrl import storage
from cdrl.errors import RegistryError, StorageError
from cdrl.runs import Checkpoint, cards_below, checkpoints_below
from cdrl.training.checkpoint import SENTINEL_FILE, read_card, read_checkpoint, train_file
from cdrl.training.grid import Grid
from cdrl.training.rescue import Rescue, on_timeline
from cdrl.training.state import TrainState
from cdrl.training.store import remove_checkpoint
from cdrl.weights import pair_file

__all__ = ["agreed", "fetched", "measured_costs", "newest_first", "resume"]

CHECKPOINT_FILE = r"model\.json|((pair|train)-\d\d+|sentinel)\.safetensors"


def agreed(grid: Grid, say: Callable[[], str]) -> str:
    """What rank 0 says, on every rank. A collective."""
    content = torch.tensor(list(say().encode()) if grid.rank == 0 else [], dtype=torch.int64)
    size = int(grid.sum(torch.tensor([len(content)])).item())
    return bytes(grid.sum(content if grid.rank == 0 else content.new_zeros(size)).tolist()).decode()


def newest_first(uri: str, rescues: Sequence[Rescue]) -> list[str]:
    """The folders of the checkpoints from which a run may go on; those that rescues went back past are removed.

    Raises:
        StorageError: the place cannot be reached.
    """
    candidates = []
    for folder, card in reversed(cards_below(uri).items()):
        if card is None or on_timeline(card.step, card.rescues, rescues):  # of a damaged one, whoever reads it says so
            candidates.append(folder)
        else:
            remove_checkpoint(uri, folder)
    return candidates


def measured_costs(uri: str, identity: str) -> list[float]:
    """Seconds of an update of each trained pair, as the newest checkpoint has it; empty where nothing is known.

    Args:
        identity: digest of the run's; what another run has left there says nothing.

    Raises:
        StorageError: the place cannot be reached.
    """
    cards = [card for card in checkpoints_below(uri).values() if card.identity == identity]
    costs = list(cards[-1].cost_s) if cards else []
    return costs if all(costs) else []


def resume(
    state: TrainState, uri: str, candidates: Sequence[str], manifest_digest: str, tell: Callable[[str], None]
) -> Checkpoint | None:
    """Put the first whole candidate into the state of every rank. A collective.

    Each rank reads and checks the files of its own pairs; a candidate is whole where all of them are.

    Args:
        uri: the folder of the candidates.
        candidates: names of folders, newest first, equal on all ranks.
        tell: called with one line for each damaged one.

    Returns:
        The card of the checkpoint; None where there are no candidates: the state stays fresh.

    Raises:
        ConfigError: a checkpoint is from another configuration or dataset.
        RegistryError: there are candidates and none is whole.
        StorageError: the place cannot be reached.
    """
    for name in candidates:
        place, card, trouble = storage.join(uri, name), None, ""
        try:
            with fetched(place, state.grid.pairs) as folder:
                card = read_checkpoint(state, folder, manifest_digest)
        except RegistryError as error:
            trouble = str(error)
        if not state.grid.any(bool(trouble)):
            return card
        tell(f"{place} is damaged and left out: {trouble or 'another worker says so'}")
    if candidates:
        raise RegistryError(
            f"{uri}: none of {len(candidates)} checkpoints is whole, the newest is {candidates[0]}; put a good copy "
            "back, or move the damaged ones away to train from the start"
        )
    return None


@contextmanager
def fetched(uri: str, pairs: Sequence[int]) -> Iterator[Path]:
    """A checkpoint's JSON files and those of some pairs as a folder of this machine; a copy where it is none.

    Raises:
        RegistryError: its card is damaged or names files that no checkpoint has, or one of them is missing.
        StorageError: the place cannot be reached.
    """
    if storage.is_local(uri):
        yield storage.local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="cdrl-resume-") as name:
        folder = Path(name)
        _fetch(storage.join(uri, "state.json"), folder / "state.json")
        wanted = {"model.json", SENTINEL_FILE, *map(pair_file, pairs), *map(train_file, pairs)}
        for file in read_card(folder / "state.json").files:
            if not re.fullmatch(CHECKPOINT_FILE, file):
                raise RegistryError(f"{uri}/state.json: refused to fetch a file named {file!r}")
            if file in wanted:
                _fetch(storage.join(uri, file), folder / file)
        yield folder


def _fetch(uri: str, path: Path) -> None:
    try:
        storage.download(uri, path)
    except StorageError:
        if storage.exists(uri):
            raise
        raise RegistryError(f"{uri}: missing; use another checkpoint") from None
