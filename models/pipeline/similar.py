"""Items similar to one item. No run of the pipeline: no user, no filters but availability, no release."""

from __future__ import annotations

import numpy as np

from models.items.store import ItemStore
from models.pipeline.exact import exact_top
from models.pipeline.sources import LEAST_ALIKE
from models.pipeline.ties import Ties
from schemas.errors import BadItem
from schemas.records import SlateItem

__all__ = ["similar_items"]


def similar_items(items: ItemStore, item_id: str, k: int, now_ms: int) -> list[SlateItem]:
    """At most `k` items that users interact with together with this one, then items of like content; none without either.

    Items that are published after `now_ms` are left out.

    Raises:
        BadItem: code `not_found`: the catalogue does not hold the item, or no longer.
    """
    row = items.row_of(item_id)
    if row < 0 or items.items[row] is None:
        raise BadItem("not_found", f"no item {item_id!r}", "item_id")
    n = len(items)
    near, weight = items.neighbour_rows[row], items.neighbour_weights[row]
    there = near >= 0
    together = np.zeros(n, np.float32)
    if there.any():
        together[near[there]] = weight[there] / max(float(weight.max()), 1e-9)
    eligible = items.eligible(now_ms)
    eligible[row] = False
    ties = Ties(items.hashes, int(items.hashes[row]))
    # what is met together with it, and of the rest as much by its content alone as may come to stand beside that
    text, own = items.text[:n], items.text[row]
    ((alike, _),) = exact_top(own[None], text, eligible, k + len(near), [ties.keys], LEAST_ALIKE)
    rows = np.union1d(near[there][eligible[near[there]]], alike)
    total = together[rows] + np.float32(0.5) * np.einsum("nd,d->n", text[rows], own)
    order = np.lexsort((ties.keys(rows), -total))[:k]
    found = []
    for place in order[total[order] > 0.5 * LEAST_ALIKE].tolist():
        by = ("covisitation",) if together[rows[place]] else ("content",)
        found.append(SlateItem(items.ids[rows[place]], float(total[place]), by))
    return found
