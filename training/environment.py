"""What training reads from the environment, beside `MLFLOW_*` (`models.release.tracking`): frozen, documented, read here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.click_types import whole_variable

__all__ = ["Launch", "TrainingSettings", "processes_here"]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Defaults of options. A training needs no worker's settings, so no other variable of `RIFFLE_*` is looked at."""

    home: str = ".riffle"
    "`RIFFLE_HOME`: the folder of releases lies in it."
    text_model: str = ""
    "`RIFFLE_TEXT_MODEL`: folder or hub name of the text encoder. Empty: the packaged MiniLM."
    image_hosts: str = ""
    "`RIFFLE_IMAGE_HOSTS`: hosts whose images are fetched though their addresses are not public; `off`: none."

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
    """The group of processes that `torchrun` started, as it describes it to each of them."""

    processes: int = 1
    "`WORLD_SIZE`, of all machines."
    local_rank: int = 0
    "`LOCAL_RANK`: number of this process on its machine, from 0. Read in a group alone."
    life: str = "0"
    "`TORCHELASTIC_RESTART_COUNT`: how often the group was started again."

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Launch:
        """Read the variables.

        Raises:
            ConfigError: one is no whole number, or too small; the message names it.
        """
        given = os.environ if environ is None else environ
        processes = whole_variable(given, "WORLD_SIZE", 1, 1)
        if processes < 2:
            return cls()
        return cls(processes, whole_variable(given, "LOCAL_RANK", 0), given.get("TORCHELASTIC_RESTART_COUNT", "0"))


def processes_here(environ: Mapping[str, str] | None = None) -> int:
    """Processes of the group on this machine (`LOCAL_WORLD_SIZE`), which share its cores; 1 without a group.

    Raises:
        ConfigError: it is no whole number from 1 on.
    """
    return whole_variable(os.environ if environ is None else environ, "LOCAL_WORLD_SIZE", 1, 1)
