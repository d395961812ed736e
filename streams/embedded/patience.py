"""How long to wait for a process that is starting: as long as it makes progress, within a limit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["WHOLE", "Patience", "cpu_seconds"]

WHOLE = 10
"A wait ends after this many times the limit, whatever progress is seen, because a process that retries works, too."
STEP_S = 1.0
"Seconds of processor time that count as progress. A waiting process uses less within a limit of a minute."


def cpu_seconds(pid: int | None) -> float:
    """Return the seconds of processor time that a live process has used (proc(5), fields 14 and 15); 0 when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    after_name = text.rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


class Patience:
    """Decides when to stop waiting for a process.

    `limit_s`: seconds without progress. `cpu_s` returns the processor time of a process by its pid.
    """

    def __init__(
        self,
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[int | None], float] = cpu_seconds,
    ) -> None:
        self._limit_s, self._clock, self._cpu_s = limit_s, clock, cpu_s
        self._began = self._progress = clock()
        self._state: object = None
        self._used_s = 0.0

    def is_over(self, pid: int | None, state: object = None) -> bool:
        """Return whether to stop waiting. Progress is another process, another `state`, or a second of processor time."""
        now, used_s, found = self._clock(), self._cpu_s(pid), (pid, state)
        if found != self._state or used_s - self._used_s >= STEP_S:
            self._state, self._used_s, self._progress = found, used_s, now
        return now - self._progress >= self._limit_s or now - self._began >= WHOLE * self._limit_s
