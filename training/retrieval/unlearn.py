"""What is learned for retrieval, and how it is made to look as if nobody had met some of the items."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.retrieval.towers import Content, ItemTower, UserTower, item_vectors

__all__ = ["Retrieval", "unlearned"]


@dataclass(slots=True)
class Retrieval:
    """Towers and item-to-item weights of n items, as a release holds them."""

    user: UserTower
    item: ItemTower
    vectors: NDArray[np.float32]
    "`(n, d + 1)`; of content alone where nobody met the item."
    met: NDArray[np.bool_]
    "`(n,)`."
    ease_index: NDArray[np.int32]
    "`(n, m)`, -1 where none."
    ease_weight: NDArray[np.float32]


def unlearned(made: Retrieval, content: Content, share: float, seed: int) -> Retrieval:
    """The same, but this share of the items that were met, drawn at random, is as if nobody had.

    Of those retrieval has a vector from content alone and no item-to-item weights, as of an item that comes later. What was
    learned of the others stays. Deterministic for one seed.
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
