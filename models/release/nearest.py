"""Nearest items by inner product in a large catalogue: an inverted file (FAISS) with measured recall.

Results do not depend on the batch, because found items are scored again as in `models.pipeline.exact`. Ties go to the lower
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.pipeline.exact import exact_top, rescored
from models.pipeline.ragged import Scored
from models.pipeline.ties import Ties
from schemas.errors import ConfigError

__all__ = ["STANDARD", "IndexSettings", "VectorIndex", "recall"]


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """When and how an approximate index is built."""

    exact_below: int = 50_000
    "Number of items below which retrieval is exact. Must be > 0."
    recall: float = 0.97
    "Target recall on sampled queries. The number of lists per search is doubled until it is reached."
    most_bytes: int = 1 << 30
    "Maximum size of the index beside the vectors themselves; a larger one stores vectors with one byte per dimension."
    sampled: int = 200
    "Number of queries on which recall is measured."
    depth: int = 100
    "Number of results per query on which recall is measured."
    seed: int = 0

    def __post_init__(self) -> None:
        if self.exact_below <= 0 or not 0 < self.recall <= 1 or min(self.most_bytes, self.sampled, self.depth) <= 0:
            raise ConfigError("index", f"settings of the index that cannot work: {self}")


STANDARD = IndexSettings()


def recall(found: Scored, exact: Scored) -> float:
    """Return the mean share of the exact results that were found; 1 if there are none."""
    pairs = [(found.of_query(n)[0], exact.of_query(n)[0]) for n in range(len(exact))]
    shares = [len(np.intersect1d(mine, theirs)) / len(theirs) for mine, theirs in pairs if len(theirs)]
    return float(np.mean(shares)) if shares else 1.0


class VectorIndex:
    """An inverted file over n immutable vectors (Jégou et al. 2011), searched by inner product.

    Building takes seconds to minutes and should run in its own thread. Only one thread at a time may search.
    """

    def __init__(self, vectors: NDArray[np.float32], queries: NDArray[np.float32], settings: IndexSettings = STANDARD) -> None:
        """Build over `vectors` `(n, d)`. `queries` `(q, d)`, q >= 2, represent real ones: the number of lists per search is
        chosen on one half, and `recall` is measured on the other."""
        self.vectors = vectors
        self.settings = settings
        self._faiss = _faiss()
        self._lists = max(1, int(4 * np.sqrt(len(vectors))))
        self._index = self._built()
        chosen, held = queries[::2], queries[1::2]
        self.probes = self._probes(chosen)
        "Number of lists per search."
        self.recall = self.measured(held)
        "Recall on the held-out half of the queries."

    def _built(self) -> Any:
        faiss, (n, d) = self._faiss, self.vectors.shape
        quantizer = faiss.IndexFlatIP(d)
        if n * (4 * d + 8) <= self.settings.most_bytes:
            index = faiss.IndexIVFFlat(quantizer, d, self._lists, faiss.METRIC_INNER_PRODUCT)
        else:
            kind = faiss.ScalarQuantizer.QT_8bit
            index = faiss.IndexIVFScalarQuantizer(quantizer, d, self._lists, kind, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.seed, index.cp.max_points_per_centroid = 10, self.settings.seed + 1, 64
        rng = np.random.default_rng(self.settings.seed)
        sample = np.sort(rng.permutation(n)[: self._lists * 64])
        index.train(np.ascontiguousarray(self.vectors[sample]))
        for start in range(0, n, 100_000):  # in chunks, because the vectors may be memory-mapped
            index.add(np.ascontiguousarray(self.vectors[start : start + 100_000]))
        index.parallel_mode = 0
        return index

    @property
    def nbytes(self) -> int:
        """Memory of the lists in bytes, without `vectors`."""
        return int(len(self.vectors) * (self._index.code_size + 8) + self._lists * 4 * self.vectors.shape[1])

    def _probes(self, queries: NDArray[np.float32]) -> int:
        exact, probes = self._exact(queries), 4
        while probes < self._lists:
            self.probes = probes
            if recall(self._all(queries), exact) >= self.settings.recall:
                break
            probes *= 2
        return min(probes, self._lists)

    def _all(self, queries: NDArray[np.float32]) -> Scored:
        allowed = np.ones(len(self.vectors), np.bool_)
        return self.search(queries, allowed, self.settings.depth, self._in_order(len(queries)))

    def _in_order(self, queries: int) -> Ties:
        return Ties(np.arange(len(self.vectors), dtype=np.uint64), np.zeros(queries, np.uint64))

    def _exact(self, queries: NDArray[np.float32]) -> Scored:
        """Search by brute force over chunks of the vectors, to avoid a matrix of all scores."""
        ties, depth = self._in_order(len(queries)), self.settings.depth
        query_row, rows, scores = [], [], []
        for start in range(0, len(self.vectors), 100_000):
            part = np.asarray(self.vectors[start : start + 100_000])
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
        faiss = self._faiss
        # search deeper if vectors are compressed, because their order near the cut-off may be wrong
        depth = min(2 * most if self._index.code_size < 4 * self.vectors.shape[1] else most, len(self.vectors))
        bits = np.packbits(allowed, bitorder="little")
        chosen = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bits))
        parameters = faiss.SearchParametersIVF(sel=chosen, nprobe=self.probes)
        queries = np.ascontiguousarray(queries)
        numbers = np.full((len(queries), depth), -1, np.int64)
        for n in range(len(queries)):
            # one at a time, because FAISS computes larger batches by other routines that round differently
            numbers[n] = self._index.search(queries[n : n + 1], depth, params=parameters)[1][0]
        there = numbers >= 0
        query_row, rows = np.nonzero(there)[0].astype(np.int32), numbers[there].astype(np.int32)
        found = Scored.of_pairs(len(queries), query_row, rows, np.zeros(len(rows), np.float32))
        return rescored(queries, self.vectors, found).best(most, ties, -np.inf)


def _faiss() -> Any:
    # imported here, because a worker with a small catalogue does not need it
    import faiss

    return faiss
