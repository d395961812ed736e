"""Items similar to one item. It runs no pipeline stages: no user, no release, no filter but availability and publication."""

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
    """Return up to `k` items similar to an item by co-visitation and content; none if it has neither.

    Items published after `now_ms` are excluded.

    Raises:
        BadItem: `not_found`, the catalogue does not hold the item, or no longer does.
    """
    row = items.row_of(item_id)
    if row < 0 or not items.listed[row]:
        raise BadItem("not_found", f"no item {item_id!r}", "item_id")
    n = len(items)
    near, weight = ~items.neighbours[row], items.neighbour_weights[row]
    there = near >= 0
    together = np.zeros(n, np.float32)
    if there.any():
        together[near[there]] = weight[there] / max(float(weight.max()), 1e-9)
    eligible = items.eligible(now_ms).copy()
    eligible[row] = False
    ties = Ties(items.hashes, items.hashes[row : row + 1])
    # co-visited items, and as many others by content alone as the result can hold beside them
    text, own = items.text[:n], items.text[row]
    alike = exact_top(own[None], text, eligible, k + len(near), ties, LEAST_ALIKE)
    rows = np.union1d(near[there][eligible[near[there]]], alike.rows)
    total = together[rows] + np.float32(0.5) * np.einsum("nd,d->n", text[rows], own)
    order = np.lexsort((ties.keys(np.zeros(len(rows), np.intp), rows), -total))[:k]
    found = []
    for place in order[total[order] > 0.5 * LEAST_ALIKE].tolist():
        by = ("covisitation",) if together[rows[place]] else ("content",)
        found.append(SlateItem(items.ids[rows[place]], float(total[place]), by))
    return found
