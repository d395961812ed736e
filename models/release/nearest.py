"""Nearest items by inner product in a large catalogue: an inverted file with measured recall.

Results do not depend on the batch, because each query is searched alone and found items are scored again as in
`models.pipeline.exact`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.pipeline.exact import exact_top, rescored
from models.pipeline.kernels import lists as kernels
from models.pipeline.ragged import Scored
from models.pipeline.ties import Ties
from schemas.errors import ConfigError

__all__ = ["STANDARD", "IndexSettings", "InvertedLists", "VectorIndex", "recall"]

AT_ONCE = 100_000
"Vectors handled at once while an index is built, because they may be memory-mapped."
PROJECTED = 64
"Dimensions in which lists are told apart; vectors with more are projected to their principal axes first."
SAMPLED = 48
"Vectors per list from which the lists are learned."
IDENTITY = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """When and how an approximate index is built."""

    exact_below: int = 50_000
    "Number of items below which retrieval is exact. Must be > 0."
    recall: float = 0.97
    "Target recall on sampled queries. The number of lists per search grows until it is reached."
    sampled: int = 200
    "Number of queries on which recall is measured."
    depth: int = 300
    "Number of results per query on which recall is measured."
    seed: int = 0

    def __post_init__(self) -> None:
        if self.exact_below <= 0 or not 0 < self.recall <= 1 or min(self.sampled, self.depth) <= 0:
            raise ConfigError("index", f"settings of the index that cannot work: {self}")


STANDARD = IndexSettings()


def recall(found: Scored, exact: Scored) -> float:
    """Return the mean share of the exact results that were found; 1 if there are none."""
    pairs = [(found.of_query(n)[0], exact.of_query(n)[0]) for n in range(len(exact))]
    shares = [len(np.intersect1d(mine, theirs)) / len(theirs) for mine, theirs in pairs if len(theirs)]
    return float(np.mean(shares)) if shares else 1.0


@dataclass(frozen=True, slots=True)
class InvertedLists:
    """An inverted file over n vectors (Jégou et al. 2011), with one byte per dimension."""

    centres: NDArray[np.float32]
    "Mean vector of each list, projected `(lists, p)`."
    projection: NDArray[np.float32]
    "From a vector to the dimensions of `centres`: `(d, p)`; `(0, 0)` if they are the same."
    starts: NDArray[np.int64]
    "Items of list c are at `starts[c]:starts[c + 1]` `(lists + 1,)`."
    numbers: NDArray[np.int32]
    "Numbers of the items by list `(n,)`."
    codes: NDArray[np.int8]
    "Their vectors in steps of `scale` `(n, d)`."
    scale: NDArray[np.float32]
    "Size of a step in each dimension `(d,)`."

    @classmethod
    def build(cls, vectors: NDArray[np.float32], seed: int) -> InvertedLists:
        """Build over vectors `(n, d)`. It takes seconds to a minute and should run in its own thread."""
        faiss, (n, d) = _faiss(), vectors.shape
        size = max(1, int(4 * np.sqrt(n)))
        rng = np.random.default_rng(seed)
        sample = np.ascontiguousarray(vectors[np.sort(rng.permutation(n)[: size * SAMPLED])])
        projection = np.zeros((0, 0), np.float32)
        if d > 2 * PROJECTED:
            axes = np.linalg.eigh(sample.T @ sample)[1]
            projection = np.ascontiguousarray(axes[:, : -PROJECTED - 1 : -1]).astype(np.float32)
        means = faiss.Kmeans(
            projection.shape[1] or d, size, niter=8, seed=seed + 1, max_points_per_centroid=SAMPLED, min_points_per_centroid=1
        )
        means.train(np.ascontiguousarray(_projected(sample, projection)))
        nearest, own = faiss.IndexFlatL2(means.centroids.shape[1]), np.empty(n, np.int64)
        nearest.add(means.centroids)
        largest = np.zeros(d, np.float32)
        for start in range(0, n, AT_ONCE):
            part = np.ascontiguousarray(vectors[start : start + AT_ONCE])
            own[start : start + AT_ONCE] = nearest.search(np.ascontiguousarray(_projected(part, projection)), 1)[1][:, 0]
            np.maximum(largest, np.abs(part).max(axis=0), out=largest)
        scale = np.maximum(largest / 127, np.float32(1e-30))
        numbers = np.argsort(own, kind="stable").astype(np.int32)
        codes = np.empty((n, d), np.int8)
        for start in range(0, n, AT_ONCE):
            codes[start : start + AT_ONCE] = np.rint(vectors[numbers[start : start + AT_ONCE]] / scale)
        starts = np.searchsorted(own[numbers], np.arange(size + 1)).astype(np.int64)
        return cls(np.array(means.centroids, np.float32), projection, starts, numbers, codes, scale)

    def search(
        self,
        queries: NDArray[np.float32],
        probes: int,
        depth: int,
        eligible: NDArray[np.bool_],
        covered: NDArray[np.bool_],
        row_of: NDArray[np.int32] = IDENTITY,
    ) -> Scored:
        """Find up to `depth` items per query `(q, d)`; their scores are 0. See `kernels.lists.searched`."""
        queries = np.ascontiguousarray(queries)
        # one query after the other, because products of larger batches round differently
        projected = np.concatenate([_projected(queries[n : n + 1], self.projection) for n in range(len(queries))] or [queries])
        starts, rows = kernels.searched(
            queries,
            projected,
            self.centres,
            probes,
            self.starts,
            self.numbers,
            self.codes,
            self.scale,
            row_of,
            eligible,
            covered,
            depth,
        )
        return Scored(starts, rows, np.zeros(len(rows), np.float32))

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> InvertedLists:
        """Make an inverted file of the arrays that `arrays` returned."""
        return cls(**{name: arrays[name] for name in cls.__slots__})


def _projected(vectors: NDArray[np.float32], projection: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors @ projection if projection.size else vectors


class VectorIndex:
    """An inverted file over n immutable vectors, and the number of lists that a search needs for the recall asked for."""

    def __init__(
        self,
        vectors: NDArray[np.float32],
        queries: NDArray[np.float32],
        settings: IndexSettings = STANDARD,
        held: tuple[InvertedLists, int, float] | None = None,
    ) -> None:
        """Build over `vectors` `(n, d)`. `queries` `(q, d)`, q >= 2, represent real ones: the number of lists per search is
        chosen on one half, and `recall` is measured on the other.

        `held`: inverted file, number of lists and recall of an index over the same vectors that was built before.
        """
        self.vectors = vectors
        self.settings = settings
        if held is not None:
            self.lists, self.probes, self.recall = held
            return
        self.lists = InvertedLists.build(vectors, settings.seed)
        chosen, rest = queries[::2], queries[1::2]
        self.probes = self._probes(chosen)
        "Number of lists per search."
        self.recall = self.measured(rest)
        "Recall on the held-out half of the queries."

    @property
    def nbytes(self) -> int:
        """Memory of the inverted file in bytes, without `vectors`."""
        return self.lists.nbytes

    def _probes(self, queries: NDArray[np.float32]) -> int:
        exact, probes, most = self._exact(queries), 4, len(self.lists.centres)
        while probes < most:
            self.probes = probes
            if recall(self._all(queries), exact) >= self.settings.recall:
                break
            probes += probes // 2
        return min(probes, most)

    def _all(self, queries: NDArray[np.float32]) -> Scored:
        allowed = np.ones(len(self.vectors), np.bool_)
        return self.search(queries, allowed, self.settings.depth, self._in_order(len(queries)))

    def _in_order(self, queries: int) -> Ties:
        return Ties(np.arange(len(self.vectors), dtype=np.uint64), np.zeros(queries, np.uint64))

    def _exact(self, queries: NDArray[np.float32]) -> Scored:
        """Search by brute force over chunks of the vectors, to avoid a matrix of all scores."""
        ties, depth = self._in_order(len(queries)), self.settings.depth
        query_row, rows, scores = [], [], []
        for start in range(0, len(self.vectors), AT_ONCE):
            part = np.asarray(self.vectors[start : start + AT_ONCE])
            found = exact_top(queries, part, np.ones(len(part), np.bool_), depth, Ties(ties.hashes[start:], ties.salts))
            query_row.append(found.query_row)
            rows.append(found.rows + np.int32(start))
            scores.append(found.scores)
        joined = np.concatenate(query_row), np.concatenate(rows), np.concatenate(scores)
        return Scored.of_pairs(len(queries), *joined).best(depth, ties, -np.inf)

    def measured(self, queries: NDArray[np.float32]) -> float:
        """Measure recall on these queries against brute force."""
        return recall(self._all(queries), self._exact(queries))

    def search(self, queries: NDArray[np.float32], allowed: NDArray[np.bool_], most: int, ties: Ties) -> Scored:
        """Find approximately the `most` allowed items with the largest products per query, with exact scores.

        queries: float32 `(q, d)`; allowed: bool `(n,)`, no other items are returned; `ties`: by number and by query.
        """
        return self.search_rows(queries, self.vectors, allowed, allowed, most, ties, IDENTITY)

    def search_rows(
        self,
        queries: NDArray[np.float32],
        vectors: NDArray[np.float32],
        eligible: NDArray[np.bool_],
        covered: NDArray[np.bool_],
        most: int,
        ties: Ties,
        row_of: NDArray[np.int32],
        above: float = -np.inf,
    ) -> Scored:
        """Search as `search` does, but for item rows: number n has row `row_of[n]`, -1 for none.

        `vectors`: of each item row; `eligible` and `covered`: items that may be found; `above`: least score.
        """
        # twice as deep, because the order of codes near the cut-off may be wrong
        found = self.lists.search(queries, self.probes, 2 * most, eligible, covered, row_of)
        return rescored(np.ascontiguousarray(queries), vectors, found).best(most, ties, above)


def _faiss() -> Any:
    # imported here, because a worker with a small catalogue does not need it
    import faiss

    return faiss
