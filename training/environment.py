"""Environment variables of training, as frozen settings. `models.release.tracking` reads `MLFLOW_*`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.click_types import whole_variable

__all__ = ["Launch", "TrainingSettings", "processes_here"]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Defaults of command options. Training needs no worker settings, so it reads no other `RIFFLE_*` variable."""

    home: str = ".riffle"
    "`RIFFLE_HOME`: folder that contains the releases."
    text_model: str = ""
    "`RIFFLE_TEXT_MODEL`: folder or hub name of the text encoder. Empty: the packaged MiniLM."
    image_hosts: str = ""
    "`RIFFLE_IMAGE_HOSTS`: hosts that images are fetched from although their addresses are not public; `off`: none."

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> TrainingSettings:
        """Read the variables; an empty one counts as unset."""
        given = os.environ if environ is None else environ
        return cls(
            home=given.get("RIFFLE_HOME") or ".riffle",
            text_model=given.get("RIFFLE_TEXT_MODEL", ""),
            image_hosts=given.get("RIFFLE_IMAGE_HOSTS", ""),
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """The process group that `torchrun` started, as described in each process's environment."""

    processes: int = 1
    "`WORLD_SIZE`: processes on all machines."
    local_rank: int = 0
    "`LOCAL_RANK`: index of this process on its machine, from 0. Read only in a group."
    life: str = "0"
    "`TORCHELASTIC_RESTART_COUNT`: number of restarts of the group."

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Launch:
        """Read the variables.

        Raises:
            ConfigError: a value is not a whole number, or too small; the message names the variable.
        """
        given = os.environ if environ is None else environ
        processes = whole_variable(given, "WORLD_SIZE", 1, 1)
        if processes < 2:
            return cls()
        return cls(processes, whole_variable(given, "LOCAL_RANK", 0), given.get("TORCHELASTIC_RESTART_COUNT", "0"))


def processes_here(environ: Mapping[str, str] | None = None) -> int:
    """Number of processes of the group on this machine (`LOCAL_WORLD_SIZE`), which share its cores; 1 without a group.

    Raises:
        ConfigError: the value is not a whole number of 1 or more.
    """
    return whole_variable(os.environ if environ is None else environ, "LOCAL_WORLD_SIZE", 1, 1)
