"""A run's checkpoint: a directory of safetensors and two JSON files; nothing in it is ever unpickled.

    model.json, pair-00.safetensors, ...    what is shipped: averaged pairs (`cdrl.model`)
    state.json, train-00.safetensors, ...   what resuming needs besides: live pairs and Adam's moments
    sentinel.safetensors                    and what the sentinel knows by then

Every rank writes the files of the pairs it speaks for. The two JSON files, which rank 0 writes last, hold the digests:
model.json those of the averaged pairs, state.json those of all files, its own included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer

from cdrl.errors import ConfigError, RegistryError
from cdrl.model import Model
from cdrl.runs import Checkpoint
from cdrl.storage import sha256_file
from cdrl.training.state import TrainState
from cdrl.weights import check_file, load_tensors, pair_file

__all__ = [
    "SENTINEL_FILE",
    "Snapshot",
    "begin_with",
    "read_card",
    "read_checkpoint",
    "snapshot",
    "train_file",
    "write_cards",
    "write_tensors",
]

SENTINEL_FILE = "sentinel.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def train_file(number: int) -> str:
    """The file of one pair's live weights and moments."""
    return f"train-{number:02d}.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a checkpoint, copied, so that training may go on while it is written.

    Attributes:
        card: what state.json says; its `files` are known only once all ranks have written theirs.
        tensors: by file name.
    """

    card: Checkpoint
    tensors: dict[str, dict[str, Tensor]]


def snapshot(
    state: TrainState,
    manifest_digest: str,
    score: float | None = None,
    cost_s: Sequence[float] = (),
    score_error: float | None = None,
) -> Snapshot:
    """Copy what this rank speaks for, after `state.settle_average()`; scores and cost_s as in `Checkpoint`."""
    tensors: dict[str, dict[str, Tensor]] = {}
    if state.sentinel is not None and state.grid.rank == 0:
        tensors[SENTINEL_FILE] = _copied(state.sentinel.state_dict())
    for number in range(state.grid.num_pairs):
        if state.grid.owner(number) == state.grid.rank:
            tensors[pair_file(number)] = _copied(state.averaged(number).state_dict())
            if number in state.grid.pairs:  # all but those that a training again leaves alone
                tensors[train_file(number)] = _copied(_live(state, number))
    card = Checkpoint(
        step=state.step,
        score=score,
        score_error=score_error,
        identity=state.asked.identity_digest,
        manifest_digest=manifest_digest,
        rescues=len(state.rescues),
        cost_s=tuple(cost_s),
        files={},
    )
    return Snapshot(card, tensors)


def write_tensors(content: Snapshot, name: str, directory: Path) -> str:
    """Write one file of a snapshot; returns its SHA-256."""
    safetensors.torch.save_file(content.tensors[name], directory / name)
    return sha256_file(directory / name)


def write_cards(content: Snapshot, model: Model, files: dict[str, str], directory: Path) -> None:
    """Write model.json and then state.json for weight files of all ranks with these digests."""
    model.write_card(directory, {name: digest for name, digest in files.items() if name.startswith("pair-")})
    card = content.card.model_copy(update={"files": {"model.json": model.digest, **files}})
    (directory / "state.json").write_bytes(card.sealed())


def read_card(path: Path) -> Checkpoint:
    """The card in a state.json.

    Raises:
        RegistryError: not there or damaged.
    """
    try:
        return Checkpoint.unsealed(path.read_bytes())
    except FileNotFoundError:
        raise RegistryError(f"{path}: not there; {path.parent} is no checkpoint") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise RegistryError(f"{path}: damaged: {reason}; use another checkpoint") from None


def read_checkpoint(state: TrainState, directory: Path, manifest_digest: str) -> Checkpoint:
    """Put this rank's part of a checkpoint into the state; only the files of its pairs are asked for.

    Raises:
        ConfigError: it belongs to another configuration or dataset.
        RegistryError: it is damaged; the state is then undefined.
    """
    card = read_card(directory / "state.json")
    for what, expected, found in (
        ("configuration", state.asked.identity_digest, card.identity),
        ("dataset", manifest_digest, card.manifest_digest),
    ):
        if expected != found:
            raise ConfigError(
                f"{directory}: the checkpoint is from another {what}: expected {expected[:12]}, got {found[:12]}; "
                "give the run another run.name"
            )
    try:
        check_file(directory / "model.json", card.files["model.json"])
        for number in state.grid.pairs:
            _restore(state, number, card, directory)
        if state.sentinel is not None and SENTINEL_FILE in card.files:  # not where it was switched off by then
            state.sentinel.load_state_dict(dict(load_tensors(directory / SENTINEL_FILE, card.files[SENTINEL_FILE])))
    except KeyError as error:
        raise RegistryError(f"{directory}: damaged: no entry {error}; use another checkpoint") from None
    except RuntimeError as error:
        raise RegistryError(f"{directory}: does not fit the networks: {' '.join(str(error).split())[:200]}") from None
    state.step = card.step
    return card


def begin_with(state: TrainState, directory: Path, manifest_digest: str) -> None:
    """Put this rank's part of another run's checkpoint into a fresh state, as `training.start_with` has it.

    Raises:
        ConfigError: the networks are others; or, where its updates count too, the data are.
        RegistryError: it is damaged.
    """
    card, training = read_card(directory / "state.json"), state.asked.training
    whole = training.start_with == "state"
    if whole and card.manifest_digest != manifest_digest:
        raise ConfigError(f"training.start: {directory} is from another dataset; use training.start_with=weights")
    try:
        for number in state.grid.pairs:
            _restore(state, number, card, directory)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"training.start: {directory} has other networks than this run: {reason}") from None
    if whole:
        state.step = card.step
    else:
        for number in state.grid.pairs:
            for _, optimizer in _named_optimizers(state, number):
                _forget_moments(optimizer)


def _restore(state: TrainState, number: int, card: Checkpoint, directory: Path) -> None:
    shipped, kept = pair_file(number), train_file(number)
    state.averaged(number).load_state_dict(load_tensors(directory / shipped, card.files[shipped]))
    tensors = load_tensors(directory / kept, card.files[kept])
    live = {key.removeprefix("live."): value for key, value in tensors.items() if key.startswith("live.")}
    state.pair(number).load_state_dict(live)
    for name, optimizer in _named_optimizers(state, number):
        _set_moments(optimizer, name, dict(tensors), state.device)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, contiguous."""
    dense = torch.contiguous_format
    return {key: value.detach().to("cpu", copy=True, memory_format=dense) for key, value in tensors.items()}


def _live(state: TrainState, number: int) -> dict[str, Tensor]:
    tensors = {f"live.{key}": value for key, value in state.pair(number).state_dict().items()}
    for name, optimizer in _named_optimizers(state, number):
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{moment}": moments[moment] for moment in MOMENTS}
    return tensors


def _named_optimizers(state: TrainState, number: int) -> list[tuple[str, Optimizer]]:
    optimizers = state.optimizers[number]
    named = [("energy", optimizers.energy), ("initializer", optimizers.initializer)]
    return [(name, optimizer) for name, optimizer in named if optimizer is not None]


def _set_moments(optimizer: Optimizer, name: str, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Adam's moments from the tensors; an optimizer that has not stepped yet has none."""
    count = len(optimizer.param_groups[0]["params"])
    if not any(key.startswith(f"{name}.") for key in tensors):
        _forget_moments(optimizer)  # of a state that is rolled back, too
        return
    moments = {index: {m: tensors[f"{name}.{index}.{m}"].to(device) for m in MOMENTS} for index in range(count)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _forget_moments(optimizer: Optimizer) -> None:
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
