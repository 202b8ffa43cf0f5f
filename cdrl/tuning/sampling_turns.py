"""The same images under several settings, drawn in turns: how they look, and how long each setting takes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from cdrl.config import SamplingConfig
from cdrl.evaluation.curve import first_of_each
from cdrl.evaluation.generate import draw
from cdrl.evaluation.scorer import Scorer

__all__ = ["Turns", "in_turns"]

NUM_TURNS = 3


@dataclass(frozen=True)
class Turns:
    """Of each setting a few images (n, *shape), of the same noise and labels, and seconds for an image."""

    shown: list[NDArray]
    seconds: list[float]


def in_turns(scorer: Scorer, settings: Sequence[SamplingConfig]) -> Turns:
    """Draw one batch with each setting, a few times over; the fastest of each setting counts.

    A machine that is busy for a while is then busy for all of them, and what is done once only counts for none.
    """
    model, protocol = scorer.model, scorer.protocol(settings[0])
    num_images, seed = min(protocol.num_generated, settings[0].batch_size), protocol.seed
    labels = None if scorer.labels is None else scorer.labels[:num_images]
    few = first_of_each(labels, num_images)
    shown, seconds = [], [float("inf")] * len(settings)
    for turn in range(NUM_TURNS):
        for number, sampling in enumerate(settings):
            begin_s = time.perf_counter()
            images = draw(model, num_images, labels=labels, sampling=sampling, seed=seed)
            seconds[number] = min(seconds[number], (time.perf_counter() - begin_s) / num_images)
            if turn == 0:
                shown.append(images[few])
    return Turns(shown, seconds)
