"""What `sample` passes through, kept for pictures."""

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Stage", "Trace"]


@dataclass(frozen=True)
class Stage:
    """x_s (B, ...) at a level after a step; x_T is (T, 0), the initializer's draw step 0, x_0 is (-1, 0)."""

    level: int
    step: int
    x: Tensor


@dataclass
class Trace:
    """A `Record` that keeps every stage, in order."""

    stages: list[Stage] = field(default_factory=list)

    def __call__(self, level: int, step: int, x: Tensor) -> None:
        self.stages.append(Stage(level, step, x))

    def levels(self) -> list[Tensor]:
        """x_T, the last x_s of each level and x_0."""
        last = {stage.level: stage.x for stage in self.stages}
        return list(last.values())
