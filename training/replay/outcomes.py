"""Future actions of users: the ground truth for slates and predicted probabilities."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from schemas.records import Interaction
from training.data.table import ATTRIBUTION_MS

__all__ = ["Outcomes"]


class Outcomes:
    """First interactions of users with items, and their outcomes within the attribution window, defined as training labels."""

    def __init__(
        self,
        events: Sequence[Interaction],
        positive: Callable[[str, float | None], bool],
        heads: Sequence[str],
        windows_ms: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Index the outcomes. `events` are in event-time order; `heads` are actions, or `positive` for the rule `positive`.

        `windows_ms`: windows other than a day, by head.
        """
        self._heads = tuple((name, windows_ms.get(name, ATTRIBUTION_MS)) for name in heads)
        self._numbers: dict[str, list[int]] = {}
        self._firsts: dict[str, list[tuple[str, int, NDArray[np.bool_]]]] = {}
        "By user: item, time, and whether each head's action followed. `_numbers` holds the event indices, ascending."
        first: dict[tuple[str, str], tuple[int, NDArray[np.bool_]]] = {}
        for n, event in enumerate(events):
            pair = (event.user_id, event.item_id)
            mine = first.get(pair)
            if mine is None:
                mine = first[pair] = (event.event_time, np.zeros(len(self._heads), np.bool_))
                self._numbers.setdefault(event.user_id, []).append(n)
                self._firsts.setdefault(event.user_id, []).append((event.item_id, *mine))
            for head, (name, window) in enumerate(self._heads):
                if event.event_time - mine[0] <= window:
                    mine[1][head] |= positive(event.action, event.value) if name == "positive" else event.action == name

    def begins(self, user_id: str, n: int) -> bool:
        """Whether event `n` is the user's first interaction with its item."""
        numbers = self._numbers.get(user_id, [])
        place = bisect_left(numbers, n)
        return place < len(numbers) and numbers[place] == n

    def liked(self) -> list[int]:
        """Indices of first interactions with items liked within the window, ascending. Requires `positive` as head 0."""
        numbered = [
            (n, came[0])
            for user, firsts in self._firsts.items()
            for n, (_, _, came) in zip(self._numbers[user], firsts, strict=True)
        ]
        return sorted(n for n, came in numbered if came)

    def of(self, user_id: str, n: int, time_ms: int) -> dict[str, NDArray[np.bool_]]:
        """Outcomes of the user's first interactions at event `n` or later, within the window from `time_ms`, by item."""
        start = bisect_left(self._numbers.get(user_id, ()), n)
        found = {}
        for item_id, time, came in self._firsts.get(user_id, [])[start:]:
            if time - time_ms > ATTRIBUTION_MS:
                break
            found[item_id] = came
        return found
