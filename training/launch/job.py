"""A training job, independent of the cluster that runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.errors import ConfigError
from schemas.masking import masked_url

__all__ = ["COMMAND", "MASTER_PORT", "STATE", "TrainingJob"]

COMMAND = ("python", "-m", "training.launch")
"Container command, followed by a training command. `training.launch.__main__` finds the other machines and starts `torchrun`."
MASTER_PORT = 29_400
STATE = "/var/lib/riffle"
"Mount path of the volume for releases and checkpoints."
NAME = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")
QUANTITY = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)(?P<suffix>[num]|[kMGTPE]|[KMGTPE]i|[eE][+-]?\d{1,2})?")
"https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/, without a sign, as no quantity is negative."
POWERS = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
MOST_CPUS, LEAST_BYTES = 10_000, 64 << 20
SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|PRIVATE|(^|_)KEY(_|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training with its resources."""

    name: str
    "Lower-case letters, digits and dashes, at most 52."
    image: str
    arguments: tuple[str, ...]
    "Arguments that follow COMMAND: `train SOURCE …`."
    nodes: int = 1
    processes: int = 1
    "Processes per node."
    gpus: int = 0
    "GPUs per node."
    cpus: str = "4"
    "CPUs per node, as a Kubernetes quantity: 4, 500m."
    memory: str = "16Gi"
    "Memory per node, as a Kubernetes quantity: 16Gi, 16000M."
    max_seconds: int = 86_400
    restarts: int = 3
    "Maximum number of restarts of a failed process. It continues from its checkpoint."
    environment: Mapping[str, str] = field(default_factory=dict)
    "Environment variables, without secrets: these come from the cluster's secrets or the machine's role."

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                "job_name", f"{self.name[:80]!r} cannot name a job: letters, digits and dashes, at most 52", "name"
            )
        if not self.image or not self.arguments:
            raise ConfigError("job", "a job needs an image, and something to do")
        if min(self.nodes, self.processes, self.max_seconds) < 1 or min(self.gpus, self.restarts) < 0:
            raise ConfigError("job", "a job needs at least one node, one process and one second")
        if self.gpus and self.processes > self.gpus:
            raise ConfigError("job", f"{self.processes} processes cannot share {self.gpus} GPUs", "processes")
        cpus, memory = _quantity(self.cpus, "cpus", "4 or 500m"), _quantity(self.memory, "memory", "16Gi")
        if not 0 < cpus <= MOST_CPUS:
            raise ConfigError("quantity", f"{self.cpus} is not a number of CPUs: write 4, or 500m for half of one", "cpus")
        if memory < LEAST_BYTES:
            message = (
                f"{self.memory} are {memory:g} bytes, in which nothing can be trained: is {self.memory.rstrip('m')}Gi meant?"
            )
            raise ConfigError("quantity", message, "memory")
        for name, value in self.environment.items():
            if SECRET.search(name) or masked_url(value) != value:
                message = (
                    f"{name} looks like a secret, or holds a login: name a secret of the cluster, or use the machine's role"
                )
                raise ConfigError("job_secret", message, "environment")

    @property
    def command(self) -> list[str]:
        """The whole container command."""
        return [*COMMAND, *self.arguments]


def _quantity(text: str, name: str, such_as: str) -> float:
    """Parse a Kubernetes quantity as a number; raises ConfigError."""
    found = QUANTITY.fullmatch(text)
    if found is None:
        raise ConfigError("quantity", f"{text[:80]!r} is not a quantity of {name}: write such as {such_as}", name)
    number, suffix = float(found["number"]), found["suffix"] or ""
    if suffix.endswith("i"):
        return number * float(1024 ** ("KMGTPE".index(suffix[0]) + 1))
    return number * 10.0 ** (POWERS[suffix] if suffix in POWERS else int(suffix[1:] or 0))
