"""Vectors by item row as codes of a byte per dimension, encoded again when a vector changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.pipeline.exact import UNSCORED, rescored
from models.pipeline.kernels import coarse
from models.pipeline.ragged import Scored
from models.pipeline.ties import Ties

__all__ = ["Codes"]


class Codes:
    """Codes of a column of vectors. The search is exact: the codes only tell which vectors to look at."""

    def __init__(self) -> None:
        self._codes = np.zeros((0, 0), np.int8)
        self._scale, self._error = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._old = np.zeros(0, np.bool_)
        "Rows whose vector is not encoded, or has changed since."
        self._any_old = False

    def grow(self, capacity: int) -> None:
        """Make room for rows, which are not encoded yet."""
        if capacity <= len(self._old):
            return
        old = np.ones(capacity, np.bool_)
        old[: len(self._old)] = self._old
        self._old, self._any_old = old, True

    def change(self, rows: NDArray[np.integer]) -> None:
        """Note that the vectors of these rows have changed."""
        self._old[rows] = True
        self._any_old = True

    def _update(self, vectors: NDArray[np.float32]) -> None:
        room, width = len(self._old), vectors.shape[1]
        if len(self._codes) < room:
            held = len(self._codes)
            codes, scale, error = np.zeros((room, width), np.int8), np.zeros(room, np.float32), np.zeros(room, np.float32)
            if held:
                codes[:held], scale[:held], error[:held] = self._codes, self._scale, self._error
            self._codes, self._scale, self._error = codes, scale, error
        rows = np.flatnonzero(self._old[: len(vectors)])
        coarse.encode(vectors, rows, self._codes, self._scale, self._error)
        self._old[rows] = False
        self._any_old = bool(self._old[len(vectors) :].any())

    def nearest(
        self,
        queries: NDArray[np.float32],
        vectors: NDArray[np.float32],
        allowed: NDArray[np.bool_],
        most: int,
        ties: Ties,
        above: float,
    ) -> Scored:
        """Return what `exact_top` returns for the same arguments. `vectors` may be longer than at the last call."""
        self.grow(len(vectors))
        if self._any_old:
            self._update(vectors)
        queries = np.ascontiguousarray(queries)
        starts, rows = coarse.nearest(queries, self._codes, self._scale, self._error, allowed, most, above)
        return rescored(queries, vectors, Scored(starts, rows, UNSCORED)).best(most, ties, above)
