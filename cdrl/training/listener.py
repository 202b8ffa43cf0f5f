"""What the workers report, carried to the run's journal, its folder and the eye."""

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from cdrl import storage
from cdrl.tracking.run import TrackedRun
from cdrl.tracking.server import shown
from cdrl.training.board import Notice
from cdrl.training.progress import TrainingProgress
from cdrl.training.rescue import Rescue, events_markdown
from cdrl.training.story_plot import story_plot

__all__ = ["Listener", "Watch"]

Watch = Callable[[Sequence[Notice]], None]


class Listener:
    """Carries notices from the board to the run's journal, its folder and the display.

    Args:
        watch: called with each batch of notices, also an empty one, after it is handled; what it raises ends the run.

    Attributes:
        waited_s: seconds that workers spent waiting for the storage, all together.
    """

    def __init__(
        self,
        tracked: TrackedRun,
        progress: TrainingProgress,
        directory: Path,
        watch: Watch = lambda notices: None,
    ) -> None:
        self._watch = watch
        self.tracked, self.progress, self.directory = tracked, progress, directory
        self.waited_s = 0.0

    def take(self, notices: list[Notice]) -> None:
        """Handle notices in their order; all stand in the journal when this returns."""
        for notice in notices:
            if notice.kind == "metrics":
                self.progress.show(notice.step, notice.content)
                speed = {"images_per_s": self.progress.images_per_s} if self.progress.images_per_s else {}
                self.tracked.log_metrics(notice.content | speed, notice.step)
            elif notice.kind == "saving":
                self.tracked.log_metrics(notice.content, notice.step)
            elif notice.kind == "event":
                self.event(notice.content["text"], notice.step)
            elif notice.kind == "rescue":
                self._rescue(notice.content["rescues"])
            elif notice.kind == "waiting":
                self.waited_s += notice.content["waited_s"]
                self.progress.say(notice.content["text"])
            elif notice.kind == "picture":
                for name, png in notice.content.items():
                    self.tracked.log_image(name, Image.open(io.BytesIO(png)), notice.step)
            else:
                scored, error = notice.content["score"], notice.content["score_error"]
                told = "" if scored is None else f", quick score {scored:.3g} ± {error:.2g}"
                known = {"checkpoint_write_s": notice.content["write_s"]}
                known |= {} if scored is None else {"quick_score": scored, "quick_score_error": error}
                self.tracked.log_metrics(known, notice.step)
                self.progress.say(f"checkpoint at {notice.step}{told}")
        self._watch(notices)

    def event(self, text: str, step: int | None = None) -> None:
        """Say and keep what happened to the run: `events.jsonl` in its folder and with the tracking server."""
        self.progress.say(text)
        path = self.directory / "events.jsonl"
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "step": step, "event": shown(text)}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.tracked.log_artifact(path)

    def _rescue(self, rescues: Sequence[Rescue]) -> None:
        """Tell of those that have not been told yet: a driver before this one may have died too soon."""
        path = self.directory / "rescues.md"
        table, told = events_markdown(rescues), path.read_text() if path.exists() else events_markdown(())
        if table == told:
            return
        for each in rescues[len(told.splitlines()) - len(events_markdown(()).splitlines()) :]:
            self.event(each.line, each.step)
        storage.write_bytes(str(path), table.encode())
        self.tracked.log_artifact(path)
        self.tracked.log_image("rescues", story_plot(rescues, rescues[-1].step), rescues[-1].step)

    def close(self) -> None:
        """Say what waiting has cost."""
        if self.waited_s:
            self.event(f"workers waited {self.waited_s:.0f} s for the storage, all together")
