"""What a person sees of a run: one live line on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["TrainingProgress"]

PLAIN_LINE_EVERY_S = 15.0


class TrainingProgress:
    """Updates done of all, speed, time left, energies and chain displacement.

    Args:
        console: where to write.
        num_updates: updates of the whole run.
        images_per_update: images that one update of the whole grid consumes.
        done: updates made before this process began.
    """

    def __init__(self, console: Console, num_updates: int, images_per_update: int, done: int) -> None:
        self._console, self._images, self._num_updates = console, images_per_update, num_updates
        self._marks = [(time.monotonic(), done)]
        self._spoke_s = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=num_updates, completed=done, speed="starting Ray", numbers="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    @property
    def updates_per_s(self) -> float:
        """Speed over the last few reports; 0 before the second one."""
        (begin_s, begin), (end_s, end) = self._marks[0], self._marks[-1]
        return (end - begin) / (end_s - begin_s) if end > begin and len(self._marks) > 2 else 0.0

    @property
    def images_per_s(self) -> float:
        """Training images consumed per second by the whole grid."""
        return self.updates_per_s * self._images

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take up the metrics of a step."""
        if step > self._marks[-1][1]:
            # the first mark holds the start of Ray; speed is counted from the second
            self._marks = [*self._marks[-20:], (time.monotonic(), step)] if len(self._marks) > 1 else [
                (time.monotonic(), step), (time.monotonic(), step)
            ]
        speed = f"{self.updates_per_s:.1f} steps/s {self.images_per_s:.0f} images/s"
        numbers = "  ".join(f"{name} {_mean(metrics, name):.3g}" for name in ("f_pos", "f_neg", "displacement"))
        self._bar.update(self._task, completed=step, speed=speed, numbers=numbers)
        now_s = time.monotonic()
        if not self._console.is_terminal and (now_s - self._spoke_s > PLAIN_LINE_EVERY_S or step == self._num_updates):
            self._spoke_s = now_s
            left_s = (self._num_updates - step) / self.updates_per_s if self.updates_per_s else float("nan")
            line = f"train {step}/{self._num_updates}  {speed}  eta {left_s:.0f} s  {numbers}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)


def _mean(metrics: Mapping[str, float], name: str) -> float:
    """The mean over pairs of a metric that may be logged per pair."""
    values = [value for key, value in metrics.items() if key.rpartition("/")[2] == name]
    return sum(values) / len(values) if values else float("nan")
