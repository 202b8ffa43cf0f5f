"""The sizing table of infra/README.md is what the presets and the method's counts say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdrl import config as configuration
from cdrl.config import Config

ROOT = Path(__file__).parents[2]
SUSTAINED, PRICE, GPUS = 200e12, 3, 8  # FLOP/s of a GPU, for an hour of it
NUM_SAMPLES = 50_000
# (energy net, initializer): billions of multiply-adds of one image, as cdrl.bench.counting counts them
GMACS = {"cifar10": (5.594, 1.168), "cifar10-large": (22.371, 1.168), "imagenet32-cond": (5.595, 0.881)}
PARAMETERS = {
    "cifar10": ("EBM cifar (temb_dim 128, n_blocks 8, mult 1222)", "U-Net cifar (dim 64, 3 res blocks, mults 111)"),
    "cifar10-large": ("EBM large (temb_dim 256)", "U-Net cifar (dim 64, 3 res blocks, mults 111)"),
    "imagenet32-cond": ("EBM cond ImageNet32 (n_class 1000)", "U-Net cond ImageNet32 (dim 64, 2 res blocks)"),
}
COPIES = 4  # weights, their average, two moments; in float32


def training_flops(name: str, config: Config) -> float:
    f, g = GMACS[name]
    training = config.training
    return 2e9 * ((2 * training.num_steps + 6) * f + 3 * g) * training.batch_size * training.num_updates


def sampling_flops(name: str, num_levels: int, num_steps: int) -> float:
    f, g = GMACS[name]
    return 2e9 * (2 * (num_levels * num_steps + 1) * f + num_levels * g)


def row(what: str, flops: float, checkpoint_bytes: float | None) -> str:
    hours = flops / SUSTAINED / 3600
    size = f"{checkpoint_bytes / 1e9:.2f} GB" if checkpoint_bytes else ""
    price = f"{hours * PRICE:.{0 if hours >= 1 else 2}f}"
    cells = (what, f"{flops:.1e}", duration(hours), duration(hours / GPUS), price, size)
    return "| " + " | ".join(cells) + " |"


def duration(hours: float) -> str:
    if hours >= 10:
        return f"{hours:.0f} h"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def rows() -> Iterator[str]:
    counts = json.loads((ROOT / "tests/fixtures/reference.json").read_text())["parameter_counts"]
    for name, nets in PARAMETERS.items():
        config = configuration.load(name, [])
        updates = f"{config.training.num_updates:,} updates of {config.training.batch_size}"
        num_bytes = 4 * COPIES * sum(counts[net] for net in nets)
        yield row(f"`train {name}`, {updates}", training_flops(name, config), num_bytes)
    config = configuration.load("cifar10", [])
    for num_steps in (15, 8):
        flops = NUM_SAMPLES * sampling_flops("cifar10", config.schedule.num_levels, num_steps)
        yield row(f"`evaluate`, {NUM_SAMPLES:,} samples of cifar10, K = {num_steps}", flops, None)


def test_the_table_is_what_the_counts_say() -> None:
    text = (ROOT / "infra/README.md").read_text()
    table = re.search(r"^\| \| work, FLOP.*\n\|[-:|]+\n((?:\|.*\n)*)", text, re.MULTILINE)
    assert table and table[1].splitlines() == list(rows())


def test_the_counts_are_those_of_the_specification() -> None:
    """Section 14: 205 GMAC per image of an update, 3.9 times as many for the large net; 1025 and 555 for a sample."""
    config = configuration.load("cifar10", [])
    training = config.training
    per_image = training_flops("cifar10", config) / training.batch_size / training.num_updates / 2e9
    assert per_image == pytest.approx(205, abs=0.5)
    large = training_flops("cifar10-large", configuration.load("cifar10-large", []))
    assert large / training_flops("cifar10", config) == pytest.approx(3.9, abs=0.05)
    assert training_flops("cifar10", config) / SUSTAINED / 3600 == pytest.approx(58, abs=0.5)
    for num_steps, expected in ((15, 1025), (8, 555)):
        assert sampling_flops("cifar10", 6, num_steps) / 2e9 == pytest.approx(expected, abs=1)
