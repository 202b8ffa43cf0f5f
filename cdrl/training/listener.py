"""What the workers report, carried to the tracking server, the run's folder and the eye."""

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cdrl import storage
from cdrl.tracking.run import TrackedRun
from cdrl.training.board import Notice
from cdrl.training.progress import TrainingProgress
from cdrl.training.rescue import Rescue, events_markdown
from cdrl.training.story_plot import story_plot

__all__ = ["Listener"]


class Listener:
    """Carries notices from the board to the tracking server, the run's folder and the display.

    Attributes:
        checkpointed: updates that the newest checkpoint holds, `done` of them from earlier calls.
        waited_s: seconds that workers spent waiting for the storage, all together.
    """

    def __init__(self, tracked: TrackedRun, progress: TrainingProgress, directory: Path, done: int) -> None:
        self.tracked, self.progress, self.directory = tracked, progress, directory
        self.checkpointed, self.waited_s = done, 0.0

    def take(self, notices: list[Notice]) -> None:
        """Handle notices in their order; metrics have reached the tracking server when this returns."""
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
                self._rescue(notice.content["rescues"], notice.step)
            elif notice.kind == "waiting":
                self.waited_s += notice.content["waited_s"]
                self.progress.say(notice.content["text"])
            elif notice.kind == "picture":
                for name, png in notice.content.items():
                    storage.write_bytes(str(self.directory / name / f"{notice.step:08d}.png"), png)
                    self.tracked.log_image(name, Image.open(io.BytesIO(png)), notice.step)
            else:
                self.checkpointed = notice.step
                scored = notice.content["score"]
                if scored is not None:
                    self.tracked.log_metrics({"quick_score": scored}, notice.step)
                told = "" if scored is None else f", quick score {scored:.3g}"
                self.progress.say(f"checkpoint at {notice.step}{told}")
        self.tracked.flush()

    def event(self, text: str, step: int | None = None) -> None:
        """Say and keep what happened to the run: `events.jsonl` in its folder and with the tracking server."""
        self.progress.say(text)
        path = self.directory / "events.jsonl"
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "step": step, "event": text}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.tracked.log_artifact(path)

    def _rescue(self, rescues: Sequence[Rescue], step: int) -> None:
        self.event(rescues[-1].line, step)
        path = self.directory / "rescues.md"
        storage.write_bytes(str(path), events_markdown(rescues).encode())
        self.tracked.log_artifact(path)
        self.tracked.log_image("rescues", story_plot(rescues, step), step)

    def close(self) -> None:
        """Say what waiting has cost."""
        if self.waited_s:
            self.event(f"workers waited {self.waited_s:.0f} s for the storage, all together")
