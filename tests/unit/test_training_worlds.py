"""Real process groups: weights and metrics have the same bits in every world."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cdrl.build import is_chunkwise
from tests.training_parts import digits, tiny_config

SCRIPT = Path(__file__).parents[1] / "training_world.py"
STEPS = 4  # the first two train the initializer alone
FOUR = f"training.num_updates={STEPS}"
SHARED = (FOUR, "cluster.num_workers=4")
PER_LEVEL = (FOUR, "pairs=per_level", "schedule.num_levels=3", "cluster.num_workers=6")
WHOLE = ("training.num_updates=2", "compute.chunkwise=never")  # two: rounding has not grown
JOBS = {"shared": (SHARED, (1, 2, 3, 4)), "per-level": (PER_LEVEL, (1, 2, 3, 6)), "whole": (WHOLE, (1, 3))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("worlds")
    digits(place)
    jobs = {
        name: {"config": tiny_config(*overrides).model_dump(mode="json"), "worlds": worlds}
        for name, (overrides, worlds) in JOBS.items()
    }
    (place / "jobs.json").write_text(json.dumps(jobs))
    ran = subprocess.run([sys.executable, str(SCRIPT), str(place)], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return place


class Rank:
    """What a rank has at its end, and what it waited for."""

    def __init__(self, path: Path) -> None:
        self.tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            self.waited: list[Any] = json.loads(file.metadata()["waited"])

    def differs_from(self, other: "Rank") -> list[str]:
        return [key for key, value in self.tensors.items() if not value.equal(other.tensors[key])]


def ranks(folder: Path, name: str, world: int) -> list[Rank]:
    return [Rank(folder / f"{name}-{world}-{rank}.safetensors") for rank in range(world)]


def test_a_shared_pair_has_the_same_bits_in_every_world(folder: Path) -> None:
    assert is_chunkwise(tiny_config(*SHARED), torch.device("cpu"))  # without being told: workers share the pair
    (straight,) = ranks(folder, "shared", 1)
    assert straight.waited == []
    for world in (2, 3, 4):
        for rank in ranks(folder, "shared", world):
            assert rank.waited == ["the start of all ranks", *["the gradients of other replicas"] * STEPS]
            assert rank.tensors.keys() == straight.tensors.keys() and rank.differs_from(straight) == []


def test_levels_have_the_same_bits_in_every_world(folder: Path) -> None:
    (straight,) = ranks(folder, "per-level", 1)
    for world in (2, 3, 6):
        found = ranks(folder, "per-level", world)
        assert {key for rank in found for key in rank.tensors} == straight.tensors.keys()
        assert [rank.differs_from(straight) for rank in found] == [[]] * world
        assert any(rank.waited for rank in found) == (world == 6)  # levels exchange nothing


def test_whole_batches_of_uneven_replicas_agree_to_rounding(folder: Path) -> None:
    (straight,), (first, *others) = ranks(folder, "whole", 1), ranks(folder, "whole", 3)  # 2, 1 and 1 chunks
    assert [first.differs_from(rank) for rank in others] == [[], []]
    for name in ("0.loss_initializer", "0.grad_norm_initializer"):
        torch.testing.assert_close(first.tensors[name], straight.tensors[name], rtol=1e-5, atol=0)


def test_when_an_update_goes_chunk_by_chunk() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for overrides, on_cpu, on_cuda in (
        (("cluster.num_workers=1",), False, False),
        (("cluster.num_workers=[1,2]",), True, False),
        (("cluster.num_workers=2", "pairs=per_level"), False, False),
        (("cluster.num_workers=3", "pairs=per_level"), True, False),
        (("compute.chunkwise=always",), True, True),
        (("compute.chunkwise=never", "cluster.num_workers=3"), False, False),
    ):
        config = tiny_config(*overrides)
        assert (is_chunkwise(config, cpu), is_chunkwise(config, cuda)) == (on_cpu, on_cuda)
