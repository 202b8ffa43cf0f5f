"""Errors with a name. Each message says what, where, what was expected, what was found and what to do.

The command line prints one such line and exits with `exit_code`: 2 for what the user can mend, 1 for a failure.
"""

__all__ = [
    "CdrlError",
    "ClusterError",
    "ClusterOutage",
    "ConfigError",
    "DataError",
    "Diverged",
    "GateFailed",
    "JobFailed",
    "JobRefused",
    "RegistryError",
    "StorageError",
    "TrackingError",
    "TrackingOutage",
]


class CdrlError(Exception):
    """Any error that this project raises on purpose."""

    exit_code = 2


class ConfigError(CdrlError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(CdrlError):
    """A source, a shard or a manifest is missing, damaged or of the wrong shape."""


class StorageError(CdrlError):
    """A file or an object store cannot be reached, read or written."""


class TrackingError(CdrlError):
    """The tracking server cannot be reached or refuses the request."""


class TrackingOutage(TrackingError):
    """The tracking server does not answer, or not as it should: a later try may succeed."""

    exit_code = 1


class RegistryError(CdrlError):
    """A model, a version or a package does not exist or is not what it claims to be."""


class GateFailed(CdrlError):
    """A promotion was refused; the message holds the reasons."""


class ClusterError(CdrlError):
    """A cluster refuses the request, or something that was asked for is not there."""


class ClusterOutage(ClusterError):
    """A cluster does not answer, or not as it should: a later try may succeed."""

    exit_code = 1


class JobFailed(CdrlError):
    """A job on the cluster ended in failure."""

    exit_code = 1


class JobRefused(JobFailed):
    """A job's command ended because of something that its user can mend."""

    exit_code = 2


class Diverged(CdrlError):
    """Training left the finite or the plausible before an optimizer moved, or a trained network's values did.

    Attributes:
        level: the noise level (0 ... num_levels-1) at which it was seen.
        step: the update that was not applied; elsewhere the step or draw of the activity.
        value: what was seen, by name, e.g. `{"f_neg": nan}`.
        activity: what was going on: "training", "scoring", ...
        story: what had been tried; it ends the message.
    """

    exit_code = 1

    def __init__(
        self, level: int, step: int, value: dict[str, float], activity: str = "training", story: str = ""
    ) -> None:
        self.level, self.step, self.value, self.activity, self.story = level, step, value, activity, story
        seen = ", ".join(f"{name}={number:g}" for name, number in value.items())
        unit, rest = "step", "take another checkpoint"
        if activity == "training":
            unit, rest = "update", "the update was not applied"
        super().__init__(f"{activity} diverged at level {level}, {unit} {step}: {seen}; {story or rest}")

    def __reduce__(self) -> tuple[type["Diverged"], tuple[int, int, dict[str, float], str, str]]:
        return Diverged, (self.level, self.step, self.value, self.activity, self.story)  # it crosses process borders
