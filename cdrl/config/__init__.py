"""The typed configuration: one tree, strict keys, presets in YAML that list only what differs.

`load("digits", ["training.seed=3"])` resolves preset, file and overrides to a frozen `Config`.
"""

from cdrl.config.gates import GatesConfig
from cdrl.config.resolve import load, override, presets, validate
from cdrl.config.schema import (
    ClusterConfig,
    ComputeConfig,
    Config,
    DataConfig,
    EnergyConfig,
    EvaluationConfig,
    InitializerConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainingConfig,
    tree_digest,
)
from cdrl.config.sentinel import SentinelConfig

__all__ = [
    "ClusterConfig",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "EnergyConfig",
    "EvaluationConfig",
    "GatesConfig",
    "InitializerConfig",
    "OptimizerConfig",
    "RunConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "SentinelConfig",
    "TrackingConfig",
    "TrainingConfig",
    "load",
    "override",
    "presets",
    "tree_digest",
    "validate",
]
