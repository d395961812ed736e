"""Tie-breaking among items of equal score, by item id and requesting user. The order of items in a file has no influence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Contenders", "Keys", "Ties", "best", "tie_keys"]

Keys = Callable[[NDArray[np.integer]], NDArray[np.uint64]]
"Maps item numbers to tie-break keys: among equal scores the smaller key comes first."


def tie_keys(hashes: NDArray[np.uint64], salts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix item hashes with user salts by splitmix64 (Steele et al. 2014), so that each user has an order of their own.

    Returns uint64 of the broadcast shape, at least one-dimensional. Different hashes have different keys under one salt.
    """
    mixed = hashes ^ salts
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


@dataclass(frozen=True, slots=True)
class Ties:
    """The tie-break order for one user: the same in every worker and after every restart."""

    hashes: NDArray[np.uint64]
    "`hash64` of the ids, by item row."
    salt: int
    "`hash64` of the user's id, or of the item's for similar items."

    def keys(self, rows: NDArray[np.integer]) -> NDArray[np.uint64]:
        """Return the keys of items: uint64 `(len(rows),)`."""
        return tie_keys(self.hashes[rows], np.asarray([self.salt], np.uint64))


@dataclass(frozen=True, slots=True)
class Contenders:
    """The `most` largest scores, with the ties at the cut-off still undecided."""

    above: NDArray[np.intp]
    "Indices above the cut-off, which are selected under any keys."
    equal: NDArray[np.intp]
    "Indices whose score equals the cut-off, which compete for the remaining places."
    left: int
    "Number of remaining places."

    @classmethod
    def of(cls, scores: NDArray[np.float32], most: int) -> Contenders:
        """Find the `most` largest scores above 0; `scores` `(n,)` holds no NaN."""
        if len(scores) > most:
            least = np.partition(scores, -most)[-most]
            if least > 0:
                above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
                return cls(above, equal, most - len(above))
        return cls(np.flatnonzero(scores > 0), np.zeros(0, np.intp), 0)

    def best(self, keys: Keys) -> NDArray[np.intp]:
        """Return the indices of the largest scores, in no particular order; among `equal` the smaller keys win."""
        equal = self.equal
        if len(equal) > self.left:
            equal = equal[np.argpartition(keys(equal), self.left - 1)[: self.left]]
        return np.concatenate([self.above, equal])


def best(scores: NDArray[np.float32], most: int, keys: Keys) -> NDArray[np.intp]:
    """Return the indices of the `most` largest scores above 0, in no particular order; smaller keys win ties."""
    return Contenders.of(scores, most).best(keys)
