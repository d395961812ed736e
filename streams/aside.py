"""Work that is long enough to be done beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["LONG", "aside"]

P = ParamSpec("P")
T = TypeVar("T")
LONG = 200
"Records or rows from which on a thread is worth its some 0.1 ms."


async def aside(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns: done in a thread when `size` is at least LONG, at once otherwise."""
    return await asyncio.to_thread(work, *args, **kwargs) if size >= LONG else work(*args, **kwargs)
