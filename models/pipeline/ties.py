"""The order among items of equal score, drawn from their ids and from who asks: where they lie in a file decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Contenders", "Keys", "Ties", "best", "tie_keys"]

Keys = Callable[[NDArray[np.integer]], NDArray[np.uint64]]
"Tie-break keys of numbers: among equal scores the smaller key comes first."


def tie_keys(hashes: NDArray[np.uint64], salts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix ids' hashes with the askers', so that each asker has an order of their own: splitmix64 (Steele et al. 2014).

    uint64, of the common shape, at least one-dimensional. Different hashes have different keys under the same salt.
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
    """The order among equals for one asker: the same in every worker and after every restart."""

    hashes: NDArray[np.uint64]
    "`hash64` of the ids, by item row."
    salt: int
    "`hash64` of who asks."

    def keys(self, rows: NDArray[np.integer]) -> NDArray[np.uint64]:
        """Keys of items: uint64 `(len(rows),)`."""
        return tie_keys(self.hashes[rows], np.asarray([self.salt], np.uint64))


@dataclass(frozen=True, slots=True)
class Contenders:
    """What the `most` largest of some scores are, but for the equals that compete for the last places."""

    above: NDArray[np.intp]
    "Places that are among them whoever asks."
    equal: NDArray[np.intp]
    "Places that compete: all have the smallest score that is among them."
    left: int
    "How many of those are among them."

    @classmethod
    def of(cls, scores: NDArray[np.float32], most: int) -> Contenders:
        """Those of the `most` largest scores above 0; `scores` `(n,)` holds no NaN."""
        if len(scores) > most:
            least = np.partition(scores, -most)[-most]
            if least > 0:
                above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
                return cls(above, equal, most - len(above))
        return cls(np.flatnonzero(scores > 0), np.zeros(0, np.intp), 0)

    def best(self, keys: Keys) -> NDArray[np.intp]:
        """Places of the largest scores, in no particular order; among `equal` the smaller keys win."""
        equal = self.equal
        if len(equal) > self.left:
            equal = equal[np.argpartition(keys(equal), self.left - 1)[: self.left]]
        return np.concatenate([self.above, equal])


def best(scores: NDArray[np.float32], most: int, keys: Keys) -> NDArray[np.intp]:
    """Places of the `most` largest scores above 0, in no particular order; among equals the smaller keys win."""
    return Contenders.of(scores, most).best(keys)
