"""Role of this process in its group, known without torch: a process loads torch only when it has something to train."""

from __future__ import annotations

import sys

__all__ = ["NotFirst", "agree", "is_first"]


class NotFirst(Exception):
    """Ends the program in a process other than the first, once its work with the group is done."""


def is_first() -> bool:
    """Whether this process writes results: it trains alone, or is the first of its group.

    A process is in a group only after `training.loop.group` has joined it.
    """
    distributed = sys.modules.get("training.loop.group")
    return distributed is None or bool(distributed.Group.current().first)


def agree(what: str, value: int) -> None:
    """Check that all processes of the group have the same number. A process alone always agrees.

    Raises:
        ConfigError: they differ.
    """
    distributed = sys.modules.get("training.loop.group")
    if distributed is not None:
        distributed.Group.current().agree(what, value)
