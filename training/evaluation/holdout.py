"""Which events are kept from training to judge a release by: the newest of all, or, where those are too few, everybody's last.

`prequential`: the newest share of the events, asked and applied one after the other. It holds what time changes, and is the
protocol wherever it holds enough queries of enough people.

`leave_last_out`: of each person everything from the last first meeting with something liked on. Each is asked once, after all
other events are applied, as if everybody came back now. That asks as many people as there are, and costs each of them one
like. Other people's later events are then known, to the release as to what it is compared with.
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
    "unseen_share",
    "without_kept",
]


@dataclass(frozen=True, slots=True)
class Holdout:
    """Events, those to train on first, and how the others are asked about."""

    protocol: str
    events: Sequence[Interaction]
    "Those to train on in event-time order, then those that are kept, in event-time order."
    trained: int
    "How many of them are trained on."
    queries: int
    people: int
    "Whom the queries are of."
    kept_from_ms: Mapping[str, int] = field(default_factory=dict)
    "Of `leave_last_out`, by person: the time of the query, from which on nothing of theirs is trained on."

    @property
    def apart(self) -> bool:
        """Whether each is asked for itself, and none of what is kept is applied."""
        return self.protocol == LEAVE_LAST_OUT

    @property
    def share(self) -> float:
        """`trained` as a share of the events: `int(len(events) * share)` gives it back."""
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
    """What to train on and what to ask about. Known before anything is trained.

    `share` of the events is trained on at least where the newest are kept, `queries` are asked at most. A `champion` that was
    trained until `until_ms` must not be asked about what it has learned; one that has learned everything here is of other data,
    or nothing is new, and all that is kept is asked.

    Raises:
        BadDataset: neither protocol finds enough to judge by; the message says what there is and what is needed.
    """
    newest = _newest(events, positive, share, queries, until_ms, bounds)
    if newest.queries >= bounds.queries and newest.people >= bounds.people:
        return newest
    after_ms = until_ms if len(events) and events[-1].event_time > until_ms else -1
    last = last_out(events, positive, after_ms)
    if last.people >= bounds.last:
        return last
    since = "" if after_ms < 0 or champion == "none" else f" since {champion} was trained"
    kept = len(events) - newest.trained
    raise BadDataset(
        "too_little_to_judge",
        f"too little to judge a release by, so none is trained: {last.people} people liked something{since} after their first "
        f"event, {bounds.last} are needed (or, in the newest {kept:,} events, {bounds.queries} items liked by {bounds.people} "
        f"people; there are {newest.queries} by {newest.people}). Train again when more people have liked something",
    )


def _newest(events: Sequence[Interaction], positive: str, share: float, queries: int, until_ms: int, bounds: Bounds) -> Holdout:
    cut = unseen_share(events, share, until_ms)
    asked = asked_of(events, PositiveRule(positive), cut, first=True)
    cut = _gate_share(events, asked, cut, queries, bounds)
    kept = [n for n in asked if n >= int(len(events) * cut)]
    kept = spread(kept, queries)
    people = {events[n].user_id for n in kept}
    return Holdout(PREQUENTIAL, events, int(len(events) * cut), len(kept), len(people))


def last_out(events: Sequence[Interaction], positive: str, after_ms: int = -1) -> Holdout:
    """Keep of each person what came from the last first meeting with something liked on, where that is later than `after_ms`.

    A person of whom nothing would be left to train on is not asked.
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
    kept_from_ms = {user: events[n].event_time for user, n in last.items()}
    return Holdout(LEAVE_LAST_OUT, ordered, int((~held).sum()), len(last), len(last), kept_from_ms)


def without_kept(corpus: Corpus, held: Holdout, windows_ms: Iterable[int]) -> Corpus:
    """The corpus with the events of `held`, and without slates whose labels could say what is kept.

    That are those of people who are asked whose windows (the longest of `windows_ms`, a day at least) are not over at their
    query. Of `prequential` none need be left out: training reads slates only as far as its newest event.
    """
    corpus = replace(corpus, events=held.events)
    if not held.kept_from_ms:
        return corpus
    longest = max((ATTRIBUTION_MS, *windows_ms))
    last = [time_ms - longest for time_ms in held.kept_from_ms.values()]
    kept = pl.DataFrame({"user_id": list(held.kept_from_ms), "_last": last}, schema={"user_id": pl.String, "_last": pl.Int64})

    def earlier(slates: pl.DataFrame) -> pl.DataFrame:
        user = slates.with_columns(pl.col("user_id").cast(pl.String)).select("user_id")
        until = user.join(kept, on="user_id", how="left", maintain_order="left")["_last"]
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
    """`share` of the events, or more, up to where a release that was trained until `until_ms` has seen them.

    It must not be asked about what it has learned, events of that very moment included. One that has seen all is of other data,
    or nothing new has come: `share`.
    """
    n, cut = len(events), int(len(events) * share)
    if cut >= n or events[cut].event_time > until_ms or events[-1].event_time <= until_ms:
        return share
    return (bisect_right(events, until_ms, cut, key=lambda event: event.event_time) + 0.5) / n


def gate_share(events: Sequence[Interaction], positive: str, share: float, queries: int, bounds: Bounds = STANDARD) -> float:
    """`share` of the events, or more, up to where what is left still holds what the gate asks.

    That are `queries` first meetings of what is liked (`asked_of`), of as many people as `bounds` want; where the rest after
    `share` holds fewer of either, it is all kept. So what is kept from training does not grow with the history.
    """
    return _gate_share(events, asked_of(events, PositiveRule(positive), share, first=True), share, queries, bounds)


def _gate_share(events: Sequence[Interaction], asked: Sequence[int], share: float, queries: int, bounds: Bounds) -> float:
    needed, people = max(queries, bounds.queries), set[str]()
    for found, n in enumerate(reversed(asked), 1):
        people.add(events[n].user_id)
        if found >= needed and len(people) >= bounds.people:
            return max(share, (n + 0.5) / len(events))  # of the same events, be it the share or a little less
    return share
