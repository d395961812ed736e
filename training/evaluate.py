"""How good are the slates? The prequential protocol, through the pipeline that serves.

Events in time order. Each positive event of the last part is a query: recommend to that person, from what everybody did
before that moment, out of the whole catalogue, without what the person has already met. The place of the item that the
person then liked gives NDCG@10, HR@10, Recall@50 and MRR. The event is then applied, as a worker would apply it.

Two things differ from a worker, and are exact here: statistics and neighbours are known at once instead of some milliseconds
later, and they are summed over one partition. What the pipeline does not rank counts as beyond every rank.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.items import NEIGHBOURS, ItemStore
from models.kernels.records import UNIT
from models.pipeline.batch import RECENT, Candidates, Queries, Retrieved
from models.pipeline.pipeline import CandidatePipeline, PipelineSettings
from models.pipeline.stages import Filter, Source
from models.slot import ModelSlot
from models.state import UserRecord
from models.tables import CovisitSums, NeighbourTable, StatisticsTable, UserTable
from schemas.columns import EventColumns
from schemas.records import Interaction, Item, Request

__all__ = ["Figures", "World", "evaluate"]

K = 10
DEEP = 50
BEYOND = -1
CHUNK = 1_000


class World:
    """What workers know after the events applied so far: people, statistics, neighbours, and a catalogue.

    An item with `published_at` enters the catalogue when event time reaches it, others are there from the start.
    """

    def __init__(self, items: Iterable[Item], slot: ModelSlot | None = None) -> None:
        self.items = ItemStore(partitions=1)
        self.slot = slot or ModelSlot()
        "The release that answers, if any."
        self._users = UserTable(self.items, lambda keys: [None] * len(keys))
        self._statistics = StatisticsTable(self.items)
        self._covisits = CovisitSums(self.items)
        self._neighbours = NeighbourTable(lambda keys: [None] * len(keys))
        self._stale: set[int] = set()
        "Items (by hash) whose neighbours in the item store are older than the rows here."
        catalogue = list(items)
        for item in catalogue:
            if item.published_at is None:
                self.items.upsert(item)
        late = [item for item in catalogue if item.published_at is not None]
        self._unpublished = deque(sorted(late, key=lambda item: item.published_at or 0))

    def publish(self, now_ms: int) -> None:
        """Let in the items published by `now_ms`."""
        while self._unpublished and (self._unpublished[0].published_at or 0) <= now_ms:
            self.items.upsert(self._unpublished.popleft())

    def apply(self, events: Sequence[Interaction]) -> None:
        """Apply events in order. Chunks of any size leave the same state when all items are published."""
        columns = EventColumns.of(events, range(len(events)))
        if not len(columns):
            return
        applied = self._users.apply(columns)
        self._statistics.apply(columns, applied)
        self._statistics.show(0)
        self._statistics.take()
        self.items.stream_time_ms = max(self.items.stream_time_ms, int(columns.event_time.max()))
        self._covisits.add(applied)
        for _, increments in self._covisits.take(1):
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


@dataclass(slots=True)
class _Watched:
    """What happens to one item on its way through the pipeline."""

    row: int = -1
    stage: str = "not_retrieved"
    sources: list[str] = field(default_factory=list)


class _WatchedSource:
    """A source that notes whether it brought the watched item."""

    def __init__(self, source: Source, watched: _Watched) -> None:
        self.name = source.name
        self._source = source
        self._watched = watched

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """What the source brings."""
        brought = self._source.retrieve(queries, items)
        if self._watched.row >= 0 and bool((brought.item_row == self._watched.row).any()):
            self._watched.sources.append(self.name)
            self._watched.stage = "light_cut"
        return brought


class _WatchedFilter:
    """A filter that notes whether it dropped the watched item."""

    def __init__(self, stage: Filter, watched: _Watched) -> None:
        self.name = stage.name
        self._filter = stage
        self._watched = watched

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """What the filter keeps."""
        keep = self._filter.keep(queries, candidates, items)
        if bool((candidates.item_row[~keep] == self._watched.row).any()):
            self._watched.stage = f"filtered:{self.name}"
        return keep


class Prober:
    """The serving pipeline, asked where one item ends up."""

    def __init__(self, items: ItemStore, slot: ModelSlot | None = None) -> None:
        self._watched = _Watched()
        plain = CandidatePipeline(items)
        self._items = items
        self._depth = PipelineSettings().light_top
        self._pipeline = CandidatePipeline(
            items,
            sources=[_WatchedSource(source, self._watched) for source in plain.sources],
            filters=[_WatchedFilter(stage, self._watched) for stage in plain.filters],
            scorer=plain.scorer,
            slot=slot,
        )

    def probe(self, user_id: str, user: UserRecord | None, item_id: str) -> tuple[int, str, list[str]]:
        """Rank of the item in the slate (0 is first, BEYOND when it is not there), where it ended, who brought it.

        Raises:
            RuntimeError: a part of the pipeline failed; figures of a degraded pipeline would mislead.
        """
        watched = self._watched
        watched.row, watched.stage, watched.sources = self._items.row_of(item_id), "not_retrieved", []
        slate = self._pipeline.run([Request("evaluate", user_id, k=self._depth)], [user], [None])[0]
        if slate.degraded:
            raise RuntimeError(f"the pipeline is degraded: {', '.join(slate.degraded)}")
        for rank, item in enumerate(slate.items):
            if item.item_id == item_id:
                return rank, "ranked", watched.sources
        return BEYOND, watched.stage, watched.sources


@dataclass(slots=True)
class Figures:
    """Ranks of the liked items, and where those that were not ranked were lost."""

    ranks: list[int] = field(default_factory=list)
    "0 is first; BEYOND where the item was not ranked."
    stages: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    "Queries whose item each source brought."
    without_history: int = 0

    def to_json(self) -> dict[str, object]:
        """Means over all queries, 0 without any."""
        ranks = np.asarray(self.ranks, np.int64)
        n = max(len(ranks), 1)
        there = ranks >= 0
        gain = np.where(there & (ranks < K), 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)
        reciprocal = np.where(there, 1.0 / (np.maximum(ranks, 0) + 1.0), 0.0)
        return {
            f"ndcg@{K}": round(float(gain.sum()) / n, 4),
            f"hr@{K}": round(int((there & (ranks < K)).sum()) / n, 4),
            f"recall@{DEEP}": round(int((there & (ranks < DEEP)).sum()) / n, 4),
            "mrr": round(float(reciprocal.sum()) / n, 4),
            "queries": len(ranks),
            "queries_without_history": self.without_history,
            "stages": {name: round(count / n, 4) for name, count in sorted(self.stages.items())},
            "sources": {name: round(count / n, 4) for name, count in sorted(self.sources.items())},
        }


def evaluate(
    items: Iterable[Item],
    events: Sequence[Interaction],
    positive: Callable[[str, float | None], bool],
    share: float = 0.8,
    progress: Callable[[int, int], None] = lambda done, of: None,  # noqa: ARG005
    slot: ModelSlot | None = None,
    most: int | None = None,
) -> Figures:
    """Apply the first `share` of the events, then query at each positive one of the rest and apply it.

    `events` are in event-time order. `progress` is called with events done and events in all. With `most`, only that many
    of the queries are asked, evenly spread. Deterministic.
    """
    world, figures = World(items, slot), Figures()
    prober, cut = Prober(world.items, world.slot), int(len(events) * share)
    asked = [n for n in range(cut, len(events)) if positive(events[n].action, events[n].value)]
    if most is not None and len(asked) > most:
        asked = [asked[place] for place in np.linspace(0, len(asked) - 1, most).astype(int).tolist()]
    queries = set(asked)
    liked: set[str] = set()
    for start in range(0, cut, CHUNK):
        chunk = events[start : min(start + CHUNK, cut)]
        world.publish(chunk[-1].event_time)
        world.apply(chunk)
        liked.update(event.user_id for event in chunk if positive(event.action, event.value))
        progress(start + len(chunk), len(events))
    for n, event in enumerate(events[cut:], cut):
        world.publish(event.event_time)
        if n in queries:
            world.know(world.record(event.user_id))
            rank, stage, sources = prober.probe(event.user_id, world.record(event.user_id), event.item_id)
            figures.ranks.append(rank)
            figures.stages[stage] += 1
            figures.sources.update(sources)
            figures.without_history += event.user_id not in liked
        if positive(event.action, event.value):
            liked.add(event.user_id)
        world.apply([event])
        progress(n + 1, len(events))
    return figures
