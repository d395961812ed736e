"""Features of a candidate for a query: how the item relates to the user's history and to the sources' signals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.features.context import hour_nearness
from models.features.spec import Group, Values, once
from models.items.store import ItemStore
from models.pipeline.batch import Model, Queries
from models.pipeline.sources import RETRIEVING
from models.state.rows import AFFINITY_HALF_LIFE_MS, UserRecord

__all__ = ["CROSS", "LAST", "Crossed"]

LAST = 5
"Number of newest items that a candidate is compared with one by one."


class Profile(NamedTuple):
    """Content of a user's newest items; only of liked items if there are any."""

    words: NDArray[np.float32]
    "Mean direction of the items' hashed words."
    content: NDArray[np.float32]
    "Mean direction of the items' content."
    latest: NDArray[np.float32]
    "Content of each of the LAST newest items, newest first."


class ByCategory(NamedTuple):
    """Means over a candidate's categories, one number per candidate."""

    affinity: NDArray[np.float32]
    affinity_share: NDArray[np.float32]
    value: NDArray[np.float32]
    liked: NDArray[np.float32]
    hour: NDArray[np.float32]


class Crossed:
    """The n candidates of one query. Columns that several features share are computed at first use."""

    def __init__(
        self,
        query: int,
        rows: NDArray[np.int32],
        popularity: NDArray[np.float32],
        brought: NDArray[np.float32],
        queries: Queries,
        items: ItemStore,
        model: Model,
    ) -> None:
        """`popularity`: the candidates' `item_popularity`; `brought` `(n, len(RETRIEVING))`: 1 where the source found it."""
        self.query, self.rows, self.popularity, self.brought = query, rows, popularity, brought
        self.queries, self.items, self.model = queries, items, model
        self.liked = queries.liked[query] if query < len(queries.liked) else None
        "Whether the release counts each event as liked, newest first."

    @once
    def newest(self) -> NDArray[np.int32]:
        """Rows of the user's newest items, newest first; only liked items if there are any."""
        rows, liked = self.queries.history_rows[self.query], self.liked
        wanted = rows[: len(liked)][liked] if liked is not None and liked.any() else rows
        newest: NDArray[np.int32] = wanted[wanted >= 0][: self.queries.recent_rows.shape[1]]
        return newest

    @once
    def covisit(self) -> NDArray[np.float32] | None:
        """The signal `covisitation` `(n,)`; None without it."""
        signal = self.queries.signals.get("covisitation")
        return None if signal is None else signal.at(self.query, self.rows)

    @once
    def ease(self) -> NDArray[np.float32] | None:
        """The signal `ease` `(n,)`; None without it."""
        signal = self.queries.signals.get("ease")
        return None if signal is None else signal.at(self.query, self.rows)

    @once
    def dots(self) -> NDArray[np.float32] | None:
        """Products of the towers' vectors `(n,)`; None without a user vector."""
        users = self.queries.user_vectors
        return None if users is None else self.model.vectors[self.rows] @ users[self.query]

    @once
    def profile(self) -> Profile:
        """Content of the user's newest items."""
        content = self.model.content[self.newest]
        words = self.items.text[self.newest].sum(axis=0)
        return Profile(_unit(words), _unit(content.sum(axis=0)), content[:LAST])

    @once
    def content(self) -> NDArray[np.float32]:
        """The candidates' content vectors `(n, c)`."""
        found: NDArray[np.float32] = self.model.content[self.rows]
        return found

    @once
    def categories(self) -> ByCategory | None:
        """Statistics of the candidates' categories from the user's history; None without history."""
        user = self.queries.users[self.query]
        if user is None or not len(user.history):
            return None
        return _by_category(user, self.queries.history_rows[self.query], self.liked, self.rows, self.items, self.model)

    @once
    def price_above(self) -> NDArray[np.float32] | None:
        """Log of the price minus the mean log price of the user's newest items; 0 where the price is unknown."""
        usual = self.items.price[self.newest]
        usual = np.log1p(np.maximum(usual[~np.isnan(usual)], 0))
        if not len(usual):
            return None
        above: NDArray[np.float32] = np.nan_to_num(np.log1p(np.maximum(self.items.price[self.rows], 0)) - usual.mean())
        return above


CROSS = Group[Crossed]()


@CROSS.feature("covisit")
def covisit(of: Crossed) -> Values:
    """Co-visitation with the user's newest items."""
    return of.covisit


@CROSS.feature("covisit_share")
def covisit_share(of: Crossed) -> Values:
    """`covisit` as a share of the query's largest."""
    return None if of.covisit is None else of.covisit / max(of.queries.signals["covisitation"].largest(of.query), 1e-9)


@CROSS.feature("covisit_last")
def covisit_last(of: Crossed) -> Values:
    """Share of the newest item's co-visitation."""
    last = of.queries.recent_rows[of.query, 0]
    if last < 0:
        return None
    near, weight = of.items.neighbour_rows[last], of.items.neighbour_weights[last]
    order = np.argsort(near, kind="stable")
    near = near[order]
    place = np.minimum(np.searchsorted(near, of.rows), len(near) - 1)
    total = max(float(of.items.neighbour_total[last]), 1e-9)
    return np.where(near[place] == of.rows, weight[order[place]] / total, 0)


@CROSS.feature("ease")
def ease(of: Crossed) -> Values:
    """Item-to-item weights from the liked history."""
    return of.ease


@CROSS.feature("ease_share")
def ease_share(of: Crossed) -> Values:
    """`ease` as a share of the query's largest."""
    return None if of.ease is None else of.ease / max(of.queries.signals["ease"].largest(of.query), 1e-9)


@CROSS.feature("tower")
def tower(of: Crossed) -> Values:
    """Product of the user tower's and the item's vector."""
    return of.dots


@CROSS.feature("tower_standard")
def tower_standard(of: Crossed) -> Values:
    """`tower`, standardised over the query's candidates."""
    return None if of.dots is None else (of.dots - of.dots.mean()) / (float(of.dots.std()) + 1e-6)


@CROSS.feature("content")
def content(of: Crossed) -> Values:
    """Cosine of hashed words with those of the newest items."""
    return of.items.text[of.rows] @ of.profile.words


@CROSS.feature("similar")
def similar(of: Crossed) -> Values:
    """Cosine of content with that of the newest items."""
    return of.content @ of.profile.content


@CROSS.feature("similar_last")
def similar_last(of: Crossed) -> Values:
    """Largest cosine of content with one of the LAST newest items."""
    latest = of.profile.latest
    return (of.content @ latest.T).max(axis=1) if len(latest) else None


@CROSS.feature("affinity")
def affinity(of: Crossed) -> Values:
    """Decayed affinity to the candidate's categories, as a logarithm."""
    return None if of.categories is None else of.categories.affinity


@CROSS.feature("affinity_share")
def affinity_share(of: Crossed) -> Values:
    """Affinity to the candidate's categories as a share of the user's largest."""
    return None if of.categories is None else of.categories.affinity_share


@CROSS.feature("category_value")
def category_value(of: Crossed) -> Values:
    """Mean standardised value of the user's events in the candidate's categories, shrunk by three events."""
    return None if of.categories is None else of.categories.value


@CROSS.feature("category_liked")
def category_liked(of: Crossed) -> Values:
    """Share of liked events in the candidate's categories, shrunk by three events."""
    return None if of.categories is None else of.categories.liked


@CROSS.feature("category_hour")
def category_hour(of: Crossed) -> Values:
    """How much larger the categories' share of the user's events is at this time of day than overall."""
    return None if of.categories is None else of.categories.hour


@CROSS.feature("price_above")
def price_above(of: Crossed) -> Values:
    """Log of the price minus the mean log price of the newest items."""
    return of.price_above


@CROSS.feature("price_far")
def price_far(of: Crossed) -> Values:
    """Absolute value of `price_above`."""
    return None if of.price_above is None else np.abs(of.price_above)


@CROSS.feature("popularity_share")
def popularity_share(of: Crossed) -> Values:
    """`item_popularity` as a share of the query's largest."""
    return of.popularity / max(float(of.popularity.max()), 1e-6)


@CROSS.feature(*(f"by_{source.name}" for source in RETRIEVING))
def by_source(of: Crossed) -> Values:
    """Whether each source retrieved the candidate."""
    return of.brought


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    scaled: NDArray[np.float32] = vector / length if length > 0 else vector
    return scaled


def _by_category(
    user: UserRecord,
    history: NDArray[np.int32],
    liked: NDArray[np.bool_] | None,
    rows: NDArray[np.int32],
    items: ItemStore,
    model: Model,
) -> ByCategory | None:
    size = len(items.category_names)
    if not size:
        return None
    affinity = np.zeros(size + 1)
    for name, (weight, at) in user.affinities.items():
        number = items.category_rows([name])
        if len(number):
            affinity[number[0]] = weight * 2.0 ** (-max(items.stream_time_ms - at, 0) / AFFINITY_HALF_LIFE_MS)
    events = user.history[::-1]
    known = history[: len(events)] >= 0
    categories = items.category_ids[history[: len(events)][known]]
    values = model.vocabulary.standard(events["value"][known])
    there = categories >= 0
    flat = categories[there]
    event = np.nonzero(there)[0]
    count = np.bincount(flat, minlength=size + 1)
    value = np.bincount(flat, values[event], minlength=size + 1) / (count + 3.0)
    fond = np.zeros(len(values)) if liked is None else liked[: len(events)][known].astype(np.float64)
    share = np.bincount(flat, fond[event], minlength=size + 1) / (count + 3.0)
    near = hour_nearness(events["time"][known], items.stream_time_ms)
    hour = np.bincount(flat, near[event], minlength=size + 1)
    hour = (hour - near.sum() * count / max(len(near), 1)) / (near.sum() + 3.0)
    mine = items.category_ids[rows]
    valid = mine >= 0
    number = np.maximum(valid.sum(axis=1), 1)
    # the padding category gets number `size`, where every column is 0
    mine = np.where(valid, mine, size)[:, valid.any(axis=0)]
    sums = np.stack([affinity, affinity / max(float(affinity.max()), 1e-6), value, share, hour])[:, mine].sum(axis=2)
    means = (sums / number).astype(np.float32)
    return ByCategory(np.log1p(sums[0]).astype(np.float32), means[1], means[2], means[3], means[4])
