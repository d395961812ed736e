"""Features of an item that do not depend on the user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.features.spec import Group, Values, once
from models.items.store import ItemStore
from models.pipeline.batch import Model
from models.units import DAY_MS

__all__ = ["ACTIONS", "ITEM", "OfItems"]

ACTIONS = 4
"Number of actions whose share is a feature: the most frequent ones that the release encodes."


class OfItems:
    """Items as of stream time: columns over n rows of the store, computed at first use."""

    def __init__(self, rows: NDArray[np.int32], items: ItemStore, model: Model) -> None:
        self.rows, self.items, self.model = rows, items, model

    @once
    def popularity(self) -> NDArray[np.float32]:
        """Decayed number of events `(n,)`."""
        return self.items.popularity_now(self.rows)

    @once
    def events(self) -> NDArray[np.int64]:
        """Number of events `(n,)`."""
        found: NDArray[np.int64] = self.items.events[self.rows].sum(axis=1)
        return found

    @once
    def valued(self) -> NDArray[np.int64]:
        """Number of events with a value `(n,)`."""
        found: NDArray[np.int64] = self.items.value_count[self.rows].sum(axis=1)
        return found

    @once
    def price(self) -> NDArray[np.float32]:
        """Price, NaN where it is unknown `(n,)`."""
        found: NDArray[np.float32] = self.items.price[self.rows]
        return found

    def days_since(self, times_ms: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the log of the days since these times; 0 where a time is unknown `(n,)`."""
        days = np.log1p(np.maximum(self.items.stream_time_ms - times_ms, 0) / DAY_MS)
        known: NDArray[np.float64] = np.where(times_ms > 0, days, 0)
        return known


ITEM = Group[OfItems]()


@ITEM.feature("item_popularity")
def item_popularity(of: OfItems) -> Values:
    """Decayed number of events, as a logarithm."""
    return np.log1p(of.popularity)


@ITEM.feature("item_events")
def item_events(of: OfItems) -> Values:
    """Number of events, as a logarithm."""
    return np.log1p(of.events)


@ITEM.feature("item_trend")
def item_trend(of: OfItems) -> Values:
    """Decayed number of events divided by the number of events: how recent they are."""
    return of.popularity / (of.events + 1.0)


@ITEM.feature("item_age")
def item_age(of: OfItems) -> Values:
    """Days since the first event, as a logarithm."""
    return of.days_since(of.items.first_ms[of.rows])


@ITEM.feature("item_published")
def item_published(of: OfItems) -> Values:
    """Days since publication, as a logarithm."""
    return of.days_since(of.items.published_ms[of.rows])


@ITEM.feature("item_value")
def item_value(of: OfItems) -> Values:
    """Mean standardised value, shrunk towards 0 by five events."""
    mean = of.items.value_sum[of.rows].sum(axis=1) / np.maximum(of.valued, 1)
    standard = of.model.vocabulary.standard(np.where(of.valued > 0, mean, np.nan).astype(np.float32))
    return standard * of.valued / (of.valued + 5.0)


@ITEM.feature("item_values")
def item_values(of: OfItems) -> Values:
    """Number of events with a value, as a logarithm."""
    return np.log1p(of.valued)


@ITEM.feature("item_price")
def item_price(of: OfItems) -> Values:
    """Price, as a logarithm; 0 where it is unknown."""
    return np.log1p(np.where(of.price > 0, of.price, np.float32(0)))


@ITEM.feature("item_priced")
def item_priced(of: OfItems) -> Values:
    """Whether the price is known."""
    return ~np.isnan(of.price)


@ITEM.feature("item_learned")
def item_learned(of: OfItems) -> Values:
    """Whether training had interactions with the item."""
    return of.model.met[of.rows]


@ITEM.feature(*(f"item_action{n}" for n in range(ACTIONS)))
def item_actions(of: OfItems) -> Values:
    """Share of each of the release's most frequent actions in the item's events, shrunk towards 0 by five events."""
    out = np.zeros((len(of.rows), ACTIONS), np.float32)
    for n, name in enumerate(of.model.vocabulary.actions[:ACTIONS]):
        if name in of.items.action_names:
            slot = of.items.action_names.index(name)
            out[:, n] = of.items.actions[of.rows, :, slot].sum(axis=1) / (of.events + 5.0)
    return out
