"""How good are the slates? The prequential protocol, through the pipeline that serves.

Events in time order. Each positive event of the last part is a query: recommend to that person, from what everybody did
before that moment, out of the whole catalogue, without what the person has already met. The place of the item that the
person then liked gives NDCG@10, HR@10, Recall@50 and MRR. The event is then applied, as a worker would apply it.

Three things differ from a worker, and are exact here: statistics and neighbours are known at once instead of some milliseconds
later, they are summed over one partition, and a new item's text and image vectors are there with the item instead of some
seconds later. What the pipeline does not rank counts as beyond every rank.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.items.store import NEIGHBOURS, ItemStore
from models.items.vectors import ItemVector
from models.pipeline.batch import RECENT
from models.pipeline.slot import ModelSlot
from models.state.kernels.user_rows import UNIT
from models.state.rows import UserRecord
from models.tables.neighbours import CovisitSums, NeighbourTable
from models.tables.statistics import StatisticsTable
from models.tables.users import UserTable, meetings
from schemas.columns import EventColumns
from schemas.records import Interaction, Item
from training.replay.following import Following
from training.replay.probe import BEYOND, Probed, Prober

__all__ = ["BEYOND", "DEEP", "Asked", "Figures", "K", "Prober", "Vectors", "World", "asked_of", "evaluate", "spread"]

Vectors = Mapping[str, Sequence[ItemVector]]
"What encoders say of items, by item id."

K = 10
DEEP = 50
WINDOW_DEPTH = 100
"Places of a slate that are held against all that a person likes within the attribution window."
ASKING = 100
"Events that are applied while one query is asked, about."
CHUNK = 1_000


class World:
    """What workers know after the events applied so far: people, statistics, neighbours, and a catalogue.

    An item with `published_at` enters the catalogue when event time reaches it, others are there from the start; what
    `vectors` say of an item comes with it, and not before.
    """

    def __init__(self, items: Iterable[Item], slot: ModelSlot | None = None, vectors: Vectors | None = None) -> None:
        self.items = ItemStore(partitions=1)
        self.slot = slot or ModelSlot()
        "The release that answers, if any."
        self._users = UserTable(self.items, lambda keys: [None] * len(keys))
        self._statistics = StatisticsTable(self.items)
        self._covisits = CovisitSums(self.items)
        self._neighbours = NeighbourTable(lambda keys: [None] * len(keys))
        self._stale: set[int] = set()
        "Items (by hash) whose neighbours in the item store are older than the rows here."
        self._vectors = vectors or {}
        catalogue = list(items)
        for item in catalogue:
            if item.published_at is None:
                self._enter(item)
        late = [item for item in catalogue if item.published_at is not None]
        self._unpublished = deque(sorted(late, key=lambda item: item.published_at or 0))

    def publish(self, now_ms: int) -> None:
        """Let in the items published by `now_ms`."""
        while self._unpublished and (self._unpublished[0].published_at or 0) <= now_ms:
            self._enter(self._unpublished.popleft())

    def _enter(self, item: Item) -> None:
        self.items.upsert(item)
        if item.item_id in self._vectors:
            self.items.set_vectors(item.item_id, self._vectors[item.item_id])

    def apply(self, events: Sequence[Interaction]) -> None:
        """Apply events in order. Chunks of any size leave the same state when all items are published."""
        columns = meetings(EventColumns.of(events, range(len(events))))
        if not len(columns):
            return
        applied = self._users.apply(columns)
        self._statistics.apply(columns, applied)
        self._statistics.show(0)
        self._statistics.take()
        self.items.stream_time_ms = max(self.items.stream_time_ms, int(columns.event_time.max()))
        self._covisits.add(applied)
        for _, increments in self._covisits.take(1, self._covisits.hashes()):
            self._neighbours.add(increments)
            for code in increments.items.tolist():
                self._stale.add(code)
                if (item_id := self.items.id_of(code)) is not None:
                    self.items.set_neighbour_total(item_id, self._neighbours.total(code))

    def record(self, user_id: str) -> UserRecord | None:
        """What is kept of a person."""
        return self._users.lookup([user_id])[0]

    def know(self, user: UserRecord | None) -> None:
        """Bring the neighbours that an answer to this person looks at up to date; the others wait until they are looked at."""
        if user is None:
            return
        looked_at = self._stale.intersection(user.history["item"][-RECENT:].tolist())
        self._stale -= looked_at
        codes = sorted(looked_at)
        for code, row in zip(codes, self._neighbours.lookup([c.to_bytes(8, "little") for c in codes]), strict=True):
            item_id = self.items.id_of(code)
            if row is not None and item_id is not None:
                named = [(other, weight) for o, weight in row.heaviest(NEIGHBOURS) if (other := self.items.id_of(o))]
                others, weights = [other for other, _ in named], [weight for _, weight in named]
                self.items.set_neighbours(item_id, others, weights, row.total * UNIT)


@dataclass(frozen=True, slots=True)
class Asked:
    """One query: who, after what, what became of it, and what the person liked from then on."""

    user_id: str
    item_id: str
    probed: Probed
    without_history: bool
    "The person had liked nothing before."
    unmet: bool
    "Nobody had met the item before."
    met: bool
    "The person had met the item before: it is seen, and no slate holds it."
    top: tuple[str, ...]
    "The first K item ids of the slate."
    hits: NDArray[np.bool_]
    "Whether the person liked the item at each place within the attribution window, from this event on: `(places,)`."
    relevant: int
    "Items liked within that window, of those met for the first time, whether shown or not."
    came: NDArray[np.bool_]
    "Per item that the ranker scored, and head: whether it came true within the window. `(ranked, heads)`."


@dataclass(slots=True)
class Figures:
    """Ranks of the liked items, and where those that were not ranked were lost."""

    ranks: list[int] = field(default_factory=list)
    "0 is first; BEYOND where the item was not ranked."
    stages: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    "Queries whose item each source brought."
    without_history: int = 0
    asked: list[Asked] = field(default_factory=list)
    "What is kept of each query."
    heads: tuple[str, ...] = ()
    "What the release predicts; none without one."

    def note(self, asked: Asked) -> None:
        """Count one query."""
        self.asked.append(asked)
        self.ranks.append(asked.probed.rank)
        self.stages[asked.probed.stage] += 1
        self.sources.update(asked.probed.sources)
        self.without_history += asked.without_history

    def to_json(self) -> dict[str, object]:
        """Means over all queries, null without any."""
        ranks = np.asarray(self.ranks, np.int64)
        n = max(len(ranks), 1)

        def mean(total: float) -> float | None:
            return round(float(total) / n, 4) if len(ranks) else None

        there = ranks >= 0
        gain = np.where(there & (ranks < K), 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)
        reciprocal = np.where(there, 1.0 / (np.maximum(ranks, 0) + 1.0), 0.0)
        return {
            f"ndcg@{K}": mean(gain.sum()),
            f"hr@{K}": mean((there & (ranks < K)).sum()),
            f"recall@{DEEP}": mean((there & (ranks < DEEP)).sum()),
            "mrr": mean(reciprocal.sum()),
            **self._of_candidates(),
            "queries": len(ranks),
            "queries_without_history": self.without_history,
            "queries_on_met_items": sum(asked.met for asked in self.asked),
            "stages": {name: round(count / n, 4) for name, count in sorted(self.stages.items())},
            "sources": {name: round(count / n, 4) for name, count in sorted(self.sources.items())},
        }

    def _of_candidates(self) -> dict[str, object]:
        """What the candidate stage holds: the first DEEP of it by the light score, and all of it."""
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
    """Numbers of the events that are queries: the positive ones after the first `share`, or `most` of them, evenly spread.

    With `first` they are those at which a person first meets an item that they like within the attribution window, then or
    later: what a slate could have shown, where people view before they buy or come back to what they like.
    """
    cut = int(len(events) * share)
    if first:
        asked = [n for n in Following(events, positive, ("positive",)).liked() if n >= cut]
    else:
        asked = [n for n in range(cut, len(events)) if positive(events[n].action, events[n].value)]
    return asked if most is None else spread(asked, most)


def spread(asked: list[int], most: int) -> list[int]:
    """All of `asked`, or `most` of them, evenly spread."""
    if len(asked) <= most:
        return asked
    return [asked[place] for place in np.linspace(0, len(asked) - 1, most).astype(int).tolist()]


def evaluate(
    items: Iterable[Item],
    events: Sequence[Interaction],
    positive: Callable[[str, float | None], bool],
    share: float = 0.8,
    progress: Callable[[int, int], None] = lambda done, of: None,  # noqa: ARG005
    slot: ModelSlot | None = None,
    most: int | None = None,
    at_cut: Callable[[World], None] | None = None,
    vectors: Vectors | None = None,
    *,
    first: bool = False,
    apart: bool = False,
) -> Figures:
    """Apply the first `share` of the events, then query at each positive one of the rest and apply it.

    `events` are in event-time order. `progress` is called with the work done and all of it, an event being 1. With `most`, only
    that many of the queries are asked, evenly spread; `first`: as `asked_of`. `at_cut` is called when the first part is
    applied. `apart`: nothing of the rest is applied, each query is asked after the first part alone (`evaluation.holdout`).
    `vectors` are of the items that the release does not hold, or not as they are now: see `World`. Deterministic.
    """
    items = list(items)
    world, figures = World(items, slot, vectors), Figures()
    prober, cut = Prober(world.items, world.slot), int(len(events) * share)
    queries = set(asked_of(events, positive, share, most, first=first))
    work = len(events) + ASKING * len(queries)
    model = world.slot.current
    heads, windows = (("positive",), {}) if model is None else (model.heads, model.windows_ms)
    following = Following(events, positive, heads, windows)
    figures.heads = () if model is None else heads
    liked: set[str] = set()
    for start in range(0, cut, CHUNK):
        chunk = events[start : min(start + CHUNK, cut)]
        world.publish(chunk[-1].event_time)
        world.apply(chunk)
        liked.update(event.user_id for event in chunk if positive(event.action, event.value))
        progress(start + len(chunk), work)
    while model is not None and not model.synced(world.items):  # a worker has long taken in what was there by then
        model.sync(world.items)
    if at_cut is not None:
        at_cut(world)
    for n, event in enumerate(events[cut:], cut):
        world.publish(event.event_time)
        if n in queries:
            world.know(world.record(event.user_id))
            probed = prober.probe(event.user_id, world.record(event.user_id), event.item_id)
            ahead = following.of(event.user_id, n, event.event_time)
            figures.note(
                _asked(
                    world, event, probed, ahead, len(heads), event.user_id not in liked, not following.begins(event.user_id, n)
                )
            )
        if not apart:
            if positive(event.action, event.value):
                liked.add(event.user_id)
            world.apply([event])
        progress(n + 1 + ASKING * len(figures.asked), work)
    return figures


def _asked(
    world: World,
    event: Interaction,
    probed: Probed,
    following: dict[str, NDArray[np.bool_]],
    heads: int,
    without_history: bool,
    met: bool,
) -> Asked:
    rows = world.items.rows_of(list(following))
    came = np.zeros((len(world.items), heads), np.bool_)
    for row, labels in zip(rows.tolist(), following.values(), strict=True):
        if row >= 0:
            came[row] = labels
    row = world.items.row_of(event.item_id)
    return Asked(
        event.user_id,
        event.item_id,
        probed,
        without_history,
        unmet=row < 0 or not int(world.items.events[row].sum()),
        met=met,
        top=tuple(world.items.ids[row] for row in probed.slate[:K].tolist()),
        hits=came[probed.slate[:WINDOW_DEPTH], 0],
        relevant=sum(bool(labels[0]) for labels in following.values()),
        came=came[probed.ranked],
    )
