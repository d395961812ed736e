"""What is not right with a worker: what keeps it from answering, and what a person should look at though it answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from schemas.errors import ConfigError, RiffleError
from streams.kafka_errors import Action, action_of, advice_of, named

__all__ = ["BackOff", "Health", "code_of", "heals", "why"]


def heals(error: BaseException) -> bool:
    """Whether a worker goes on after an error, by opening again what failed: all but faults of this program."""
    if isinstance(error, RiffleError):
        return not isinstance(error, ConfigError)
    return action_of(error) is not Action.END


def why(error: BaseException) -> str:
    """An error in one line, with what a person must do where there is something."""
    return error.message if isinstance(error, RiffleError) else advice_of(error)


def code_of(error: BaseException) -> str:
    """A stable name of an error, for counters."""
    return error.code if isinstance(error, RiffleError) else named(error).name


class Health:
    """Findings by name, as `/readyz` and `riffle doctor` show them. `clock`: seconds, never set back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.warnings: dict[str, str] = {}
        self._until: dict[str, float] = {}

    def warn(self, name: str, text: str, *, for_s: float | None = None) -> None:
        """Report something, until `clear`, or for `for_s` seconds after the last report."""
        self.warnings[name] = text
        if for_s is None:
            self._until.pop(name, None)
        else:
            self._until[name] = self._clock() + for_s

    def clear(self, name: str) -> None:
        """It is right again."""
        self.warnings.pop(name, None)
        self._until.pop(name, None)

    def set(self, name: str, text: str) -> None:
        """Report a text, or, when it is empty, that all is right."""
        if text:
            self.warn(name, text)
        else:
            self.clear(name)

    def current(self) -> dict[str, str]:
        """Everything that is not right now."""
        for name in [name for name, until in self._until.items() if self._clock() > until]:
            self.clear(name)
        return dict(self.warnings)


class BackOff:
    """Seconds to wait before the next attempt: doubled with each failure, back to the first once all was well for a while.

    `clock`: seconds, never set back.
    """

    def __init__(self, first_s: float, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_s, self._most_s, self._clock = first_s, most_s, clock
        self._failures = 0
        self._last_s = -float("inf")

    def failed(self) -> float:
        """Note a failure; returns how long to wait."""
        now = self._clock()
        if now - self._last_s > 4 * self._most_s:
            self._failures = 0
        self._failures += 1
        self._last_s = now
        return float(min(self._first_s * 2.0 ** min(self._failures - 1, 30), self._most_s))
