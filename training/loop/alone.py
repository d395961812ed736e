"""Whether this process trains alone. Known without torch, which a process loads only when it has something to train."""

from __future__ import annotations

import sys

__all__ = ["NotFirst", "agree", "is_first"]


class NotFirst(Exception):
    """Ends a program in a process other than the first, once all that it must do with the others is done."""


def is_first() -> bool:
    """Whether this process is the one that writes: one that trains alone, or the first of its group.

    A process belongs to a group only once `training.loop.group` has joined it.
    """
    distributed = sys.modules.get("training.loop.group")
    return distributed is None or bool(distributed.Group.current().first)


def agree(what: str, value: int) -> None:
    """Check that all processes of the group have the same number; a process alone agrees.

    Raises:
        ConfigError: they do not.
    """
    distributed = sys.modules.get("training.loop.group")
    if distributed is not None:
        distributed.Group.current().agree(what, value)
