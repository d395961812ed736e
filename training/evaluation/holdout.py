"""Choice of the events held out to judge a release: the newest ones or, where those are too few, each user's last ones.

`prequential` holds out the newest share of the events; they are queried and applied in order. It covers changes over time, and
is used wherever it has enough queries of enough users.

`leave_last_out` holds out each user's events from the last first interaction with a liked item on. Each user is queried once,
after all training events are applied, as if all returned now. Training loses one like of each such user. Later events
of other users are then known, both to the release and to the one it is compared with.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.rules import PositiveRule
from schemas.errors import BadDataset
from schemas.records import Interaction
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.data.table import ATTRIBUTION_MS
from training.evaluation.bounds import LEAVE_LAST_OUT, PREQUENTIAL, STANDARD, Bounds
from training.evaluation.evaluate import asked_of, spread
from training.replay.outcomes import Outcomes

__all__ = [
    "Holdout",
    "gate_share",
    "held_out",
    "last_out",
    "newer_held_out",
    "newer_queries",
    "unseen_share",
    "without_revealing_slates",
]


@dataclass(frozen=True, slots=True)
class Holdout:
    """Events, training events first, and how the held-out ones are queried."""

    protocol: str
    events: Sequence[Interaction]
    "Training events in event-time order, then held-out events in event-time order."
    trained: int
    "Number of training events."
    queries: int
    people: int
    "Number of users with queries."
    held_from_ms: Mapping[str, int] = field(default_factory=dict)
    "For `leave_last_out`, by user: event time of the query, ms. The user's events from then on are held out."

    @property
    def independent(self) -> bool:
        """Whether queries are independent and no held-out event is applied."""
        return self.protocol == LEAVE_LAST_OUT

    @property
    def share(self) -> float:
        """`trained` as a share of the events, such that `int(len(events) * share)` equals it."""
        return min(1.0, (self.trained + 0.5) / max(len(self.events), 1))


def held_out(
    events: Sequence[Interaction],
    positive: str,
    share: float,
    queries: int,
    champion: str = "none",
    until_ms: int = -1,
    bounds: Bounds = STANDARD,
) -> Holdout:
    """Choose training events and queries, before any training.

    Where the newest events are held out, at least `share` of all is trained on. At most `queries` are asked. Events up to
    `until_ms`, on which the `champion` was trained, are not queried. Of the later ones at most half is held out, or as many as
    `bounds` need, so that the new release learns from the others. A champion trained past the last event belongs to other
    data, or nothing is new; then all held-out events are queried.

    Raises:
        BadDataset: neither protocol finds enough to judge by; the message gives available and needed numbers.
    """
    newest = _newest(events, positive, share, queries, until_ms, bounds)
    after_ms = until_ms if len(events) and events[-1].event_time > until_ms else -1
    return _sufficient(newest, events, positive, champion, after_ms, bounds, "none is trained")


def newer_held_out(
    events: Sequence[Interaction], positive: str, queries: int, champion: str, until_ms: int, bounds: Bounds = STANDARD
) -> Holdout:
    """Choose queries that judge an existing release, among the events later than `until_ms`.

    Neither that release nor the `champion` was trained on them.

    Raises:
        BadDataset: neither protocol finds enough to judge by; the message gives available and needed numbers.
    """
    cut = bisect_right(events, until_ms, key=lambda event: event.event_time)
    newest = _queried(events, positive, (cut + 0.5) / max(len(events), 1), queries, bounds)
    return _sufficient(newest, events, positive, champion, until_ms, bounds, "it is not judged")


def newer_queries(events: Sequence[Interaction], positive: str, until_ms: int) -> int:
    """Number of first interactions with liked items later than `until_ms`."""
    cut = bisect_right(events, until_ms, key=lambda event: event.event_time)
    return len(asked_of(events, PositiveRule(positive), (cut + 0.5) / max(len(events), 1), first=True)) if len(events) else 0


def _sufficient(
    newest: Holdout, events: Sequence[Interaction], positive: str, champion: str, after_ms: int, bounds: Bounds, so: str
) -> Holdout:
    """`newest` if it suffices, else the last likes of users; raises BadDataset where these are too few, with `so` as result."""
    if newest.queries >= bounds.queries and newest.people >= bounds.people:
        return newest
    last = last_out(events, positive, after_ms)
    if last.people >= bounds.last:
        return last
    since = "" if after_ms < 0 or champion == "none" else f" since {champion} was trained"
    kept = len(events) - newest.trained
    raise BadDataset(
        "too_little_to_judge",
        f"too little to judge a release by, so {so}: {last.people} users liked something{since} after their first "
        f"event, {bounds.last} are needed (or, in the newest {kept:,} events, {bounds.queries} first interactions with liked "
        f"items by {bounds.people} users; there are {newest.queries} by {newest.people}). Train again when more users have "
        "liked something",
    )


def _newest(events: Sequence[Interaction], positive: str, share: float, queries: int, until_ms: int, bounds: Bounds) -> Holdout:
    share = unseen_share(events, share, until_ms)
    held = _queried(events, positive, share, queries, bounds)
    first_new = bisect_right(events, until_ms, key=lambda event: event.event_time)
    middle = (first_new + len(events)) // 2
    if not 0 < first_new < len(events) or held.trained >= middle:
        return held
    # a release that learned nothing since the champion could not be better: half of the new events are learned from, if the
    # other half suffices to judge by, else as many as can be spared
    asked = asked_of(events, PositiveRule(positive), held.share, first=True)
    spared = int(len(events) * _gate_share(events, asked, held.share, bounds.queries, bounds))
    cut = max(held.trained, min(middle, spared))
    return held if cut == held.trained else _queried(events, positive, (cut + 0.5) / len(events), queries, bounds)


def _queried(events: Sequence[Interaction], positive: str, share: float, queries: int, bounds: Bounds) -> Holdout:
    """Hold out the events after `share`, or only as many as `queries` need."""
    asked = asked_of(events, PositiveRule(positive), share, first=True)
    cut = _gate_share(events, asked, share, queries, bounds)
    held = spread([n for n in asked if n >= int(len(events) * cut)], queries)
    people = {events[n].user_id for n in held}
    return Holdout(PREQUENTIAL, events, int(len(events) * cut), len(held), len(people))


def last_out(events: Sequence[Interaction], positive: str, after_ms: int = -1) -> Holdout:
    """Hold out each user's events from the last first interaction with a liked item on, where that is later than `after_ms`.

    Users without any event before it are not queried, because no training event would remain.
    """
    users = [event.user_id for event in events]
    begins: dict[str, int] = {}
    for n, user in enumerate(users):
        begins.setdefault(user, n)
    last: dict[str, int] = {}
    for n in Outcomes(events, PositiveRule(positive), ("positive",)).liked():
        if n > begins[users[n]] and events[n].event_time > after_ms:
            last[users[n]] = n
    held = np.asarray([n >= last.get(user, len(users)) for n, user in enumerate(users)], np.bool_)
    ordered = _in_order(events, np.argsort(held, kind="stable"))
    held_from_ms = {user: events[n].event_time for user, n in last.items()}
    return Holdout(LEAVE_LAST_OUT, ordered, int((~held).sum()), len(last), len(last), held_from_ms)


def without_revealing_slates(corpus: Corpus, held: Holdout, windows_ms: Iterable[int]) -> Corpus:
    """Corpus with the events of `held`, without slates whose labels could reveal held-out events.

    Those are slates of queried users whose windows (the longest of `windows_ms`, at least a day) end after their query. For
    `prequential` none is dropped, because training reads slates only up to its newest event.
    """
    corpus = replace(corpus, events=held.events)
    if not held.held_from_ms:
        return corpus
    longest = max((ATTRIBUTION_MS, *windows_ms))
    last = [time_ms - longest for time_ms in held.held_from_ms.values()]
    queried = pl.DataFrame(
        {"user_id": list(held.held_from_ms), "_last": last}, schema={"user_id": pl.String, "_last": pl.Int64}
    )

    def earlier(slates: pl.DataFrame) -> pl.DataFrame:
        user = slates.with_columns(pl.col("user_id").cast(pl.String)).select("user_id")
        until = user.join(queried, on="user_id", how="left", maintain_order="left")["_last"]
        return slates.filter(until.is_null() | (slates["event_time"] < until))

    def read(after_ms: int, until_ms: int, most: int, windows: Mapping[str, int]) -> pl.DataFrame:
        assert corpus.logged is not None
        return earlier(corpus.logged(after_ms, until_ms, most, windows))

    shown = None if corpus.shown is None else EventFrame(earlier(corpus.shown.frame))
    return replace(corpus, shown=shown, logged=None if corpus.logged is None else read)


def _in_order(events: Sequence[Interaction], order: NDArray[np.intp]) -> Sequence[Interaction]:
    if isinstance(events, EventFrame):
        return EventFrame(events.frame[order])
    return [events[n] for n in order.tolist()]


def unseen_share(events: Sequence[Interaction], share: float, until_ms: int) -> float:
    """`share` of the events, extended to the end of the training data of a release trained until `until_ms`.

    The release must not be queried on training events; events at exactly that time count as such. Returns `share` if the
    release was trained past all events, because it belongs to other data or nothing is new.
    """
    n, cut = len(events), int(len(events) * share)
    if cut >= n or events[cut].event_time > until_ms or events[-1].event_time <= until_ms:
        return share
    return (bisect_right(events, until_ms, cut, key=lambda event: event.event_time) + 0.5) / n


def gate_share(events: Sequence[Interaction], positive: str, share: float, queries: int, bounds: Bounds = STANDARD) -> float:
    """`share` of the events, raised as far as the remaining events still suffice for the gate.

    The gate needs `queries` first interactions with liked items (`asked_of`), by as many users as `bounds` require. Where the
    rest after `share` holds fewer of either, all of it is held out. So the held-out part does not grow with the history.
    """
    return _gate_share(events, asked_of(events, PositiveRule(positive), share, first=True), share, queries, bounds)


def _gate_share(events: Sequence[Interaction], asked: Sequence[int], share: float, queries: int, bounds: Bounds) -> float:
    needed, people = max(queries, bounds.queries), set[str]()
    for found, n in enumerate(reversed(asked), 1):
        people.add(events[n].user_id)
        if found >= needed and len(people) >= bounds.people:
            return max(share, (n + 0.5) / len(events))  # + 0.5, so that rounding of the share gives back the same n
    return share
