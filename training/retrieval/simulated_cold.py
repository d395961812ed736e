"""Learned retrieval, and simulated cold items: items with interactions that are treated as having none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.release.transitions import Transitions
from training.retrieval.towers import Content, ItemTower, UserTower, item_vectors

__all__ = ["Retrieval", "simulate_cold"]


@dataclass(slots=True)
class Retrieval:
    """Towers and item-to-item weights of n items, as in a release."""

    user: UserTower
    item: ItemTower
    vectors: NDArray[np.float32]
    "Item vectors `(n, d + 1)`, from content alone where the item is cold."
    met: NDArray[np.bool_]
    "Whether an item has interactions, `(n,)`; the others are cold."
    ease_index: NDArray[np.int32]
    "Item indices `(n, m)`, -1 where there is none."
    ease_weight: NDArray[np.float32]
    transitions: Transitions | None = None
    "Transitions of items in sessions; None where none were learned."


def simulate_cold(made: Retrieval, content: Content, share: float, seed: int) -> Retrieval:
    """Make a random `share` of the items with interactions cold.

    Like new items, they get a vector from content alone, no item-to-item weights and no transitions. The other items'
    learned values stay unchanged. Deterministic for one seed.
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
        transitions=None if made.transitions is None else _without_cold(made.transitions, left),
    )


def _without_cold(found: Transitions, left: NDArray[np.bool_]) -> Transitions:
    """Remove the transitions from and to items that are not `left`."""
    kept = (found.index >= 0) & left[found.index]
    # a weight of 0 brings no candidate, and keeps the others of the row in front
    weight = np.where(kept & left[:, None], found.weight, np.float32(0))
    return replace(found, index=np.where(left[:, None], found.index, np.int32(-1)), weight=weight)
