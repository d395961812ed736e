"""Findings: problems of a worker, whether they keep it from answering or only need an operator's attention."""

from __future__ import annotations

import time
from collections.abc import Callable

from schemas.errors import ConfigError, RiffleError
from streams.kafka.error_codes import Action, action_of, advice_of, named

__all__ = ["NOTED_S", "Health", "code_of", "heals", "why"]

NOTED_S = 120.0
"Seconds for which a finding about a past problem is shown."


def heals(error: BaseException) -> bool:
    """Return whether a worker recovers from an error by reopening the failed part: all errors but bugs of this program."""
    if isinstance(error, RiffleError):
        return not isinstance(error, ConfigError)
    return action_of(error) is not Action.END


def why(error: BaseException) -> str:
    """Describe an error in one line, with the operator's remedy if there is one."""
    return error.message if isinstance(error, RiffleError) else advice_of(error)


def code_of(error: BaseException) -> str:
    """Return a stable name of an error, for counters."""
    return error.code if isinstance(error, RiffleError) else named(error).name


class Health:
    """Findings by name, as `/readyz` and `riffle doctor` show them. `clock`: seconds, never set back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.warnings: dict[str, str] = {}
        self._until: dict[str, float] = {}

    def warn(self, name: str, text: str, *, for_s: float | None = None) -> None:
        """Report a finding, until `clear`, or for `for_s` seconds after the last report."""
        self.warnings[name] = text
        if for_s is None:
            self._until.pop(name, None)
        else:
            self._until[name] = self._clock() + for_s

    def clear(self, name: str) -> None:
        """Remove a finding, because its problem is over."""
        self.warnings.pop(name, None)
        self._until.pop(name, None)

    def set(self, name: str, text: str) -> None:
        """Report a finding, or remove it if the text is empty."""
        if text:
            self.warn(name, text)
        else:
            self.clear(name)

    def current(self) -> dict[str, str]:
        """Return the current findings."""
        for name in [name for name, until in self._until.items() if self._clock() > until]:
            self.clear(name)
        return dict(self.warnings)
