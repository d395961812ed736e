"""A circuit breaker for each worker or ranking pod that requests are passed to (Nygard, "Release It!", 2007)."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["MAX_BREAKERS", "Breaker", "Breakers"]

HOLD_S = 1.0
"Seconds for which a peer that failed is not asked; one request then probes it."
FAILURES = 3
"Consecutive failures after which a peer is not asked. One is enough if it refuses connections."
MAX_BREAKERS = 1_000
"Number of addresses that are remembered."


class Breaker:
    """Decides whether one peer may be asked: closed (yes), open (no), or half-open (one probe decides).

    A caller that was allowed must report the outcome with `succeeded`, `failed`, or `let_go` if there is none. A probe whose
    caller never reports does not block: another one is allowed after `hold_s`. `clock`: monotonic, in seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        hold_s: float = HOLD_S,
        failures: int = FAILURES,
        closed: bool = True,
    ) -> None:
        """`closed`: whether the peer may be asked before a probe was answered."""
        self._clock = clock
        self._hold_s = hold_s
        self._most = failures
        self._failed = 0
        "Consecutive failures."
        self._closed = closed
        self._next_at = 0.0
        "Time from which a probe is allowed, while not closed."

    @property
    def closed(self) -> bool:
        """Whether the peer may be asked, by any number of requests."""
        return self._closed

    @property
    def away(self) -> bool:
        """Whether the peer failed so often that it is not asked; not while it was never asked."""
        return not self._closed and self._failed > 0

    @property
    def due(self) -> bool:
        """Whether a probe is allowed now, while the breaker is not closed."""
        return not self._closed and self._clock() >= self._next_at

    def allows(self) -> bool:
        """Return whether the peer may be asked now. While not closed, True makes the caller the probe."""
        if self._closed:
            return True
        now = self._clock()
        if now < self._next_at:
            return False
        self._next_at = now + self._hold_s
        return True

    def succeeded(self) -> None:
        """Report an answer of any content, because only the peer's reachability counts."""
        self._failed, self._closed = 0, True

    def failed(self, *, refused: bool = False) -> None:
        """Report that no answer came. `refused`: the peer does not accept connections, which needs no second opinion."""
        self._failed += 1
        if refused or self._failed >= self._most or not self._closed:
            self._closed = False
            self._next_at = self._clock() + self._hold_s

    def let_go(self) -> None:
        """Report that the request ended without an outcome, because its sender left: another one may probe at once."""
        if not self._closed:
            self._next_at = self._clock()


class Breakers:
    """A breaker for each address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, Breaker] = {}

    def of(self, address: str) -> Breaker:
        """Return the breaker of an address. The addresses that were first asked the longest ago are forgotten."""
        if address not in self._of:
            while len(self._of) >= MAX_BREAKERS:
                self._of.pop(next(iter(self._of)))
            self._of[address] = Breaker(self._clock)
        return self._of[address]
