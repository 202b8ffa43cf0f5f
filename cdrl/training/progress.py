"""What a person sees of a run: a live bar on a terminal, a plain line now and then elsewhere."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

__all__ = ["TrainingProgress"]

PLAIN_LINE_EVERY_S = 15.0
WINDOW_S = 30.0  # speed is that of the last half minute,
KNOWN_AFTER_S = 1.0  # and unknown before, since reports arrive in bursts


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
        self._marks: deque[tuple[float, int]] = deque()  # (seconds, step) of reports; the start of Ray is none
        self._spoke_s, self._spoke_step = time.monotonic(), done
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}\n{task.fields[numbers]}"),  # two lines, so that 80 columns are enough
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=num_updates, completed=done, speed="starting", numbers="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    @property
    def updates_per_s(self) -> float:
        """Speed over the last half minute; 0 while it is not known yet."""
        if not self._marks:
            return 0.0
        (begin_s, begin), (end_s, end) = self._marks[0], self._marks[-1]
        return (end - begin) / (end_s - begin_s) if end_s - begin_s >= KNOWN_AFTER_S else 0.0

    @property
    def images_per_s(self) -> float:
        """Training images consumed per second by the whole grid."""
        return self.updates_per_s * self._images

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take up the metrics of a step."""
        now_s = time.monotonic()
        if self._marks and step < self._marks[-1][1]:
            self._marks.clear()  # workers were restarted at a checkpoint
        self._marks.append((now_s, step))
        while len(self._marks) > 2 and now_s - self._marks[1][0] > WINDOW_S:
            self._marks.popleft()
        numbers = "  ".join(f"{name} {_mean(metrics, name):.3g}" for name in ("f_pos", "f_neg", "displacement"))
        self._bar.update(self._task, completed=step, speed=self._speed(step), numbers=numbers)
        due = now_s - self._spoke_s > PLAIN_LINE_EVERY_S or step == self._num_updates
        if not self._console.is_terminal and due and step > self._spoke_step:  # several pairs report each step
            self._spoke_s, self._spoke_step = now_s, step
            self.say(f"train {step}/{self._num_updates}  {self._speed(step)}  {numbers}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _speed(self, step: int) -> str:
        if not self.updates_per_s:
            return "starting"
        left_s = round((self._num_updates - step) / self.updates_per_s)
        left = f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"
        return f"{self.updates_per_s:.3g} steps/s  {self.images_per_s:.0f} images/s  eta {left}"


def _mean(metrics: Mapping[str, float], name: str) -> float:
    """The mean over pairs of a metric that may be logged per pair."""
    values = [value for key, value in metrics.items() if key.rpartition("/")[2] == name]
    return sum(values) / len(values) if values else float("nan")
