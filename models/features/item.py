"""Features of an item that do not depend on the user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.features.kernels import columns
from models.features.spec import Group, Values
from models.items.store import ItemStore
from models.pipeline.batch import Model
from models.state.kernels.statistics import POPULARITY_HALF_LIFE_MS
from models.units import DAY_MS

__all__ = ["ACTIONS", "ITEM", "OfItems"]

ACTIONS = 4
"Number of actions whose share is a feature: the most frequent ones that the release encodes."


class OfItems:
    """Items as of stream time: n rows of the store."""

    def __init__(self, rows: NDArray[np.int32], items: ItemStore, model: Model) -> None:
        self.rows, self.items, self.model = rows, items, model

    def slots(self) -> NDArray[np.int64]:
        """Return the store's column of each of the release's ACTIONS most frequent actions, -1 for none `(ACTIONS,)`."""
        slots, known = np.full(ACTIONS, -1, np.int64), self.items.action_names
        for n, name in enumerate(self.model.vocabulary.actions[:ACTIONS]):
            if name in known:
                slots[n] = known.index(name)
        return slots


ITEM = Group[OfItems]()


@ITEM.feature(
    "item_popularity",
    "item_events",
    "item_trend",
    "item_age",
    "item_published",
    "item_value",
    "item_values",
    "item_price",
    "item_priced",
    "item_learned",
    *(f"item_action{n}" for n in range(ACTIONS)),
)
def item(of: OfItems) -> Values:
    """What is known of the item. Numbers of events and of days and the price are logarithms of one plus the number.

    - `item_popularity`, `item_events`: decayed number of events, and number of events.
    - `item_trend`: decayed number of events divided by the number of events: how recent they are.
    - `item_age`, `item_published`: days since the first event, and since publication; 0 where there was none.
    - `item_value`, `item_values`: mean standardised value, shrunk towards 0 by five events, and number of events with a value.
    - `item_price`, `item_priced`: price, 0 where it is unknown, and whether it is known.
    - `item_learned`: whether training had interactions with the item.
    - `item_actionN`: share of the release's Nth most frequent action in the item's events, shrunk towards 0 by five events.
    """
    items, model = of.items, of.model
    out = np.empty((len(of.rows), len(ITEM.features)), np.float32)
    columns.of_items(
        of.rows,
        items.popularity,
        items.popularity_ms,
        POPULARITY_HALF_LIFE_MS,
        items.events,
        items.value_sum,
        items.value_count,
        items.actions,
        of.slots(),
        items.first_ms,
        items.published_ms,
        items.price,
        model.met,
        items.stream_time_ms,
        float(DAY_MS),
        model.vocabulary.scale,
        out,
    )
    return out
