"""What the driver does with the workers' reports, where a tracking server is there and where it is not."""

import io
import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console

from cdrl.pictures import png_bytes
from cdrl.runs import RunRecord
from cdrl.tracking.run import TrackedRun
from cdrl.tracking.sync import synchronise
from cdrl.training.board import Notice
from cdrl.training.listener import Listener
from cdrl.training.progress import TrainingProgress
from cdrl.training.rescue import Rescue
from tests.tracking_parts import silent
from tests.training_parts import tiny_config


class Heard:
    """A listener of a run below a folder, and what a person sees."""

    def __init__(self, root: Path, database: Path) -> None:
        config = tiny_config(f"run.root={root}", f"tracking.uri=sqlite:///{database}")
        self.tracked = TrackedRun.start(config, "tiny", manifest_digest="ab" * 32)
        self.text = io.StringIO()
        self.directory = root / "tiny"
        self.directory.mkdir(exist_ok=True)

    def listener(self) -> Listener:
        return Listener(self.tracked, TrainingProgress(Console(file=self.text, width=200), 12, 8, 0), self.directory)

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in (self.directory / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def heard(tmp_path: Path, _empty_tracking: Path) -> Heard:
    return Heard(tmp_path, _empty_tracking)


def rescues(*steps: int) -> tuple[Rescue, ...]:
    seen = {"pair": 0, "level": 1, "quantity": "f", "value": 9.0, "bound": 1.0, "lower": "learning_rate", "factor": 0.5}
    return tuple(Rescue(number=number, step=step, from_step=0, **seen) for number, step in enumerate(steps, 1))


def test_time_lost_for_the_storage_is_added_up_and_told_at_the_end(heard: Heard) -> None:
    listener = heard.listener()
    for waited_s in (0.0, 3.0, 4.4):
        listener.take([Notice("waiting", 0, {"text": "cannot reach", "waited_s": waited_s})])
    listener.close()
    assert heard.events() == ["workers waited 7 s for the storage, all together"]
    assert heard.text.getvalue().count("cannot reach") == 3


def test_each_rescue_is_told_once_also_by_the_next_driver(heard: Heard) -> None:
    for told in (rescues(5), rescues(5, 9), rescues(5, 9)):
        heard.listener().take([Notice("rescue", 9, {"rescues": told})])
    assert [event[:8] for event in heard.events()] == ["rescue 1", "rescue 2"]
    assert (heard.directory / "rescues.md").read_text().count("learning_rate x 0.5") == 2


def test_a_server_that_is_away_holds_nothing_up(tmp_path: Path, _empty_tracking: Path) -> None:
    with silent() as uri:
        config = tiny_config(f"run.root={tmp_path}", f"tracking.uri={uri}")
        tracked = TrackedRun.start(config, "tiny", manifest_digest="ab" * 32)
        text, directory = io.StringIO(), tmp_path / "tiny"
        progress = TrainingProgress(Console(file=text, width=200), 12, 8, 0)
        tracked.follow(progress.say)
        listener = Listener(tracked, progress, directory)
        began_s = time.monotonic()
        for step in (1, 2, 3):
            listener.take([Notice("metrics", step, {"loss": 1.0 / step})])
        listener.take([Notice("picture", 3, {"samples": png_bytes(Image.new("L", (8, 8)))})])
        listener.event("cannot reach s3://key:secret@bucket", 2)
        assert time.monotonic() - began_s < 1
        assert text.getvalue().count("training goes on") == 1 and uri in text.getvalue()
        tracked.close()
    assert "entries of the journal wait for MLflow" in text.getvalue()
    assert "s3://***@bucket" in (directory / "events.jsonl").read_text()
    record = RunRecord(
        run_id="tiny", config=config, manifest_digest="ab" * 32, class_names=(), tracking_uri=uri, mlflow_run_id=""
    )
    record.write(str(tmp_path))
    synchronise(record, f"sqlite:///{_empty_tracking}")
    assert TrackedRun.attach(record).history("loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}
    kept = MlflowClient(record.tracking_uri).list_artifacts(record.mlflow_run_id)
    assert {"events.jsonl", "images"} <= {artifact.path for artifact in kept}


def test_what_a_library_says_in_brackets_is_told_as_it_stands(heard: Heard) -> None:
    text = "[/build/gloo/pair.cc:561] connection closed by peer [127.0.0.2]:4711 [bold]"
    heard.listener().take([Notice("event", 3, {"text": text})])
    assert heard.events() == [text] and heard.text.getvalue() == text + "\n"
