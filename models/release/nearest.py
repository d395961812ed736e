"""Nearest items by inner product in a large catalogue: an inverted file (FAISS) with measured recall.

Results do not depend on the batch, because found items are scored again as in `models.pipeline.exact`. Ties go to the lower
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.pipeline.exact import Found, best_of, exact_top
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


def recall(found: list[Found], exact: list[Found]) -> float:
    """Return the mean share of the exact results that were found; 1 if there are none."""
    shares = [len(np.intersect1d(f[0], e[0])) / len(e[0]) for f, e in zip(found, exact, strict=True) if len(e[0])]
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

    def _all(self, queries: NDArray[np.float32]) -> list[Found]:
        return self.search(queries, np.ones(len(self.vectors), np.bool_), self.settings.depth)

    def _exact(self, queries: NDArray[np.float32]) -> list[Found]:
        """Search by brute force over chunks of the vectors, to avoid a matrix of all scores."""
        parts: list[list[Found]] = []
        for start in range(0, len(self.vectors), 100_000):
            part = np.asarray(self.vectors[start : start + 100_000])
            found = exact_top(queries, part, np.ones(len(part), np.bool_), self.settings.depth)
            parts.append([(rows + np.int32(start), scores) for rows, scores in found])
        out = []
        for pieces in zip(*parts, strict=True):
            rows, scores = (np.concatenate(column) for column in zip(*pieces, strict=True))
            order = np.lexsort((rows, -scores))[: self.settings.depth]
            out.append((rows[order], scores[order]))
        return out

    def measured(self, queries: NDArray[np.float32]) -> float:
        """Measure recall on these queries against brute force."""
        return recall(self._all(queries), self._exact(queries))

    def search(self, queries: NDArray[np.float32], allowed: NDArray[np.bool_], most: int) -> list[Found]:
        """Find approximately the `most` allowed items with the largest products per query, with exact scores.

        queries: float32 `(q, d)`; allowed: bool `(n,)`, no other items are returned.
        """
        faiss = self._faiss
        # search deeper if vectors are compressed, because their order near the cut-off may be wrong
        depth = min(2 * most if self._index.code_size < 4 * self.vectors.shape[1] else most, len(self.vectors))
        bits = np.packbits(allowed, bitorder="little")
        chosen = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bits))
        parameters = faiss.SearchParametersIVF(sel=chosen, nprobe=self.probes)
        found = []
        for query in np.ascontiguousarray(queries):
            # one at a time, because FAISS computes larger batches by other routines that round differently
            _, numbers = self._index.search(query[None], depth, params=parameters)
            rows = numbers[0][numbers[0] >= 0]
            found.append(best_of(query, self.vectors, rows, most))
        return found


def _faiss() -> Any:
    # imported here, because a worker with a small catalogue does not need it
    import faiss

    return faiss
