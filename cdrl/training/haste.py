"""A checkpoint before its time: a machine is about to be taken away, or Ray Train is about to start other workers.

Workers that Ray Train ends are not asked first: what was made since the last checkpoint is lost. A notice of preemption
reaches the workers themselves; of a resize only Ray Train's controller knows, which here waits for a checkpoint.
"""

import time
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState

__all__ = ["BeforeResize", "Preemption"]

POLL_S = 0.1
SILENT_S = 10.0  # workers say something once a second; one that has not for so long will write no checkpoint


class BeforeResize(ControllerCallback):
    """Makes the controller wait for a checkpoint before it ends running workers to start more or fewer.

    Args:
        board: actor handle of a `Board`.
        patience_s: how long it waits at most.
    """

    def __init__(self, board: Any, patience_s: float) -> None:
        self.board, self.patience_s = board, patience_s

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray Train, in the controller."""
        if not isinstance(current_state, ResizingState):
            return
        deadline_s = time.monotonic() + self.patience_s
        ray.get(self.board.hurry.remote())
        while ray.get(self.board.hurrying.remote()) and time.monotonic() < deadline_s:
            if any(beat.done or age_s > SILENT_S for beat, age_s in ray.get(self.board.beats.remote()).values()):
                break
            time.sleep(POLL_S)
        ray.get(self.board.hurried.remote())


class Preemption:
    """What one rank knows of machines that are about to be taken away."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def notice(self) -> str:
        """What is new, in a line, the same on every rank; empty if nothing is. A collective."""
        info = ray.train.get_preemption_info()
        if info is None or self._known.issuperset(info.preempted_node_ids):
            return ""
        self._known.update(info.preempted_node_ids)
        nodes = ", ".join(node[:8] for node in info.preempted_node_ids)
        when = "soon" if info.deadline_ms is None else f"in {max(0.0, info.deadline_ms / 1000 - time.time()):.0f} s"
        return f"ranks {info.preempted_ranks} lose their machine {nodes} {when}; a checkpoint is on its way"
