"""Run long work in a thread, outside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["LONG", "aside"]

P = ParamSpec("P")
T = TypeVar("T")
LONG = 200
"Number of records or rows from which a thread is worth its cost of about 0.1 ms."


async def aside(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` and return its result: in a thread when `size` is at least LONG, else at once."""
    return await asyncio.to_thread(work, *args, **kwargs) if size >= LONG else work(*args, **kwargs)
