"""What a cluster made for one job consists of: the YAML of `cdrl submit --config`.

Rules that KubeRay keeps in its code and not in the schema of its resources are checked here, before anything is sent.
"""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from cdrl.config.schema import Section
from cdrl.errors import ConfigError

__all__ = ["JobSpec", "Pod", "WorkerGroup", "check_name", "named", "read_spec"]

MAX_NAME_LENGTH = 47
"""KubeRay names the cluster after the job and six characters, and a service after that: 63 in the end."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[1-9]\d*(\.\d+)?(m|[KMGT]i?)?$", description="such as 500m, 8Gi")]
Label = Annotated[str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")]


class Pod(Section):
    """One kind of pod. CPUs are requested and limited alike, and so is memory: nothing is taken from neighbours."""

    cpus: Quantity = "4"
    memory: Quantity = "16Gi"
    shared_memory: Quantity = Field("2Gi", description="/dev/shm, where Ray keeps objects; part of the memory")
    node_selector: dict[Label, LabelValue] = Field({}, description="labels of the machines that may be used")


class Spot(Section):
    """Machines that may be taken away: their label, which is also their taint, and the notice that they give."""

    label: Label = Field(..., description="such as cloud.google.com/gke-spot or karpenter.sh/capacity-type")
    value: LabelValue = "true"
    grace_s: int = Field(25, ge=10, le=120, description="seconds from the notice to the end, for a checkpoint")


class WorkerGroup(Pod):
    """Workers of one kind. `min_replicas` below `max_replicas` lets Ray's autoscaler choose between them."""

    name: Name = "workers"
    replicas: int = Field(1, ge=0)
    min_replicas: int | None = Field(None, ge=0, description="default: replicas")
    max_replicas: int | None = Field(None, ge=1, description="default: replicas")
    gpus: int = Field(0, ge=0, le=16, description="of one pod")
    gpu_resource: Label = "nvidia.com/gpu"
    gpu_type: LabelValue | None = Field(None, description="value of gpu_label, such as NVIDIA-H100-80GB-HBM3")
    gpu_label: Label = Field("nvidia.com/gpu.product", description="the label that tells the types of GPUs apart")
    spot: Spot | None = None

    @property
    def least(self) -> int:
        """The fewest pods."""
        return self.replicas if self.min_replicas is None else self.min_replicas

    @property
    def most(self) -> int:
        """The most pods."""
        return self.replicas if self.max_replicas is None else self.max_replicas

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerGroup":
        if not self.least <= self.replicas <= self.most:
            found = f"{self.least}, {self.replicas}, {self.most}"
            raise ValueError(f"expected min_replicas <= replicas <= max_replicas, got {found}")
        if self.gpu_type and not self.gpus:
            raise ValueError("gpu_type without gpus; say how many each pod has")
        return self


class SecretKey(Section):
    """One value of a Secret, by reference."""

    name: Name
    key: str = Field("password", pattern=r"^[A-Za-z0-9_.-]+$")


class FaultTolerantHead(Section):
    """The cluster's tables in Redis: a new head takes over what the old one knew."""

    redis_address: str = Field(..., pattern=r"^(rediss?://)?[A-Za-z0-9.-]+:\d+$", description="HOST:PORT")
    password: SecretKey | None = None


class JobSpec(Section):
    """A cluster for one job, and what becomes of both."""

    image: str = Field("cdrl:0.1.0", pattern=r"^[a-z0-9][A-Za-z0-9_.:/-]*(@sha256:[0-9a-f]{64})?$")
    production: bool = Field(False, description="the image must be pinned by its digest")
    ray_version: str = Field("2.60.0", pattern=r"^\d+\.\d+\.\d+$", description="of the image")
    namespace: Name = "default"
    service_account: Name | None = None
    head: Pod = Pod(memory="8Gi")
    workers: tuple[WorkerGroup, ...] = Field((WorkerGroup(),), min_length=1)
    secrets: tuple[Name, ...] = Field((), description="Secrets whose keys become environment variables of every pod")
    volume: Name | None = Field(None, description="a ReadWriteMany volume claim, mounted at volume_path in every pod")
    volume_path: str = Field("/runs", pattern=r"^(/[A-Za-z0-9_-]+)+$")
    fault_tolerant_head: FaultTolerantHead | None = None
    kueue_queue: Name | None = Field(None, description="a LocalQueue of Kueue")
    volcano_queue: Name | None = Field(None, description="a Queue of Volcano")
    suspend: bool = Field(False, description="make the job, and wait for `cdrl jobs resume`")
    retries: int = Field(3, ge=0, le=20, description="new clusters after a failure; a user's mistake is not repeated")
    deadline_s: int = Field(14 * 86400, ge=60)
    ttl_s: int = Field(600, ge=0, description="seconds that the cluster stays after the end")
    stop_wait_s: int = Field(60, ge=10, le=600, description="seconds that a stopped command has for its checkpoint")

    @field_validator("ray_version")
    @classmethod
    def _knows_tokens(cls, ray_version: str) -> str:
        if tuple(map(int, ray_version.split("."))) < (2, 52, 0):
            raise ValueError("token authentication needs Ray 2.52 or newer")
        return ray_version

    @model_validator(mode="after")
    def _agrees(self) -> "JobSpec":
        if self.production and "@sha256:" not in self.image:
            raise ValueError(f"image {self.image!r} has no digest; production expects NAME@sha256:DIGEST")
        if self.image.rpartition(":")[2] == "latest":
            raise ValueError(f"image {self.image!r}: latest is another image tomorrow; name a version or a digest")
        names = [group.name for group in self.workers]
        if len(set(names)) < len(names):
            raise ValueError(f"workers: each group needs a name of its own, got {', '.join(names)}")
        if self.kueue_queue and self.volcano_queue:
            raise ValueError("kueue_queue and volcano_queue: one of them holds the job back, not both")
        if self.autoscaling and (self.kueue_queue or self.volcano_queue):
            raise ValueError("a queue admits a fixed number of pods; give every group one number of replicas")
        return self

    @property
    def autoscaling(self) -> bool:
        """Whether a group may grow and shrink."""
        return any(group.least < group.most for group in self.workers)


def check_name(name: str) -> str:
    """A job's name, as it is.

    Raises:
        ConfigError: not a DNS-1035 label, or too long for what KubeRay makes of it.
    """
    letters = set("abcdefghijklmnopqrstuvwxyz")
    allowed = letters | set("0123456789-")
    if not (0 < len(name) <= MAX_NAME_LENGTH and name[0] in letters and set(name) <= allowed and name[-1] != "-"):
        expected = f"1 to {MAX_NAME_LENGTH} lower-case letters, digits and dashes, a letter first and no dash last"
        raise ConfigError(f"--name {name!r}: expected {expected}")
    return name


def read_spec(path: str | None) -> JobSpec:
    """The job in a YAML file; None = the defaults.

    Raises:
        ConfigError: it cannot be read, or one line with everything that is wrong in it.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text()) if path else {}
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot read the file: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    return _validated({} if tree is None else tree, f"--config {path}")


def named(namespace: str) -> JobSpec:
    """The defaults in a namespace.

    Raises:
        ConfigError: not a namespace's name.
    """
    return _validated({"namespace": namespace}, "--namespace")


def _validated(tree: Any, where: str) -> JobSpec:
    try:
        return JobSpec.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(map(_explained, error.errors()))) from None


def _explained(detail: Any) -> str:
    """One complaint of pydantic: where, what, and what was found."""
    where = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"{where}: no such setting"
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if detail["type"] in ("missing", "value_error") else f", got {detail['input']!r}"
    return f"{where}: {message}{shown}" if where else message
