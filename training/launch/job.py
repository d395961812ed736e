"""What is run, wherever it is run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.errors import ConfigError
from schemas.masking import masked_url

__all__ = ["COMMAND", "MASTER_PORT", "STATE", "TrainingJob"]

COMMAND = ("python", "-m", "training.launch")
"The container's command; what to train follows it. `training.launch.__main__` finds the other machines and starts `torchrun`."
MASTER_PORT = 29_400
STATE = "/var/lib/riffle"
"Where a volume for releases and checkpoints is mounted."
NAME = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")
QUANTITY = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)(?P<suffix>[num]|[kMGTPE]|[KMGTPE]i|[eE][+-]?\d{1,2})?")
"https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/, without a sign: nothing here is negative."
POWERS = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
MOST_CPUS, LEAST_BYTES = 10_000, 64 << 20
SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|PRIVATE|(^|_)KEY(_|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training, with what it needs."""

    name: str
    "Lower-case letters, digits and dashes, at most 52."
    image: str
    arguments: tuple[str, ...]
    "What follows COMMAND: `train SOURCE …`."
    nodes: int = 1
    processes: int = 1
    "Processes per node."
    gpus: int = 0
    "Per node."
    cpus: str = "4"
    "A quantity as Kubernetes writes them, per node: 4, 500m."
    memory: str = "16Gi"
    "Likewise: 16Gi, 16000M."
    max_seconds: int = 86_400
    restarts: int = 3
    "How often a process that ended badly is started again; it goes on from its checkpoint."
    environment: Mapping[str, str] = field(default_factory=dict)
    "Not for secrets: those come from the cluster's own secrets or the machine's role."

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
            raise ConfigError("quantity", f"{self.cpus} are no number of CPUs: write 4, or 500m for half of one", "cpus")
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
    """The number that a quantity says; raises ConfigError."""
    found = QUANTITY.fullmatch(text)
    if found is None:
        raise ConfigError("quantity", f"{text[:80]!r} is no quantity of {name}: write such as {such_as}", name)
    number, suffix = float(found["number"]), found["suffix"] or ""
    if suffix.endswith("i"):
        return number * float(1024 ** ("KMGTPE".index(suffix[0]) + 1))
    return number * 10.0 ** (POWERS[suffix] if suffix in POWERS else int(suffix[1:] or 0))
