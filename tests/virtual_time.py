"""An event loop in virtual time: its clock stops while code runs, and jumps to the next timer when the loop is idle."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Waits in virtual time: whatever the loop would sleep passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Ready files, after `timeout` virtual seconds; fails where nothing would ever wake the loop."""
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing is left to wait for: a task under test is stuck"
            self.passed_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 1,000 s and moves by timers, or by `spend`."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Virtual seconds."""
        return 1_000.0 + self._virtual.passed_s

    def spend(self, seconds: float) -> None:
        """Let time pass while the loop is held up, as by work on it."""
        self._virtual.passed_s += seconds


async def _end_all() -> None:
    """Cancel what a scene left behind."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def run_virtually(scene: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run `scene` to its end in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(scene(loop))
    finally:
        loop.run_until_complete(_end_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
