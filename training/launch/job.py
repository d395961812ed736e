"""What is run, wherever it is run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.errors import ConfigError

__all__ = ["COMMAND", "MASTER_PORT", "STATE", "TrainingJob"]

COMMAND = ("python", "-m", "training.launch")
"The container's command; what to train follows it. `training.launch.__main__` finds the other machines and starts `torchrun`."
MASTER_PORT = 29_400
STATE = "/var/lib/riffle"
"Where a volume for releases and checkpoints is mounted."
NAME = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")
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
    memory: str = "16Gi"
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
        for name in self.environment:
            if SECRET.search(name):
                message = f"{name} looks like a secret: name a secret of the cluster, or use the machine's role"
                raise ConfigError("job_secret", message, "environment")

    @property
    def command(self) -> list[str]:
        """The whole container command."""
        return [*COMMAND, *self.arguments]
