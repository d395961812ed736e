"""Limits the memory that glibc's allocator retains, because arrays are allocated and freed in different threads."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["GIVE_BACK_S", "few_arenas", "give_back"]

M_ARENA_MAX = -8
"Parameter number of `mallopt(3)`."
GIVE_BACK_S = 30.0
"Seconds between two calls of `give_back`, because each takes about 10 ms of one core."


def few_arenas() -> None:
    """Use two arenas instead of one per thread, which would retain a sixth more memory.

    Large arrays are allocated in the arenas, too, because mapping each separately costs a quarter of the events per second.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_ARENA_MAX, 2)


def give_back() -> None:
    """Return free memory to the system (malloc_trim(3)); does nothing with another allocator."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
