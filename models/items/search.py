"""Search in the catalogue by id and by words, over the columns that content retrieval uses."""

from __future__ import annotations

import numpy as np

from models.items.store import ItemStore
from models.items.words import text_vector
from schemas.records import Item

__all__ = ["LEAST", "found_rows", "statistics_of"]

LEAST = 0.05
"Cosine of the hashed words below which an item does not count as found."


def found_rows(items: ItemStore, text: str, most: int) -> list[int]:
    """Return up to `most` rows of listed items, best first: the item of that id, then by the words that it shares with `text`.

    Words are hashed, so that in rare cases an item is found by words that it does not have. Without `text` the most popular
    items are returned. One pass over the columns: no entry is decoded.
    """
    n = len(items)
    listed = items.listed[:n]
    if not text.strip():
        scores, least = items.popularity_now(), -1.0
    else:
        scores, least = items.text[:n] @ text_vector(Item("", text)), LEAST
    scores = np.where(listed & (scores > least), scores, -np.inf)
    most = min(most, n)
    best = np.argpartition(-scores, most - 1)[:most] if most else np.zeros(0, np.intp)
    best = best[np.lexsort((best, -scores[best]))]
    rows = [int(row) for row in best if np.isfinite(scores[row])]
    exact = items.row_of(text.strip()) if text.strip() else -1
    if exact >= 0 and items.listed[exact]:
        rows = [exact, *(row for row in rows if row != exact)][:most]
    return rows


def statistics_of(items: ItemStore, row: int) -> dict[str, object]:
    """Return an item's statistics as JSON values: events in all, by action, their values, and the decayed popularity."""
    values = int(items.value_count[row].sum())
    actions = items.actions[row].sum(axis=0)
    return {
        "events": int(items.all_events[row]),
        "actions": {name: int(actions[n]) for n, name in enumerate(items.action_names) if actions[n]},
        "popularity": round(float(items.popularity_now(np.asarray([row]))[0]), 3),
        "mean_value": round(float(items.value_sum[row].sum()) / values, 4) if values else None,
        "first_event_time": int(items.first_ms[row]) or None,
        "neighbours": int((items.neighbours[row] < 0).sum()),
    }
