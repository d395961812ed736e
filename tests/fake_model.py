"""A release in memory, without graphs: what `models.pipeline.batch.Model` asks for, computed from drawn numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.features.compute import FEATURES, GENERATIONS, compute
from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.ragged import Scored
from models.pipeline.scoring import DEFAULT_WEIGHTS
from models.pipeline.ties import Ties
from models.release.row_search import RowSearch
from models.release.sequences import Vocabulary

SIZE = 4


class FakeModel:
    """Vectors follow from the rows' numbers, and a ranker that adds features up."""

    def __init__(self, items: ItemStore, light: Mapping[str, float] = DEFAULT_WEIGHTS, *, transitions: bool = False) -> None:
        """`transitions`: whether it has the signal of transitions and reads their features."""
        self.name, self.heads, self.windows_ms = "fake", ("positive",), {"positive": 86_400_000}
        self.light, self.trained_until_ms, self.index_recall = light, 0, 1.0
        self._transitions = transitions
        self.vocabulary = Vocabulary(("like", "view"), 3.0, 1.5, "action == 'like'")
        self.bound = len(items)
        rows = np.arange(len(items))[:, None]
        self.vectors = np.cos(rows * np.arange(1, SIZE + 1)).astype(np.float32)
        self.content = np.sin(rows * np.arange(1, SIZE + 1)).astype(np.float32)
        self.met = np.arange(len(items)) % 3 > 0
        self._learned, self._alike = RowSearch(), RowSearch()
        for search in (self._learned, self._alike):
            search.grow(len(items))
        # later generations of features have no weight, so that recorded answers stay
        first = next(iter(GENERATIONS.values()))
        self._weights = np.zeros(len(FEATURES), np.float32)
        self._weights[first] = np.sin(np.arange(len(first)))

    def synced(self, items: ItemStore) -> bool:
        return self.bound == len(items)

    def sync(self, items: ItemStore) -> None:
        """Nothing changes."""

    def hydrate(self, queries: Queries, items: ItemStore) -> Callable[[], None]:
        queries.liked = self.vocabulary.liked_of(queries.users)
        rows = np.arange(0, queries.size, 2, dtype=np.int32)
        starts = np.arange(len(queries) + 1, dtype=np.int64) * len(rows)
        scores = np.tile((1 / (1 + rows)).astype(np.float32), len(queries))
        queries.signals["ease"] = Scored(starts, np.tile(rows, len(queries)), scores)
        if self._transitions:
            rows = np.arange(1, queries.size, 3, dtype=np.int32)
            starts = np.arange(len(queries) + 1, dtype=np.int64) * len(rows)
            scores = np.tile((1 / (2 + rows)).astype(np.float32), len(queries))
            queries.signals["transitions"] = Scored(starts, np.tile(rows, len(queries)), scores)

        def encode() -> None:
            queries.user_vectors = np.cos(np.arange(len(queries) * SIZE)).reshape(-1, SIZE).astype(np.float32)

        return encode

    def nearest(self, users: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Ties) -> Scored:
        return self._learned.nearest(users, self.vectors, eligible, most, ties)

    def alike(self, profiles: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Ties, above: float) -> Scored:
        return self._alike.nearest(profiles, self.content, eligible, most, ties, above=above)

    def features(
        self, queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str]
    ) -> NDArray[np.float32]:
        return compute(queries, candidates, items, sources, self)

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = (1 / (1 + np.exp(-features @ self._weights)))[:, None].astype(np.float32)
        return found

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        return heads[:, 0]
