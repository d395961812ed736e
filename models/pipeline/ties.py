"""Tie-breaking among items of equal score, by item id and requesting user. The order of items in a file has no influence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ties", "tie_keys"]


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
    """The tie-break orders of q queries: the same in every worker and after every restart. The smaller key comes first."""

    hashes: NDArray[np.uint64]
    "`hash64` of the ids, by item row."
    salts: NDArray[np.uint64]
    "`hash64` of each query's user id, or of the item's for similar items: `(q,)`."

    def keys(self, query_row: NDArray[np.integer], item_row: NDArray[np.integer]) -> NDArray[np.uint64]:
        """Return the keys of (query, item) pairs: uint64, same shape."""
        return tie_keys(self.hashes[item_row], self.salts[query_row])

    def of(self, queries: NDArray[np.integer]) -> Ties:
        """Return the orders of some queries."""
        return Ties(self.hashes, self.salts[queries])
