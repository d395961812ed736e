"""Search of a column of vectors by item row, which grows and changes, with an index over those it once held."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.pipeline.exact import FEW, exact_top
from models.pipeline.ragged import Scored
from models.pipeline.ties import Ties
from models.release.codes import Codes
from models.release.nearest import IDENTITY, VectorIndex

__all__ = ["RowSearch"]


class RowSearch:
    """The nearest item rows. Rows whose vector the index holds are found by it, all others by brute force."""

    def __init__(self, index: VectorIndex | None = None) -> None:
        self.index = index
        "None: everything is found by brute force."
        self._codes = Codes()
        "Of all rows; used for few queries without an index."
        self._covered = np.zeros(0, np.bool_)
        "Whether the index holds the vector of each row."
        self._late: NDArray[np.int32] | None = None
        "Rows that the index does not hold, ascending; None if they must be found again."

    def grow(self, capacity: int) -> None:
        """Make room for rows, which the index does not hold."""
        self._codes.grow(capacity)
        if capacity > len(self._covered):
            covered = np.zeros(capacity, np.bool_)
            covered[: len(self._covered)] = self._covered
            self._covered = covered

    def cover(self, rows: NDArray[np.integer], *, held: bool) -> None:
        """Note that the vectors of these rows have changed, and whether the index holds the current ones."""
        self._covered[rows] = held
        self._codes.change(rows)
        self._late = None

    def late(self, bound: int) -> NDArray[np.int32]:
        """Return the rows below `bound` that the index does not hold, ascending."""
        if self._late is None:
            self._late = np.flatnonzero(~self._covered).astype(np.int32)
        return self._late[: int(np.searchsorted(self._late, bound))]

    def nearest(
        self,
        queries: NDArray[np.float32],
        vectors: NDArray[np.float32],
        eligible: NDArray[np.bool_],
        most: int,
        ties: Ties,
        row_of: NDArray[np.int32] = IDENTITY,
        above: float = -np.inf,
    ) -> Scored:
        """Find the `most` eligible rows with the largest products above `above` per query; rows ascend.

        `vectors`: float32 `(n, d)` by row; `eligible`: bool by row; others than both cover are not found; `row_of`: row of each
        number of the index, -1 for none.
        """
        bound = min(len(vectors), len(eligible))
        vectors, eligible = vectors[:bound], eligible[:bound]
        if self.index is None and len(queries) <= FEW:
            return self._codes.nearest(queries, vectors, eligible, most, ties, above)
        if self.index is None:
            return exact_top(queries, vectors, eligible, most, ties, above)
        found = self.index.search_rows(queries, vectors, eligible, self._covered, most, ties, row_of, above)
        late = self.late(bound)
        late = late[eligible[late]]
        if not len(late):
            return found
        among = exact_top(
            queries, vectors[late], np.ones(len(late), np.bool_), most, Ties(ties.hashes[late], ties.salts), above
        )
        query_row = np.concatenate([found.query_row, among.query_row])
        rows, scores = np.concatenate([found.rows, late[among.rows]]), np.concatenate([found.scores, among.scores])
        return Scored.of_pairs(len(queries), query_row, rows, scores).best(most, ties, above)
