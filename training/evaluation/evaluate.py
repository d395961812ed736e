"""Offline evaluation of slates by the prequential protocol, through the serving pipeline.

Events are processed in time order. Each positive event of the last part is a query: recommend to its user from all earlier
events, out of the whole catalogue, without items that the user has interacted with unless the plan allows repeats. The rank of
the liked item gives NDCG@10, HR@10, Recall@50 and MRR. The event is then applied, as a worker would apply it.

Three things differ from a worker and are exact here. Statistics and neighbours are current at once instead of some milliseconds
later. They are summed over one partition. A new item's text and image vectors arrive with the item instead of some seconds
later. An item that the pipeline does not rank counts as beyond every rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.pipeline.slot import ModelSlot
from schemas.records import Interaction, Item
from training.discount import discounts_at
from training.evaluation.calibration import Traffic
from training.evaluation.ranking_metrics import reciprocal_rank
from training.evaluation.shown_lists import ListFigures, ListRanker, ShownTest
from training.replay.outcomes import Outcomes
from training.replay.probe import Probed, Prober
from training.replay.world import SimulatedWorker, Vectors

__all__ = ["DEEP", "EvaluationPlan", "Figures", "K", "QueryOutcome", "asked_of", "evaluate", "spread"]

K = 10
DEEP = 50
WINDOW_DEPTH = 100
"Number of ranks that are compared with all items that the user likes within the attribution window."
ASKING = 100
"Cost of a query for the progress report, in applied events, roughly."
CHUNK = 1_000


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Plan of an evaluation on a corpus."""

    share: float = 0.8
    "Fraction of the events before the first query."
    queries: int | None = None
    "Maximum number of queries, evenly spread; None: no limit."
    parity: int = 0
    "Number of requests on which the exported graphs are compared with torch."
    first: bool = False
    "Query at first interactions with items liked then or later, instead of at every positive event (`asked_of`)."
    repeats: bool = False
    "Allow slates to hold items that the user has interacted with, so that queries for these can be answered, too."
    independent: bool = False
    "Apply no event after the first part; queries are independent of each other (`training.evaluation.holdout`)."
    shown: bool = False
    "Also re-rank the slates that another system showed after the first part (`training.evaluation.shown_lists`)."
    traffic: int = 0
    """Maximum number of first interactions after the first part, liked or not and evenly spread, at which probabilities are
    compared with outcomes (`training.evaluation.calibration`). None with `independent`, whose queries are likes only."""


STANDARD = EvaluationPlan()


@dataclass(frozen=True, slots=True)
class QueryOutcome:
    """One query: user, item, its trace through the pipeline, and the user's later likes."""

    user_id: str
    item_id: str
    probed: Probed
    without_history: bool
    "Whether the user had liked nothing before."
    cold: bool
    "Whether no user had interacted with the item before."
    interacted: bool
    "Whether the user had interacted with the item before, so that it is seen; a slate holds it only with repeats."
    top: tuple[str, ...]
    "The first K item ids of the slate."
    hits: NDArray[np.bool_]
    "Whether the user liked the item at each rank within the attribution window, from this event on: `(ranks,)`."
    relevant: int
    "Number of items first interacted with and liked within that window, shown or not."
    came: NDArray[np.bool_]
    "Whether each head's action followed within the window, per item that the ranker scored: `(ranked, heads)`."


@dataclass(slots=True)
class Figures:
    """Ranks of the liked items, and the stages where unranked ones were lost."""

    ranks: list[int] = field(default_factory=list)
    "Rank per query, 0 is first; BEYOND where the item was not ranked."
    stages: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    "Number of queries whose item each source retrieved."
    without_history: int = 0
    asked: list[QueryOutcome] = field(default_factory=list)
    "Outcome of each query."
    heads: tuple[str, ...] = ()
    "Heads of the release; empty without one."
    lists: ListFigures | None = None
    "Outcomes of re-ranking shown slates, if any were given."
    traffic: Traffic = field(default_factory=Traffic)
    "Probabilities and outcomes at moments of all traffic."
    slates: Traffic = field(default_factory=Traffic)
    "Probabilities and outcomes of the items of logged and shown slates."

    def note(self, asked: QueryOutcome) -> None:
        """Add the outcome of one query."""
        self.asked.append(asked)
        self.ranks.append(asked.probed.rank)
        self.stages[asked.probed.stage] += 1
        self.sources.update(asked.probed.sources)
        self.without_history += asked.without_history

    def note_moment(self, asked: QueryOutcome, *, query: bool, traffic: bool) -> None:
        """Add the outcome of a moment that is a query, or one of all traffic, or both."""
        if query:
            self.note(asked)
        if traffic:
            self.traffic.note(asked.probed.heads, asked.came)

    def to_json(self) -> dict[str, object]:
        """Means over all queries, null without any."""
        ranks = np.asarray(self.ranks, np.int64)
        n = max(len(ranks), 1)

        def mean(total: float) -> float | None:
            return round(float(total) / n, 4) if len(ranks) else None

        there = ranks >= 0
        return {
            f"ndcg@{K}": mean(discounts_at(ranks, K).sum()),
            f"hr@{K}": mean((there & (ranks < K)).sum()),
            f"recall@{DEEP}": mean((there & (ranks < DEEP)).sum()),
            "mrr": mean(reciprocal_rank(ranks).sum()),
            **self._of_candidates(),
            "queries": len(ranks),
            "queries_without_history": self.without_history,
            "queries_on_met_items": sum(asked.interacted for asked in self.asked),
            "stages": {name: round(count / n, 4) for name, count in sorted(self.stages.items())},
            "sources": {name: round(count / n, 4) for name, count in sorted(self.sources.items())},
        }

    def _of_candidates(self) -> dict[str, object]:
        """Recall of the candidate stage: in its first DEEP by light score, and in all of it."""
        places = np.asarray([asked.probed.candidate_rank for asked in self.asked], np.int64)
        if not len(places):
            return {}
        there = places >= 0
        return {
            f"candidate_recall@{DEEP}": round(float((there & (places < DEEP)).mean()), 4),
            "candidate_recall": round(float(there.mean()), 4),
            "candidates": round(float(np.mean([asked.probed.candidates for asked in self.asked])), 1),
        }


def asked_of(
    events: Sequence[Interaction],
    positive: Callable[[str, float | None], bool],
    share: float,
    most: int | None = None,
    *,
    first: bool = False,
) -> list[int]:
    """Indices of the events that are queries: positive ones after the first `share`, or `most` of them, evenly spread.

    With `first` they are first interactions with items liked then or later within the attribution window. A slate can show such
    an item, which matters where users view before they buy, or return to items that they like.
    """
    cut = int(len(events) * share)
    if first:
        asked = [n for n in Outcomes(events, positive, ("positive",)).liked() if n >= cut]
    else:
        asked = [n for n in range(cut, len(events)) if positive(events[n].action, events[n].value)]
    return asked if most is None else spread(asked, most)


def spread(asked: list[int], most: int) -> list[int]:
    """Select all of `asked`, or `most` of them, evenly spread."""
    if len(asked) <= most:
        return asked
    return [asked[place] for place in np.linspace(0, len(asked) - 1, most).astype(int).tolist()]


def evaluate(  # noqa: PLR0913 - the history, and what is observed on the way
    items: Iterable[Item],
    events: Sequence[Interaction],
    positive: Callable[[str, float | None], bool],
    plan: EvaluationPlan = STANDARD,
    progress: Callable[[int, int], None] = lambda done, of: None,  # noqa: ARG005
    slot: ModelSlot | None = None,
    at_cut: Callable[[SimulatedWorker], None] | None = None,
    vectors: Vectors | None = None,
    shown: ShownTest | None = None,
) -> Figures:
    """Apply the first `plan.share` of the events, then query at each positive one of the rest and apply it.

    `events` are in event-time order. `progress` is called with work done and total work, in units of one event. `at_cut` is
    called once the first part is applied. `vectors` are of items that the release lacks or holds in another form, see
    `SimulatedWorker`. `shown`: slates that are re-ranked, each before the event at its place. Deterministic.
    """
    items = list(items)
    world, figures = SimulatedWorker(items, slot, vectors), Figures()
    prober, cut = Prober(world.items, world.slot, repeats=plan.repeats), int(len(events) * plan.share)
    queries = set(asked_of(events, positive, plan.share, plan.queries, first=plan.first))
    model = world.slot.current
    heads, windows = (("positive",), {}) if model is None else (model.heads, model.windows_ms)
    outcomes = Outcomes(events, positive, heads, windows)
    figures.heads = () if model is None else heads
    moments = set() if model is None or plan.independent else _moments(events, outcomes, cut, plan.traffic)
    work = len(events) + ASKING * len(queries | moments)
    liked: set[str] = set()
    for start in range(0, cut, CHUNK):
        chunk = events[start : min(start + CHUNK, cut)]
        world.publish(chunk[-1].event_time)
        world.apply(chunk)
        liked.update(event.user_id for event in chunk if positive(event.action, event.value))
        progress(start + len(chunk), work)
    while model is not None and not model.synced(world.items):  # a running worker has synced the items of that time long ago
        model.sync(world.items)
    if at_cut is not None:
        at_cut(world)
    lists = None if shown is None else ListRanker(world, shown)
    waiting: list[Interaction] = []
    done = 0
    for n, event in enumerate(events[cut:], cut):
        while lists is not None and lists.due(n):
            world.apply(waiting)
            waiting = []
            lists.proceed()
        asking = n in queries or n in moments
        # nobody reads the state between two queries, and the size of chunks does not affect it while no item is published
        if asking or world.publishes(event.event_time) or len(waiting) == CHUNK:
            world.apply(waiting)
            waiting = []
        world.publish(event.event_time)
        if asking:
            world.know(world.record(event.user_id))
            probed = prober.probe(event.user_id, world.record(event.user_id), event.item_id)
            ahead = outcomes.of(event.user_id, n, event.event_time)
            new, again = event.user_id not in liked, not outcomes.begins(event.user_id, n)
            asked = _asked(world, event, probed, ahead, len(heads), new, again)
            figures.note_moment(asked, query=n in queries, traffic=n in moments)
            done += 1
        if not plan.independent:
            if positive(event.action, event.value):
                liked.add(event.user_id)
            waiting.append(event)
        progress(n + 1 + ASKING * done, work)
    if lists is not None:
        figures.lists, figures.slates = lists.figures, lists.traffic
    return figures


def _moments(events: Sequence[Interaction], outcomes: Outcomes, cut: int, most: int) -> set[int]:
    """Indices of at most `most` first interactions after the cut, evenly spread."""
    if not most:
        return set()
    first = [n for n, event in enumerate(events[cut:], cut) if outcomes.begins(event.user_id, n)]
    return set(spread(first, most))


def _asked(
    world: SimulatedWorker,
    event: Interaction,
    probed: Probed,
    following: dict[str, NDArray[np.bool_]],
    heads: int,
    without_history: bool,
    interacted: bool,
) -> QueryOutcome:
    rows = world.items.rows_of(list(following))
    came = np.zeros((len(world.items), heads), np.bool_)
    for row, labels in zip(rows.tolist(), following.values(), strict=True):
        if row >= 0:
            came[row] = labels
    row = world.items.row_of(event.item_id)
    return QueryOutcome(
        event.user_id,
        event.item_id,
        probed,
        without_history,
        cold=row < 0 or not int(world.items.events[row].sum()),
        interacted=interacted,
        top=tuple(world.items.ids[row] for row in probed.slate[:K].tolist()),
        hits=came[probed.slate[:WINDOW_DEPTH], 0],
        relevant=sum(bool(labels[0]) for labels in following.values()),
        came=came[probed.ranked],
    )
