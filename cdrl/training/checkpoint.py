"""A run's checkpoint: a directory of safetensors and two JSON files; nothing in it is ever unpickled.

    model.json, pair-00.safetensors, ...    what is shipped: averaged pairs (`cdrl.model`)
    state.json, train-00.safetensors, ...   what resuming needs besides: live pairs and Adam's moments

Every rank writes the files of the pairs it speaks for; digests are exchanged. The two JSON files, which rank 0 writes
last, hold the digests: model.json those of the averaged pairs, state.json those of all files but itself.
"""

from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.optim import Optimizer

from cdrl.errors import ConfigError, RegistryError
from cdrl.model import Model
from cdrl.runs import Checkpoint
from cdrl.storage import sha256_file
from cdrl.training.state import TrainState
from cdrl.weights import check_file, load_tensors, pair_file

__all__ = ["read_checkpoint", "write_checkpoint"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def train_file(number: int) -> str:
    """The file of one pair's live weights and moments."""
    return f"train-{number:02d}.safetensors"


NAMES = (pair_file, train_file)


def write_checkpoint(state: TrainState, model: Model, score: float | None, directory: Path) -> None:
    """Write this rank's files into an empty directory. A collective: all ranks together write one checkpoint.

    Args:
        model: the averaged ladder, after `state.share_average()`.
        score: of these weights, lower = better; None = not scored.
    """
    digests = torch.zeros(state.grid.num_pairs, 2, 32, dtype=torch.int64)
    for number in state.grid.pairs:
        if state.grid.owner(number) != state.grid.rank:
            continue
        contents = (state.averaged(number).state_dict(), _live(state, number))
        for column, (file, tensors) in enumerate(zip(NAMES, contents, strict=True)):
            name = file(number)
            safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, directory / name)
            digests[number, column] = torch.tensor(list(bytes.fromhex(sha256_file(directory / name))))
    hexed = [[bytes(row.tolist()).hex() for row in pair] for pair in state.grid.sum(digests)]
    if state.grid.rank != 0:
        return
    model.write_card(directory, {pair_file(number): pair[0] for number, pair in enumerate(hexed)})
    card = Checkpoint(
        step=state.step,
        score=score,
        identity=state.config.identity_digest,
        manifest_digest=model.manifest_digest,
        files={
            "model.json": model.digest,
            **{name(number): pair[i] for number, pair in enumerate(hexed) for i, name in enumerate(NAMES)},
        },
    )
    (directory / "state.json").write_text(card.model_dump_json(indent=1))


def read_checkpoint(state: TrainState, directory: Path, manifest_digest: str) -> None:
    """Put a checkpoint into the state of this rank.

    Raises:
        ConfigError: it belongs to another configuration or dataset.
        RegistryError: it is damaged.
    """
    card = _read_card(directory)
    for what, expected, found in (
        ("configuration", state.config.identity_digest, card.identity),
        ("dataset", manifest_digest, card.manifest_digest),
    ):
        if expected != found:
            raise ConfigError(
                f"{directory}: the checkpoint is from another {what}: expected {expected[:12]}, got {found[:12]}; "
                "give the run another run.name"
            )
    try:
        check_file(directory / "model.json", card.files["model.json"])
        model = Model.load(directory)
        if model.step != card.step:
            raise RegistryError(f"{directory}/state.json: damaged: it says step {card.step}, model.json {model.step}")
        _restore(state, model, card, directory)
    except KeyError as error:
        raise RegistryError(f"{directory}: damaged: no entry {error}; use another checkpoint") from None
    except RuntimeError as error:
        raise RegistryError(f"{directory}: does not fit the networks: {' '.join(str(error).split())[:200]}") from None


def _read_card(directory: Path) -> Checkpoint:
    path = directory / "state.json"
    try:
        return Checkpoint.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RegistryError(f"{path}: not there; {directory} is no checkpoint") from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise RegistryError(f"{path}: damaged: {reason}; use another checkpoint") from None


def _restore(state: TrainState, model: Model, card: Checkpoint, directory: Path) -> None:
    for number in state.grid.pairs:
        state.averaged(number).load_state_dict(model.ladder.pairs[number].state_dict())
        tensors = load_tensors(directory / train_file(number), card.files[train_file(number)])
        live = {key.removeprefix("live."): value for key, value in tensors.items() if key.startswith("live.")}
        state.pair(number).load_state_dict(live)
        for name, optimizer in _named_optimizers(state, number):
            _set_moments(optimizer, name, dict(tensors), state.device)
    state.step = card.step


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
        return
    moments = {index: {m: tensors[f"{name}.{index}.{m}"].to(device) for m in MOMENTS} for index in range(count)}
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
