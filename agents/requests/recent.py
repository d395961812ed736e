"""The newest answered requests of a worker, for people who look at it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from schemas.errors import RiffleError
from schemas.records import Request, Slate

__all__ = ["KEPT", "KEPT_S", "Recent"]

KEPT = 200
"Maximum number of requests that are kept."
KEPT_S = 600.0
"Seconds after which a request is no longer shown, because it names a user who may have been erased since."


class Recent:
    """Keeps what is small of each request: no candidates, no items. `clock`: returns epoch seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, str, str, int, str, float, Slate | str]] = deque(maxlen=KEPT)

    def note(self, request: Request, interface: str, seconds: float, answer: Slate | RiffleError) -> None:
        """Keep a request. `seconds`: from its arrival to its answer."""
        kept = answer.code if isinstance(answer, RiffleError) else _slim(answer)
        self._kept.append((self._clock(), request.request_id, request.user_id, request.k, interface, seconds, kept))

    def forget(self, user_id: str) -> None:
        """Remove the requests of a user who is erased."""
        self._kept = deque((entry for entry in self._kept if entry[2] != user_id), maxlen=KEPT)

    def listed(self, most: int) -> list[dict[str, Any]]:
        """Return up to `most` requests of the last `KEPT_S`, newest first."""
        oldest, found = self._clock() - KEPT_S, list[dict[str, Any]]()
        for at, request_id, user_id, k, interface, seconds, answer in reversed(self._kept):
            if at < oldest or len(found) == most:
                break
            entry = {"at": round(at * 1000), "request_id": request_id, "user_id": user_id, "k": k, "interface": interface}
            found.append({**entry, "ms": round(seconds * 1000, 2), **_outcome(answer)})
        return found


def _slim(slate: Slate) -> Slate:
    """Return the slate without its items, which hold the ranker's input of a whole batch in memory."""
    return Slate(slate.request_id, slate.user_id, (), slate.release, slate.arm, slate.degraded, slate.as_of, slate.timings_ms)


def _outcome(answer: Slate | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"outcome": answer, "release": None, "degraded": [], "timings_ms": {}}
    outcome = "degraded" if answer.degraded else "slate"
    facts = {"outcome": outcome, "release": answer.release, "degraded": list(answer.degraded)}
    return {**facts, "timings_ms": dict(answer.timings_ms)}
