"""From a configuration to what it describes: the schedule and fresh pairs of networks."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cdrl.config import ComputeConfig, Config, ScheduleConfig
from cdrl.errors import ConfigError
from cdrl.method import schedule as schedules
from cdrl.method.fast import Fast, Precision
from cdrl.method.formulation import Formulation, Plain
from cdrl.method.nets import EnergyNet, Initializer, PointInitializer
from cdrl.method.pairs import Pair, PairLadder, groups_of_levels
from cdrl.method.schedule import Schedule

__all__ = [
    "build_formulation",
    "build_ladder",
    "build_schedule",
    "check_buildable",
    "is_chunkwise",
    "pairs_of",
    "usual_chunkwise",
]


def build_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that a configuration describes."""
    return Schedule(_logsnr(config), config.step_scale, config.step_growth, config.weight_power)


def _logsnr(config: ScheduleConfig) -> Tensor:
    if config.logsnr is not None:
        return torch.tensor(config.logsnr, dtype=torch.float64)
    if config.family == "drl_t6":
        return schedules.drl_t6(config.num_levels)
    if config.family == "drl_t1k":
        return schedules.drl_t1k(config.num_levels)
    return schedules.cosine(config.num_levels, config.logsnr_max, config.logsnr_min, config.warp)


def build_formulation(config: ComputeConfig, device: torch.device) -> Formulation:
    """How f is computed on a device.

    Raises:
        ConfigError: a CUDA graph without CUDA.
    """
    is_cuda = device.type == "cuda"
    if config.cuda_graph == "always" and not is_cuda:
        raise ConfigError(f"compute.cuda_graph: always needs a CUDA device, got {device}; use auto or never")
    if config.formulation == "plain":
        return Plain()
    is_hopper = is_cuda and torch.cuda.get_device_capability(device) >= (9, 0)
    usual: Precision = "tf32" if is_cuda else "fp32"
    chain: Precision = "fp16" if is_hopper else usual
    return Fast(
        chain_precision=chain if config.chain_precision == "auto" else config.chain_precision,
        loss_precision=usual if config.loss_precision == "auto" else config.loss_precision,
        initializer_precision=usual if config.initializer_precision == "auto" else config.initializer_precision,
        compile=is_cuda if config.compile == "auto" else config.compile == "always",
        graph=is_cuda and config.cuda_graph != "never",
        channels_last=config.channels_last,
        fold_pooling=config.fold_pooling,
        device_type=device.type,
    )


def is_chunkwise(config: Config, device: torch.device) -> bool:
    """Whether an update goes chunk by chunk: the same on every rank, and in a replay."""
    chosen = config.compute.chunkwise
    if chosen == "auto" and device.type == "cpu":
        chosen = usual_chunkwise(config, len(groups_of_levels(config.pairs, config.schedule.num_levels)))
    return chosen == "always"


def usual_chunkwise(config: Config, num_trained: int) -> Literal["always", "never"]:
    """What `auto` stands for: small batches cost small nets dearly, so only where workers share a pair, on CPUs."""
    shared = config.cluster.max_workers > num_trained
    return "always" if shared and not config.cluster.use_gpu else "never"


def pairs_of(config: Config, levels: Sequence[int]) -> tuple[int, ...]:
    """The pairs that serve these levels and no others.

    Raises:
        ConfigError: no such level, or a pair serves others too.
    """
    groups = [tuple(group) for group in groups_of_levels(config.pairs, config.schedule.num_levels)]
    wanted = set(levels)
    if strange := wanted - set(range(config.schedule.num_levels)):
        raise ConfigError(f"--levels: the run has levels 0 ... {config.schedule.num_levels - 1}, got {min(strange)}")
    for group in groups:
        if wanted & set(group) and not wanted >= set(group):
            others = ", ".join(map(str, sorted(set(group) - wanted)))
            raise ConfigError(
                f"--levels: level {min(wanted & set(group))} shares its pair with {others}; give all of them, or train "
                "a run with pairs=per_level"
            )
    return tuple(number for number, group in enumerate(groups) if wanted & set(group))


def build_ladder(config: Config) -> PairLadder:
    """Fresh pairs; the caller seeds torch's global generator, from which initial weights are drawn.

    Raises:
        ConfigError: the networks do not go with the data or with one another.
    """
    _check_shapes(config)
    groups = groups_of_levels(config.pairs, config.schedule.num_levels)
    return PairLadder(groups, lambda: _build_pair(config))


def check_buildable(config: Config) -> None:
    """Try to build the schedule, and the networks without their weights: seconds for the largest.

    Raises:
        ConfigError: no such schedule, or the networks do not go with the data or with one another.
    """
    build_schedule(config.schedule)
    _check_shapes(config)
    with torch.device("meta"):
        _build_pair(config)


def _check_shapes(config: Config) -> None:
    data, energy, initializer = config.data, config.energy, config.initializer
    is_image = len(data.shape) == 3
    if is_image != (energy.kind == "conv") or (initializer and is_image != (initializer.kind == "unet")):
        raise ConfigError(f"data.shape {list(data.shape)} does not go with energy.kind {energy.kind!r}")
    if is_image and data.shape[1] != data.shape[2]:
        raise ConfigError(f"data.shape: images must be square, got {list(data.shape)}")
    coarsest = 2 ** (len(energy.multipliers) - 1)
    if is_image and (data.shape[1] % energy.patch or data.shape[1] // energy.patch < coarsest):
        raise ConfigError(
            f"energy: images of side {data.shape[1]} do not split into patches of {energy.patch} and then halve "
            f"{len(energy.multipliers) - 1} times"
        )


def _build_pair(config: Config) -> Pair:
    data, energy, initializer = config.data, config.energy, config.initializer
    f = EnergyNet(
        data.shape[0],
        energy.width,
        energy.multipliers,
        energy.num_blocks,
        patch=energy.patch,
        embedding_width=energy.embedding_width,
        num_classes=data.num_classes,
        dense=energy.kind == "mlp",
    )
    g: torch.nn.Module | None = None
    if initializer is not None and initializer.kind == "mlp":
        g = PointInitializer(data.shape[0], initializer.width, initializer.groups, data.num_classes)
    elif initializer is not None:
        g = Initializer(
            data.shape[0],
            data.shape[1],
            initializer.width,
            initializer.multipliers,
            initializer.num_blocks,
            attention_resolutions=initializer.attention_resolutions,
            groups=initializer.groups,
            dropout=initializer.dropout,
            patch=initializer.patch,
            num_classes=data.num_classes,
        )
    return Pair(f, g, energy.base_measure)
