"""Features of a candidate for a query: how the item relates to the user's history and to the sources' signals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.features.kernels import categories, columns, values
from models.features.spec import Group, Values, once
from models.items.store import ItemStore
from models.pipeline.batch import RECENT, Candidates, Model, Queries
from models.pipeline.kernels import signals
from models.pipeline.scratch import SCRATCH
from models.pipeline.sources import RETRIEVING, TransitionSource

__all__ = ["CROSS", "LAST", "Crossed"]

EQUAL = np.ones(RECENT, np.float32)
"Weights of a user's newest items."
LATER = RETRIEVING.index(TransitionSource)
"Index of the first source that the first generation of features lacks."
LAST = 5
"Number of newest items that a candidate is compared with one by one."


class Crossed:
    """The n candidates of a batch, ordered by query. Columns that several features share are computed at first use."""

    def __init__(
        self,
        candidates: Candidates,
        spans: NDArray[np.intp],
        popularity: NDArray[np.float32],
        brought: NDArray[np.float32],
        queries: Queries,
        items: ItemStore,
        model: Model,
    ) -> None:
        """`spans`: start of each query's candidates and end of the last; `popularity`: the candidates' `item_popularity`;
        `brought` `(n, len(RETRIEVING))`: 1 where the source found it."""
        self.query, self.rows, self.spans = candidates.query_row, candidates.item_row, spans
        self.popularity, self.brought = popularity, brought
        self.queries, self.items, self.model = queries, items, model

    @once
    def newest(self) -> NDArray[np.int32]:
        """Rows of the users' newest items, newest first, -1 beyond; only liked items if there are any: `(q, RECENT)`."""
        found: NDArray[np.int32] = values.newest(self.queries.history_rows, self.queries.liked, RECENT)
        return found

    def shares(self, name: str) -> NDArray[np.float32] | None:
        """Return a signal's scores, and each as a share of its query's largest: float32 `(n, 2)`; None without it."""
        signal = self.queries.signals.get(name)
        if signal is None:
            return None
        work = SCRATCH.sums(self.queries.size)
        found: NDArray[np.float32] = columns.shares(signal.starts, signal.rows, signal.scores, self.query, self.rows, work)
        return found

    @once
    def dots(self) -> NDArray[np.float32] | None:
        """Products of the towers' vectors `(n,)`; None without user vectors."""
        users = self.queries.user_vectors
        if users is None:
            return None
        found: NDArray[np.float32] = signals.dots(self.model.vectors, self.rows, users, self.query)
        return found

    @once
    def categories(self) -> NDArray[np.float32] | None:
        """`categories.by_category` `(n, 5)`; None without categories."""
        items, queries = self.items, self.queries
        size = len(items.category_names)
        if not size:
            return None
        users = queries.users
        found: NDArray[np.float32] = categories.by_category(
            self.query,
            self.rows,
            items.category_ids,
            size,
            users.affinity_starts,
            items.category_rows_of_hashes(users.affinity_category),
            users.affinity_weight,
            users.affinity_ms,
            queries.history_rows,
            users.time,
            users.value,
            queries.liked,
            items.stream_time_ms,
            self.model.vocabulary.scale,
        )
        return found

    @once
    def prices(self) -> tuple[NDArray[np.float32], NDArray[np.float32], bool, bool]:
        """`columns.of_prices`."""
        found: tuple[NDArray[np.float32], NDArray[np.float32], bool, bool]
        found = columns.of_prices(self.items.price, self.rows, self.query, self.newest)
        return found


CROSS = Group[Crossed]()


@CROSS.feature("covisit", "covisit_share")
def covisit(of: Crossed) -> Values:
    """Co-visitation with the user's newest items, and its share of the query's largest."""
    return of.shares("covisitation")


@CROSS.feature("covisit_last")
def covisit_last(of: Crossed) -> Values:
    """Share of the newest item's co-visitation."""
    items, last = of.items, np.ascontiguousarray(of.queries.recent_rows[:, 0])
    work = SCRATCH.sums(of.queries.size)
    found: Values = columns.last_shares(
        last, items.neighbours, items.neighbour_weights, items.neighbour_total, of.query, of.rows, work
    )
    return found


@CROSS.feature("ease", "ease_share")
def ease(of: Crossed) -> Values:
    """Item-to-item weights from the liked history, and their share of the query's largest."""
    return of.shares("ease")


@CROSS.feature("tower")
def tower(of: Crossed) -> Values:
    """Product of the user tower's and the item's vector."""
    return of.dots


@CROSS.feature("tower_standard")
def tower_standard(of: Crossed) -> Values:
    """`tower`, standardised over the query's candidates."""
    if of.dots is None:
        return None
    found: Values = values.standardised(of.dots, of.spans)
    return found


@CROSS.feature("content")
def content(of: Crossed) -> Values:
    """Cosine of hashed words with those of the newest items."""
    found: Values = signals.dots(of.items.text, of.rows, signals.profiles(of.items.text, of.newest, EQUAL), of.query)
    return found


@CROSS.feature("similar")
def similar(of: Crossed) -> Values:
    """Cosine of content with that of the newest items."""
    found: Values = signals.dots(of.model.content, of.rows, signals.profiles(of.model.content, of.newest, EQUAL), of.query)
    return found


@CROSS.feature("similar_last")
def similar_last(of: Crossed) -> Values:
    """Largest cosine of content with one of the LAST newest items."""
    found: Values = signals.best_dots(of.model.content, of.rows, np.ascontiguousarray(of.newest[:, :LAST]), of.query)
    return found


@CROSS.feature("affinity", "affinity_share", "category_value", "category_liked", "category_hour")
def category(of: Crossed) -> Values:
    """Means over the candidate's categories, from the user's history.

    - `affinity`, `affinity_share`: decayed affinity, as a logarithm, and as a share of the user's largest.
    - `category_value`: mean standardised value of the user's events in the category, shrunk by three events.
    - `category_liked`: share of liked events in it, shrunk by three events.
    - `category_hour`: how much larger its share of the user's events is at this time of day than overall.
    """
    return of.categories


@CROSS.feature("price_above", "price_far")
def price(of: Crossed) -> Values:
    """Log of the price minus the mean log price of the newest items, and its absolute value; 0 where one is unknown."""
    _, above, _, told = of.prices
    return np.column_stack((above, np.abs(above))) if told else None


@CROSS.feature("popularity_share")
def popularity_share(of: Crossed) -> Values:
    """`item_popularity` as a share of the query's largest."""
    found: Values = columns.of_largest(of.popularity, of.spans, np.float32(1e-6))
    return found


@CROSS.feature(*(f"by_{source.name}" for source in RETRIEVING[:LATER]))
def by_source(of: Crossed) -> Values:
    """Whether each source retrieved the candidate."""
    return of.brought[:, :LATER]


@CROSS.feature("price_rank", "price_over_mean", since=2)
def price_among(of: Crossed) -> Values:
    """How the price lies among those of the query's candidates; 0 where it is unknown.

    - `price_rank`: its place, from -0.5 for the cheapest to 0.5.
    - `price_over_mean`: its logarithm minus their mean.
    """
    logs, _, priced, _ = of.prices
    return values.among(logs, of.spans) if priced else None


@CROSS.feature("seen_events", "seen_last", since=2)
def seen(of: Crossed) -> Values:
    """What the user's kept events say of the candidate; 0 unless the request allows repeats.

    - `seen_events`: number of events on it, as a logarithm.
    - `seen_last`: 1 / (1 + number of events after the user's newest one on it); 0 without one.
    """
    queries = of.queries
    return values.seen(of.query, of.rows, queries.history_rows, queries.repeats) if queries.repeats.any() else None


@CROSS.feature(*(f"by_{source.name}" for source in RETRIEVING[LATER:]), since=3)
def by_later_source(of: Crossed) -> Values:
    """Whether each of the sources from the transitions on retrieved the candidate."""
    found = of.brought[:, LATER:]
    return found if found.shape[1] > 1 else found[:, 0]


@CROSS.feature("transition", "transition_share", since=3)
def transition(of: Crossed) -> Values:
    """Transition weights from the newest events of the session, and their share of the query's largest."""
    return of.shares("transitions")
