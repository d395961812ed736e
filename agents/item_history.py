"""Keeps the counts of items by minute and by hour while a worker serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from models.items.history import ItemHistory
from models.pipeline.clock import wall_ms

__all__ = ["keep_history"]

EVERY_S = 1.0


async def keep_history(history: ItemHistory, ready: Callable[[], bool], clock: Callable[[], int] = wall_ms) -> None:
    """Count once the worker is `ready`, because what it reads until then has happened before. Runs until cancelled."""
    while True:
        if history.begun:
            for _ in history.roll(clock()):
                await asyncio.sleep(0)
        elif ready():
            for _ in history.begin(clock()):
                await asyncio.sleep(0)
        await asyncio.sleep(EVERY_S)
