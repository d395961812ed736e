"""What glibc's allocator keeps: arrays of a chunk are made in one thread and freed in another, rows grow and are replaced."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["GIVE_BACK_S", "few_arenas", "give_back"]

M_ARENA_MAX = -8
"mallopt(3)"
GIVE_BACK_S = 30.0
"Between two calls of `give_back`: each takes some 10 ms of one core."


def few_arenas() -> None:
    """Two arenas instead of one per thread: else a sixth more memory is kept than is in use.

    Large arrays stay in them: to map each anew costs a quarter of the events per second.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_ARENA_MAX, 2)


def give_back() -> None:
    """Give what is free back to the system (malloc_trim(3)); nothing where there is another allocator."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
