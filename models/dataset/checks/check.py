"""The result of one check."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from models.dataset.bad_rows import BadRow, place

__all__ = ["NAMED", "Check", "State", "examples", "good", "warning"]

NAMED = 5
"Maximum number of examples in one text."


class State(enum.StrEnum):
    """Result of a check. Data with a `FAIL` cannot be loaded, or not be learned from, as it is."""

    GOOD = "pass"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One check."""

    name: str
    state: State
    found: str
    advice: str = ""
    "How to mend it; empty if it passes."

    def to_json(self) -> dict[str, str]:
        """Return it as JSON values."""
        facts = {"check": self.name, "state": str(self.state), "found": self.found}
        return {**facts, "advice": self.advice} if self.advice else facts


def good(name: str, found: str) -> Check:
    """Return a check that passes."""
    return Check(name, State.GOOD, found)


def warning(name: str, found: str, advice: str) -> Check:
    """Return a check that warns."""
    return Check(name, State.WARN, found, advice)


def examples(rows: Sequence[BadRow]) -> str:
    """Return the first bad rows in words."""
    said = "; ".join(f"{place(row)}: {row.reason}" for row in rows[:NAMED])
    return said + ("; …" if len(rows) > NAMED else "")
