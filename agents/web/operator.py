"""What a person may do to a running system from the web page: the interface between its routes and the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

__all__ = ["Operator"]


class Operator(Protocol):
    """Acts for an operator. One action at a time is under way; all are bounded."""

    async def letters(self, most: int, code: str) -> Mapping[str, object]:
        """Return the `most` newest dead letters, newest first, and counts by code; `code`: only of this one, unless empty.

        Raises:
            NotReady: `busy`, or Kafka does not answer.
        """

    async def replay(self, letters: Sequence[int], code: str) -> Mapping[str, int]:
        """Produce dead letters again, by number or, without numbers, all of a code; returns what became of them.

        Raises:
            BadRequest: `not_found`, none of the newest letters is meant.
            NotReady: `busy`, or Kafka does not answer.
        """

    async def promote(self, name: str, expected: str | None = None) -> Mapping[str, object]:
        """Verify and announce a release that the gate accepted; returns `{"champion", "previous"}`.

        `expected`: name of the champion that this replaces, `none` without one; None: whichever it is.

        Raises:
            BadRequest: `not_found`, `release_refused` with the reason, or `champion_changed`, another one is the champion.
            NotReady: `busy`; `under_way`, it goes on after the answer; or Kafka does not answer.
        """

    async def roll_back(self, expected: str | None = None) -> Mapping[str, object]:
        """Announce the release that served before; returns and raises as `promote`."""
