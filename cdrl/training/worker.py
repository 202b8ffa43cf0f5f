"""One worker of a Ray Train run: state, resume, loop, reports. Every rank runs this with the same arguments."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from PIL import Image
from torch import Tensor

from cdrl import storage
from cdrl.build import is_chunkwise
from cdrl.data import Dataset
from cdrl.errors import CdrlError
from cdrl.method.cooperative import StepMetrics
from cdrl.method.pairs import groups_of_levels
from cdrl.model import Model
from cdrl.pictures import picture_of, png_bytes
from cdrl.runs import Checkpoint, checkpoints_below, fetch_model
from cdrl.training.board import Notice
from cdrl.training.checkpoint import begin_with, snapshot
from cdrl.training.grid import Grid
from cdrl.training.haste import Preemption
from cdrl.training.job import Job
from cdrl.training.loop import Hooks, train
from cdrl.training.pulse import Beat, Pulse
from cdrl.training.rescue import RESCUES, RESCUES_FILE, Rescue, read_rescues, rescue
from cdrl.training.resume import agreed, fetched, measured_costs, newest_first, resume
from cdrl.training.sentinel import Breach
from cdrl.training.shared import check_shared
from cdrl.training.state import TrainState
from cdrl.training.store import Keep, Store, new_attempt

__all__ = ["work"]

PICTURE_COLUMNS = 10
PICTURE_SEED = 0
HEARD_S, HEARD_POLL_S = 10.0, 0.05
ASK_S = 1.0  # between questions; the answer is known with the next one


def work(arguments: dict[str, Job]) -> None:
    """Train until done or told to stop."""
    job = arguments["job"]
    if ray.get(job.board.failure.remote()) is not None:
        return  # a restart after an error that no restart can mend; the driver tells it
    if ray.train.get_context().get_world_rank() == 0:
        ray.get(job.board.begin.remote())  # there may have been more workers before
    try:
        with _pulse(job.board) as pulse:
            with storage.patience(job.config.run.storage_patience_s, _waiting(job.board, pulse)):
                _Worker(job, pulse).run()
    except CdrlError as error:
        ray.get(job.board.fail.remote(error))
        raise


class _Worker:
    """One rank, from its start to its end."""

    def __init__(self, job: Job, pulse: Pulse) -> None:
        context, config = ray.train.get_context(), job.config
        self.job, self.config, self.pulse = job, config, pulse
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # two threads on shared cores are several times slower than one
        check_shared(job.checkpoints, job.mark)
        identity = config.identity_digest
        groups = groups_of_levels(config.pairs, config.schedule.num_levels)
        trained = None if job.again is None else job.again.pairs
        place = (len(groups), config.training.num_chunks, context.get_world_size(), context.get_world_rank(), trained)
        grid = Grid(*place, waiting=pulse.waiting)
        costs = json.loads(agreed(grid, lambda: json.dumps(measured_costs(job.checkpoints, identity))))
        self.grid = replace(grid, costs=costs or None)
        with pulse.working("fetching the data"):
            self.base = None if job.again is None else Model.load(fetch_model(job.again.base))
            self.dataset = Dataset.of(config.data)
        self.synchronise = self.grid.synchroniser(exact=is_chunkwise(config, self.device))
        self.check_every = 1
        # somebody may take away the machines of a cluster that was there before the run
        self.preemption = Preemption() if config.cluster.address is not None else None
        self.in_haste = False  # a checkpoint is wanted at this update
        self.hurried_at: int | None = None  # the update of one that was wanted and does not stand yet

    def run(self) -> None:
        """Train to the end, with rescues on the way."""
        rescues = self.agreed_rescues(lambda: read_rescues(self.job.checkpoints))
        while breach := self.train(rescues):
            rescues = self.agreed_rescues(partial(self.rescued, breach, rescues))

    def train(self, rescues: Sequence[Rescue]) -> Breach | None:
        """Train from the newest whole checkpoint on; returns what ran away, if something did."""
        place, run = self.job.checkpoints, self.config.run
        self.pulse.prepare("starting")
        vars(self).pop("state", None)  # there may be no room for two
        self.state = TrainState(self.config, self.grid, self.device, rescues)
        if rescues and self.grid.rank == 0:
            self.post("rescue", {"rescues": rescues})
        if self.base is not None:
            self.state.adopt(self.base)
        candidates = json.loads(agreed(self.grid, lambda: json.dumps(newest_first(place, rescues))))
        with self.pulse.working("resuming"):
            found = resume(self.state, place, candidates, self.dataset.manifest.digest, self.tell)
            if found is None and (start := self.config.training.start):
                with fetched(start, self.grid.pairs) as folder:
                    begin_with(self.state, folder, self.dataset.manifest.digest)
        if isinstance(self.config.cluster.num_workers, tuple):
            self.tell(f"{self.grid.world} workers train from update {self.state.step} on")
        self.checked = time.monotonic(), self.state.step  # when, and after which update
        self.question: Callable[[], Tensor] | None = None
        hooks = Hooks(self.log, self.stop, self.sample, self.save, self.judge, lambda: self.in_haste)
        # ranks that were started together write into one folder, which nobody else writes into
        attempt = agreed(self.grid, lambda: new_attempt(place))
        writers = {self.grid.owner(number) for number in range(self.grid.num_pairs)}
        keep = Keep(run.keep_last, run.keep_every)
        with Store(place, attempt, self.grid.rank, writers, keep, self.stands, self.heard) as self.store:
            breach = train(self.state, self.dataset, hooks, self.synchronise)
            if self.question is not None:
                self.question()  # nothing of it may be under way when a process ends
            with self.pulse.working("writing the last checkpoint"):
                self.store.settle()  # it may be the one to go back to
        return breach

    def agreed_rescues(self, found: Callable[[], Sequence[Rescue]]) -> Sequence[Rescue]:
        """The rescues that rank 0 finds, on every rank. A collective."""
        return RESCUES.validate_json(agreed(self.grid, lambda: RESCUES.dump_json(tuple(found())).decode()))

    def rescued(self, breach: Breach, rescues: Sequence[Rescue]) -> Sequence[Rescue]:
        """All rescues with one more, which is kept before anything follows from it. By rank 0.

        Raises:
            Diverged: the budget is used up.
        """
        place = self.job.checkpoints
        known = [(card.step, card.rescues) for card in checkpoints_below(place).values()]
        rescues = (*rescues, rescue(breach, self.config.sentinel, rescues, known))
        storage.write_bytes(storage.join(place, RESCUES_FILE), RESCUES.dump_json(rescues, indent=1))
        return rescues

    def post(self, kind: Any, content: dict[str, Any], step: int | None = None) -> None:
        """Pin a notice to the board; does not wait."""
        self.job.board.post.remote(Notice(kind, self.state.step if step is None else step, content))

    def tell(self, text: str) -> None:
        """Say something that a person shall read; once for all ranks."""
        if self.grid.rank == 0:
            self.post("event", {"text": text})

    def model(self) -> Model:
        """The averaged ladder; whole only after `state.share_average`."""
        manifest = self.dataset.manifest
        model = Model(self.state.config, self.state.average, manifest.class_names, manifest.digest, self.state.step)
        model.formulation = self.state.formulation  # with what it has compiled and captured
        return model

    def judge(self) -> Breach | None:
        """What the sentinels of all ranks make of what they have seen. A collective."""
        sentinel = self.state.sentinel
        if sentinel is None:
            return None
        return sentinel.judge(self.grid.sum(sentinel.table()), self.state.step)

    def log(self, metrics: dict[int, StepMetrics]) -> None:
        """Report the metrics of the pairs that this rank speaks for; all replicas have the same."""
        for number, seen in metrics.items():
            if self.grid.owner(number) == self.grid.rank:
                named = {f"{self.grid.prefix(number)}{name}": value.item() for name, value in vars(seen).items()}
                self.post("metrics", named)

    def stop(self) -> bool:
        """Whether the driver asks for an end. A collective about once a second, at steps on which all ranks agree.

        All learn what rank 0 knew the last time: ranks of different pairs do not wait for each other here.
        """
        self.pulse.moved(f"after update {self.state.step}")
        self.in_haste = False
        if self.state.step % self.check_every:
            return False
        stop = hurry = 0.0
        if self.question is not None:
            stop, hurry, sum_s = self.question().tolist()
            self.check_every = min(1 + int(ASK_S * self.grid.world / sum_s), self.config.run.log_every)
        if hurry:
            self.tell("the number of workers is about to change; a checkpoint is on its way")
        self.in_haste = self.preempted() or bool(hurry)
        if self.in_haste:
            self.hurried_at = self.state.step
        self.question = self.grid.begin_sum(self.known())
        return bool(stop)

    def known(self) -> Tensor:
        """What all ranks shall know: whether to end, whether in haste, seconds per update, (3,), to be summed up."""
        now_s, step = time.monotonic(), self.state.step
        step_s = (now_s - self.checked[0]) / (step - self.checked[1])
        self.checked = now_s, step
        asked, hurry = self.asked() if self.grid.rank == 0 else (False, False)
        return torch.tensor([float(asked), float(hurry), step_s], dtype=torch.float64)

    def asked(self) -> tuple[bool, bool]:
        """What the board asks for: an end, a checkpoint that is not on its way yet."""
        board = self.job.board
        stop, hurry = ray.get([board.should_stop.remote(), board.hurrying.remote()])
        return stop, hurry and self.hurried_at is None

    def preempted(self) -> bool:
        """Whether there is news of machines that are about to be taken away. A collective."""
        if self.preemption is None:
            return False
        with self.pulse.waiting("asking for notices of preemption"):
            notice = self.preemption.notice()
        if notice:
            self.tell(notice)
        return bool(notice)

    def sample(self) -> None:
        """Report a grid of samples. A collective."""
        self.state.settle_average()
        self.state.share_average()
        if self.grid.rank == 0:
            with self.pulse.working("sampling"):
                self.post("picture", {"samples": png_bytes(_picture(self.model()))})

    def save(self) -> Breach | None:
        """Score and begin to write a checkpoint, of a state that is finite. A collective."""
        if (sentinel := self.state.sentinel) is not None:
            table = self.grid.sum(sentinel.table())
            if not table.isfinite().all():
                return sentinel.judge(table, self.state.step)
            sentinel.hold(table)  # where a run is stopped, judgement waits for its usual step
        self.state.settle_average()
        begin_s, value, error = time.monotonic(), None, None
        if self.job.score is not None:
            self.state.share_average()
            with self.pulse.working("scoring"):
                value, error = self.job.score(self.model(), self.grid)
        costs = self.grid.sum(torch.tensor([self.spoken_cost_s(pair) for pair in self.grid.ranks], dtype=torch.float64))
        scored_s = time.monotonic()
        with self.pulse.working("waiting for the checkpoint before"):
            self.store.settle()
        content = snapshot(self.state, self.dataset.manifest.digest, value, costs.tolist(), error)
        self.store.save(content, self.model())
        if self.grid.rank == 0:
            self.post("saving", {"checkpoint_stall_s": time.monotonic() - scored_s, "score_s": scored_s - begin_s})
        return None

    def spoken_cost_s(self, pair: int) -> float:
        """What an update of a pair costs, where this rank speaks for it; else 0."""
        return self.state.cost_s.get(pair, 0.0) if self.grid.owner(pair) == self.grid.rank else 0.0

    def heard(self, card: Checkpoint) -> None:
        """Give the driver time to record what lies before a checkpoint; called in the thread that writes it."""
        # a run that resumes there measures it no more; after a driver that gave up there shall be no checkpoint
        board, deadline_s = self.job.board, time.monotonic() + HEARD_S
        while not ray.get(board.heard.remote(card.step)):
            if time.monotonic() > deadline_s and ray.get(board.failure.remote()) is None:
                return
            time.sleep(HEARD_POLL_S)

    def stands(self, card: Checkpoint, write_s: float) -> None:
        """Report a checkpoint that is visible from now on; called in the thread that wrote it."""
        told = {"score": card.score, "score_error": card.score_error, "write_s": write_s}
        self.post("checkpoint", told, card.step)
        if self.hurried_at is not None and card.step >= self.hurried_at:
            self.hurried_at = None
            self.job.board.hurried.remote()


def _pulse(board: Any) -> Pulse:
    context = ray.train.get_context()

    def send(beat: Beat) -> None:
        board.beat.remote(beat)

    return Pulse(send, context.get_world_rank(), ray.get_runtime_context().get_node_id())


def _waiting(board: Any, pulse: Pulse) -> Callable[[str, float], None]:
    """Reports of waiting for the storage, to the board."""

    def tell(text: str, waited_s: float) -> None:
        pulse.moved("waiting for the storage")  # patience has a deadline of its own
        board.post.remote(Notice("waiting", 0, {"text": text, "waited_s": waited_s}))

    return tell


def _picture(model: Model) -> Image.Image:
    """Ten samples of each of the first ten classes, or a hundred of an unconditional model; of points a batch."""
    num_classes = min(10, model.config.data.num_classes)
    if not num_classes:
        count = model.config.sampling.batch_size if len(model.config.data.shape) == 1 else PICTURE_COLUMNS**2
        return picture_of(model.sample(count, seed=PICTURE_SEED), PICTURE_COLUMNS)
    labels = torch.arange(num_classes).repeat_interleave(PICTURE_COLUMNS) + 1
    return picture_of(model.sample(len(labels), labels=labels, seed=PICTURE_SEED), PICTURE_COLUMNS)
