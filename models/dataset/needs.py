"""Numbers that a training needs of its data, for the training itself and for checks before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.units import DAY_MS

__all__ = ["FEWEST_EVENTS", "HELD_OUT", "LIKED_USERS", "LIKED_WITHIN_MS", "QUERIES", "QUERY_USERS", "ToJudge", "to_judge"]

FEWEST_EVENTS = 100
"Minimum number of events for a training."
QUERIES, QUERY_USERS = 50, 30
"Minimum numbers of queries, and of users who make them, in the newest events, to judge a release by."
LIKED_USERS = 12
"Otherwise, the minimum number of users who liked something after their first event."
HELD_OUT = 0.2
"Share of the events, the newest ones, that judge a release."
LIKED_WITHIN_MS = DAY_MS
"A first interaction with an item is a query if the user likes the item then, or within this time."


@dataclass(frozen=True, slots=True)
class ToJudge:
    """What events offer to judge a first release by."""

    queries: int
    "First interactions with liked items in the newest `HELD_OUT` of the events."
    users: int
    "Users who make them."
    liked_users: int
    "Users who liked something after their first event."

    @property
    def suffices(self) -> bool:
        """Whether a training finds enough."""
        return (self.queries >= QUERIES and self.users >= QUERY_USERS) or self.liked_users >= LIKED_USERS


def to_judge(events: Sequence[tuple[str, str, int, str, float | None]], liked: Callable[[str, float | None], bool]) -> ToJudge:
    """Count what judges a release. `events`: user, item, time (ms), action and value, in event-time order, without impressions.

    Training chooses the same events (`training.evaluation.holdout.held_out`).
    """
    first: dict[tuple[str, str], tuple[int, int]] = {}
    asked = set[int]()
    for n, (user, item, time, action, value) in enumerate(events):
        begun, at = first.setdefault((user, item), (time, n))
        if time - begun <= LIKED_WITHIN_MS and liked(action, value):
            asked.add(at)
    begins: dict[str, int] = {}
    for n, (user, *_) in enumerate(events):
        begins.setdefault(user, n)
    cut = int(len(events) * (1.0 - HELD_OUT))
    newest = [n for n in asked if n >= cut]
    after = {events[n][0] for n in asked if n > begins[events[n][0]]}
    return ToJudge(len(newest), len({events[n][0] for n in newest}), len(after))
