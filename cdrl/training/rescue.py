"""Rescues from divergence, as data: what was seen, which checkpoint the run went back to, and what it changed.

A rescue rolls back to a checkpoint, lowers a rate by a factor and changes the random stream; then the run goes on. So
its history is a line that bends back: of what was trained at a step twice, the later counts. With the list of rescues,
which is kept in the run's record, everything about a step follows from the number of the step: its random stream, its
rates, and whether a checkpoint of it still counts. A run without rescues has today's keys and rates, bit by bit.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_serializer

from cdrl import storage
from cdrl.config import Config, SentinelConfig
from cdrl.errors import Diverged, RegistryError
from cdrl.training.sentinel import Breach

__all__ = [
    "RESCUES",
    "RESCUES_FILE",
    "Rescue",
    "applied",
    "events_markdown",
    "in_force",
    "on_timeline",
    "read_rescues",
    "rescue",
    "roll_back_to",
    "stream_key",
]


RESCUES_FILE = "rescues.json"  # beside the run's checkpoints


class Rescue(BaseModel):
    """One rescue.

    Attributes:
        number: 1, 2, ... in the order of the clock.
        pair, level, step, quantity, value, bound: what was seen, as in `Breach`.
        from_step: updates in the checkpoint from which the run went on; 0 = from its start.
        lower, factor: what was multiplied by what, on top of earlier rescues.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = Field(ge=1)
    pair: int
    level: int
    step: int
    quantity: str
    value: float
    bound: float
    from_step: int
    lower: Literal["learning_rate", "step_scale"]
    factor: float

    @field_serializer("value", "bound", when_used="json")
    def _json_has_no_infinity(self, number: float) -> float | str:
        return number if math.isfinite(number) else str(number)

    @property
    def place(self) -> str:
        """Where it was seen; a gradient norm belongs to a pair."""
        return f"pair {self.pair}" if self.quantity.startswith("grad_norm") else f"level {self.level}"

    @property
    def seen(self) -> str:
        """What ran away, and beyond which bound, if it had one."""
        bound = f", bound {self.bound:.3g}" if math.isfinite(self.bound) else ""
        return f"{self.quantity} {self.value:.3g}{bound}"

    @property
    def line(self) -> str:
        """One line for people."""
        what = self.lower.replace("_", " ")
        change = f"with {what} x {self.factor:g} and other noise" if self.factor < 1 else "with other noise"
        where = f"{self.place}, update {self.step}"
        return f"rescue {self.number}: {where}: {self.seen}; went back to {self.from_step} {change}"


RESCUES = TypeAdapter(tuple[Rescue, ...])


def read_rescues(uri: str) -> tuple[Rescue, ...]:
    """The rescues of the run whose checkpoints lie at `uri`.

    Raises:
        RegistryError: the file is damaged.
        StorageError: the place cannot be reached.
    """
    place = storage.join(uri, RESCUES_FILE)
    content = storage.find_bytes(place)
    if content is None:
        return ()
    try:
        return RESCUES.validate_json(content)
    except ValidationError as error:
        raise RegistryError(f"{place}: damaged: {error.errors()[0]['msg']}; put a good copy back") from None


def rescue(
    breach: Breach, config: SentinelConfig, rescues: Sequence[Rescue], checkpoints: Iterable[tuple[int, int]]
) -> Rescue:
    """The rescue that answers a breach.

    Args:
        rescues: those before it, in order.
        checkpoints: (step, rescues made when it was written) of each whole one.

    Raises:
        Diverged: the budget is used up; the message tells the story.
    """
    if len(rescues) >= config.max_rescues:
        story = "; ".join([f"gave up after {len(rescues)} rescues", *(each.line for each in rescues)])
        raise Diverged(breach.level, breach.step, {breach.quantity: breach.value}, story=story)
    return Rescue(
        number=len(rescues) + 1,
        **vars(breach),
        from_step=roll_back_to(checkpoints, rescues, breach.step),
        lower=config.lower,
        factor=config.factor,
    )


def roll_back_to(checkpoints: Iterable[tuple[int, int]], rescues: Sequence[Rescue], breach_step: int) -> int:
    """The step of the newest checkpoint that counts and that no rescue has used; 0 = there is none, begin again.

    A run that broke again from the same checkpoint may have been on its way when it was written: one further back.
    Where all have been used, the oldest is used again, with other noise: long training is not thrown away for it.
    """
    counting = [
        (step, num_rescues)
        for step, num_rescues in checkpoints
        if step < breach_step and on_timeline(step, num_rescues, rescues)
    ]
    fresh = [step for step, made in counting if all(each.from_step != step for each in rescues[made:])]
    return max(fresh, default=min((step for step, _ in counting), default=0))


def on_timeline(checkpoint_step: int, num_rescues: int, rescues: Sequence[Rescue]) -> bool:
    """Whether a checkpoint that was written after `num_rescues` rescues counts: no later rescue went back past it."""
    return all(each.from_step >= checkpoint_step for each in rescues[num_rescues:])


def in_force(rescues: Sequence[Rescue], step: int) -> Sequence[Rescue]:
    """The rescues that the update after `step` updates came after, as the run stands now."""
    return rescues[: max((each.number for each in rescues if each.from_step <= step), default=0)]


def stream_key(rescues: Sequence[Rescue], step: int) -> tuple[int, ...]:
    """What the update after `step` updates adds to the key of its randomness; nothing before any rescue."""
    number = len(in_force(rescues, step))
    return (number,) if number else ()


def applied(config: Config, rescues: Sequence[Rescue]) -> Config:
    """The configuration with the rates as these rescues lowered them. Its identity is another: keep the run's."""
    for each in rescues:
        if each.lower == "learning_rate":
            training = config.training
            energy, initializer = (
                net.model_copy(update={"lr": net.lr * each.factor}) for net in (training.energy, training.initializer)
            )
            changed = training.model_copy(update={"energy": energy, "initializer": initializer})
            config = config.model_copy(update={"training": changed})
        else:
            scale = config.schedule.step_scale
            lowered = tuple(b * each.factor for b in scale) if isinstance(scale, tuple) else scale * each.factor
            config = config.model_copy(update={"schedule": config.schedule.model_copy(update={"step_scale": lowered})})
    return config


def events_markdown(rescues: Sequence[Rescue]) -> str:
    """The rescues as a Markdown table."""
    rows = [
        "| # | seen at update | where | what | value | bound | went back to | changed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {each.number} | {each.step} | {each.place} | {each.quantity} | {each.value:.3g} | {each.bound:.3g} | "
        f"{each.from_step} | {each.lower} x {each.factor:g} |"
        for each in rescues
    ]
    return "\n".join(rows) + "\n"
