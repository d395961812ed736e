"""Compile the loops of the stream and of serving ahead of time: `python -m models.warm`, once per installation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.features.compute import compute
from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.exact import exact_top
from models.pipeline.kernels import signals
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.ragged import Scored
from models.pipeline.rules.book import RuleBook
from models.pipeline.scratch import SCRATCH
from models.pipeline.slot import ModelSlot
from models.pipeline.ties import Ties
from models.release.nearest import STANDARD, InvertedLists, VectorIndex
from models.release.row_search import RowSearch
from models.release.sequences import Vocabulary, inputs_of
from models.tables.neighbours import CovisitSums, NeighbourTable
from models.tables.statistics import StatisticsTable
from models.tables.users import UserTable
from schemas.columns import EventColumns, Placed, decode_interactions
from schemas.kernels import partition_of, read_batch
from schemas.records import Interaction, Item, Request
from schemas.rules import rules_from

__all__ = ["warm"]


def warm() -> None:
    """Run every compiled loop once on two events. The first call on a machine takes about 25 s, later ones about 1 s.

    This keeps compilation out of the stream, because compiling a loop while events wait would block the whole worker.
    """
    store = ItemStore(1)
    store.upsert(Item("i1", categories=("c",), price=1.0))
    events = EventColumns.of([Interaction("e1", "u", "i1", 1), Interaction("e2", "u", "i2", 2, value=1.0)], [0, 1])
    users, statistics = UserTable(store, lambda keys: [None] * len(keys)), StatisticsTable(store)
    applied = users.apply(events)
    users.columns(["u"])
    users.lookup(["u"])[0].seen.contains_many(store.bloom[:2])  # type: ignore[union-attr]
    statistics.apply(events, applied)
    statistics.take()
    sums, neighbours = CovisitSums(store), NeighbourTable(lambda keys: [None] * len(keys))
    sums.add(applied)
    for _, increments in sums.take(1, sums.hashes()):
        neighbours.add(increments)
    neighbours.take()
    decode_interactions([b""], [b"u"], [()], [0], placed=Placed(partition_of(b"u", 2), 2))
    _warm_serving(store, users)
    read_batch(np.frombuffer(b"\x0c\0\0\0\1\1\0", np.uint8), 0, 7, np.empty((6, 1), np.int64))


class _Rehearsal:
    """A release without graphs, which uses every loop of serving, with arrays as a release holds them."""

    def __init__(self, items: ItemStore) -> None:
        size = len(items)
        self.name, self.heads, self.windows_ms, self.light = "rehearsal", ("positive",), {"positive": 1}, {"popular": 1.0}
        self.trained_until_ms, self.index_recall, self.bound = 0, 1.0, size
        self.vocabulary = Vocabulary(("click",), 0.0, 1.0, "action == 'click'")
        self.vectors, self.content = np.ones((size, 4), np.float32), np.ones((size, 4), np.float32)
        self.met = np.ones(size, np.bool_)
        self._numbers = np.arange(size, dtype=np.int32)
        self._near, self._weights = self._numbers[::-1, None].copy(), np.ones((size, 1), np.float32)
        lists = InvertedLists(
            np.ones((1, 4), np.float32),
            np.zeros((0, 0), np.float32),
            np.asarray([0, size], np.int64),
            self._numbers,
            np.ones((size, 4), np.int8),
            np.ones(4, np.float32),
        )
        self._search = RowSearch(VectorIndex(self.vectors, self.vectors[:0], STANDARD, (lists, 1, 1.0)))
        self._search.grow(size)
        self._search.cover(self._numbers[:-1], held=True)
        self._content = RowSearch()
        self._content.grow(size)
        # as in a release, which is read from a file
        self._lags = np.ones(2, np.float32)
        self._near.flags.writeable = self._weights.flags.writeable = self._lags.flags.writeable = False

    def synced(self, _items: ItemStore) -> bool:
        return True

    def sync(self, _items: ItemStore) -> None:
        pass

    def hydrate(self, queries: Queries, _items: ItemStore) -> Callable[[], None]:
        queries.liked = self.vocabulary.liked_of(queries.users)
        rows, numbers, near, weights = queries.history_rows, self._numbers, self._near, self._weights
        work = SCRATCH.sums(queries.size), *SCRATCH.marks(queries.size, len(queries))
        found = signals.weighted(rows, queries.liked, np.float32(0.5), numbers, near, weights, numbers, queries.size, *work)
        queries.signals["ease"] = Scored(*found)
        work = SCRATCH.sums(queries.size), *SCRATCH.marks(queries.size, len(queries))
        sequence, gap_ms = (queries.recent_rows, queries.users.time, self._lags), 1
        found = signals.transitions(*sequence, gap_ms, numbers, near, weights, numbers, queries.size, *work)
        queries.signals["transitions"] = Scored(*found)
        inputs_of(queries.users, self.vocabulary, queries.liked)
        queries.user_vectors = np.ones((len(queries), 4), np.float32)
        return lambda: None

    def nearest(self, users: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Ties) -> Scored:
        return self._search.nearest(users, self.vectors, eligible, most, ties, self._numbers)

    def alike(self, profiles: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Ties, above: float) -> Scored:
        size = min(len(self.content), len(eligible))
        exact_top(profiles, self.content[:size], eligible[:size], most, ties, above)  # many queries are searched so
        return self._content.nearest(profiles, self.content, eligible, most, ties, above=above)

    def features(
        self, queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str]
    ) -> NDArray[np.float32]:
        return compute(queries, candidates, items, sources, self)

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ones((len(features), 1), np.float32)

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        return heads[:, 0]


RULES = {
    "rules": [
        {"name": "boost", "kind": "boost", "factor": 2, "where": {"categories": ["c"]}},
        {"name": "pin", "kind": "pin", "pins": [{"item_id": "i3", "position": 1}]},
        {"name": "require", "kind": "require", "least": 1, "first": 2, "where": {"items": ["i4"]}},
        {"name": "cap", "kind": "cap", "most": 1, "per": "category"},
        {"name": "fresh", "kind": "fresh", "share": 0.5, "fewer_than": 5},
    ]
}
"A rule of each kind that has a loop of its own."


def _warm_serving(items: ItemStore, users: UserTable) -> None:
    """Answer requests of every kind once, as one batch and alone."""
    for n in range(8):
        items.upsert(Item(f"i{n}", f"thing {n}", categories=("c",), price=1.0 + n, published_at=1))
    items.set_neighbours("i1", ["i2", "i3"], [1.0, 2.0], 3.0)
    pipeline = CandidatePipeline(items, slot=ModelSlot())
    pipeline.slot.swap(_Rehearsal(items))
    requests = [
        Request("a", "u", k=2),
        Request("b", "stranger", k=2, exclude=("i1",), categories=("c",)),
        Request("c", "u", candidates=("i1", "i2"), repeats=True),
    ]
    for rules in (None, RuleBook(rules_from(RULES), items)):
        pipeline.rules.swap(rules)
        for batch in (requests, requests[:1]):
            slates = pipeline.run(batch, users.columns([request.user_id for request in batch]), [None] * len(batch))
            assert all(not slate.degraded for slate in slates)
    pipeline.similar("i1", 2)


if __name__ == "__main__":
    warm()
