"""What is learned for retrieval, and how some of its items are made cold, as if nobody had interacted with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.retrieval.towers import Content, ItemTower, UserTower, item_vectors

__all__ = ["Retrieval", "simulate_cold"]


@dataclass(slots=True)
class Retrieval:
    """Towers and item-to-item weights of n items, as a release holds them."""

    user: UserTower
    item: ItemTower
    vectors: NDArray[np.float32]
    "`(n, d + 1)`; of content alone where the item is cold."
    met: NDArray[np.bool_]
    "Items that somebody interacted with, `(n,)`; the others are cold."
    ease_index: NDArray[np.int32]
    "`(n, m)`, -1 where none."
    ease_weight: NDArray[np.float32]


def simulate_cold(made: Retrieval, content: Content, share: float, seed: int) -> Retrieval:
    """The same, but with `share` of the items that are not cold, drawn at random, made cold.

    These get a vector from content alone and no item-to-item weights, as an item does that comes later. What was learned of
    the others stays. Deterministic for one seed.
    """
    met = np.flatnonzero(made.met)
    left = made.met.copy()
    left[np.random.default_rng(seed).permutation(met)[: int(len(met) * share)]] = False
    kept = (made.ease_index >= 0) & left[made.ease_index] & left[:, None]
    return replace(
        made,
        vectors=item_vectors(made.item, content, ~left),
        met=left,
        ease_index=np.where(kept, made.ease_index, np.int32(-1)),
        ease_weight=np.where(kept, made.ease_weight, np.float32(0)),
    )
