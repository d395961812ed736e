"""Features of a candidate for a query: how the item relates to the user's history and to the sources' signals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.features import kernels
from models.features.context import hour_nearness
from models.features.spec import Group, Values, once
from models.items.store import ItemStore
from models.pipeline.batch import RECENT, Candidates, Model, Queries
from models.pipeline.kernels import signals
from models.pipeline.sources import RETRIEVING, TransitionSource
from models.state.rows import AFFINITY_HALF_LIFE_MS

__all__ = ["CROSS", "LAST", "Crossed"]

EQUAL = np.ones(RECENT, np.float32)
"Weights of a user's newest items."
LATER = RETRIEVING.index(TransitionSource)
"Index of the first source that the first generation of features lacks."
LAST = 5
"Number of newest items that a candidate is compared with one by one."


class ByCategory(NamedTuple):
    """Means over a candidate's categories, one number per candidate."""

    affinity: NDArray[np.float32]
    affinity_share: NDArray[np.float32]
    value: NDArray[np.float32]
    liked: NDArray[np.float32]
    hour: NDArray[np.float32]


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
        found: NDArray[np.int32] = kernels.newest(self.queries.history_rows, self.queries.liked, RECENT)
        return found

    def signal(self, name: str) -> NDArray[np.float32] | None:
        """Return a signal's scores `(n,)`; None without it."""
        signal = self.queries.signals.get(name)
        return None if signal is None else signal.at(self.query, self.rows)

    def share(self, name: str, scores: NDArray[np.float32] | None) -> Values:
        """Return a signal's scores as shares of their query's largest."""
        if scores is None:
            return None
        found: Values = scores / np.maximum(self.queries.signals[name].largest(), np.float32(1e-9))[self.query]
        return found

    @once
    def covisit(self) -> NDArray[np.float32] | None:
        """The signal `covisitation` `(n,)`; None without it."""
        return self.signal("covisitation")

    @once
    def ease(self) -> NDArray[np.float32] | None:
        """The signal `ease` `(n,)`; None without it."""
        return self.signal("ease")

    @once
    def transitions(self) -> NDArray[np.float32] | None:
        """The signal `transitions` `(n,)`; None without it."""
        return self.signal("transitions")

    @once
    def dots(self) -> NDArray[np.float32] | None:
        """Products of the towers' vectors `(n,)`; None without user vectors."""
        users = self.queries.user_vectors
        if users is None:
            return None
        found: NDArray[np.float32] = signals.dots(self.model.vectors, self.rows, users, self.query)
        return found

    @once
    def categories(self) -> ByCategory | None:
        """Statistics of the candidates' categories from the users' histories; 0 without history. None without categories."""
        items, queries = self.items, self.queries
        size = len(items.category_names)
        if not size:
            return None
        users = queries.users
        ages = np.maximum(items.stream_time_ms - users.affinity_ms, 0)
        affinity = users.affinity_weight * np.exp2(-ages / AFFINITY_HALF_LIFE_MS)
        means = kernels.by_category(
            self.query,
            self.rows,
            items.category_ids,
            size,
            users.affinity_starts,
            items.category_rows_of_hashes(users.affinity_category),
            affinity,
            queries.history_rows,
            self.model.vocabulary.standard(users.value),
            queries.liked,
            hour_nearness(users.time, items.stream_time_ms),
        )
        return ByCategory(*means.T)

    @once
    def price_above(self) -> NDArray[np.float32] | None:
        """Log of the price minus the mean log price of the user's newest items; 0 where one is unknown."""
        usual = np.where(self.newest >= 0, self.items.price[self.newest], np.float32(np.nan))
        known = ~np.isnan(usual)
        if not known.any():
            return None
        total = np.where(known, np.log1p(np.maximum(usual, 0)), 0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            mean = (total / known.sum(axis=1)).astype(np.float32)
        above: NDArray[np.float32] = np.nan_to_num(np.log1p(np.maximum(self.items.price[self.rows], 0)) - mean[self.query])
        return above

    @once
    def price_among(self) -> NDArray[np.float32] | None:
        """`kernels.among` of the logs of the prices, `(n, 2)`; None where no price is known."""
        prices = self.items.price[self.rows]
        if np.isnan(prices).all():
            return None
        found: NDArray[np.float32] = kernels.among(np.log1p(np.maximum(prices, 0)), self.spans)
        return found

    @once
    def seen(self) -> NDArray[np.float32] | None:
        """`kernels.seen` `(n, 2)`; None where no request allows repeats."""
        queries = self.queries
        if not queries.repeats.any():
            return None
        found: NDArray[np.float32] = kernels.seen(self.query, self.rows, queries.history_rows, queries.repeats)
        return found


CROSS = Group[Crossed]()


@CROSS.feature("covisit")
def covisit(of: Crossed) -> Values:
    """Co-visitation with the user's newest items."""
    return of.covisit


@CROSS.feature("covisit_share")
def covisit_share(of: Crossed) -> Values:
    """`covisit` as a share of the query's largest."""
    return of.share("covisitation", of.covisit)


@CROSS.feature("covisit_last")
def covisit_last(of: Crossed) -> Values:
    """Share of the newest item's co-visitation."""
    items, last = of.items, np.ascontiguousarray(of.queries.recent_rows[:, 0])
    found: Values = signals.neighbours_of(
        last, items.neighbours, items.neighbour_weights, items.neighbour_total, of.query, of.rows
    )
    return found


@CROSS.feature("ease")
def ease(of: Crossed) -> Values:
    """Item-to-item weights from the liked history."""
    return of.ease


@CROSS.feature("ease_share")
def ease_share(of: Crossed) -> Values:
    """`ease` as a share of the query's largest."""
    return of.share("ease", of.ease)


@CROSS.feature("tower")
def tower(of: Crossed) -> Values:
    """Product of the user tower's and the item's vector."""
    return of.dots


@CROSS.feature("tower_standard")
def tower_standard(of: Crossed) -> Values:
    """`tower`, standardised over the query's candidates."""
    if of.dots is None:
        return None
    found: Values = kernels.standardised(of.dots, of.spans)
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
    found: Values = (
        of.popularity / np.maximum(signals.largest(of.popularity, of.spans, np.float32(0)), np.float32(1e-6))[of.query]
    )
    return found


@CROSS.feature(*(f"by_{source.name}" for source in RETRIEVING[:LATER]))
def by_source(of: Crossed) -> Values:
    """Whether each source retrieved the candidate."""
    return of.brought[:, :LATER]


@CROSS.feature("price_rank", since=2)
def price_rank(of: Crossed) -> Values:
    """Place of the price among those of the query's candidates, from -0.5 for the cheapest to 0.5; 0 where it is unknown."""
    return None if of.price_among is None else of.price_among[:, 0]


@CROSS.feature("price_over_mean", since=2)
def price_over_mean(of: Crossed) -> Values:
    """Log of the price minus the mean of the query's candidates; 0 where it is unknown."""
    return None if of.price_among is None else of.price_among[:, 1]


@CROSS.feature("seen_events", since=2)
def seen_events(of: Crossed) -> Values:
    """Number of the user's kept events on the candidate, as a logarithm; 0 unless the request allows repeats."""
    return None if of.seen is None else of.seen[:, 0]


@CROSS.feature("seen_last", since=2)
def seen_last(of: Crossed) -> Values:
    """1 / (1 + number of events after the user's newest one on the candidate); 0 without one, as for `seen_events`."""
    return None if of.seen is None else of.seen[:, 1]


@CROSS.feature(*(f"by_{source.name}" for source in RETRIEVING[LATER:]), since=3)
def by_later_source(of: Crossed) -> Values:
    """Whether each of the sources from the transitions on retrieved the candidate."""
    found = of.brought[:, LATER:]
    return found if found.shape[1] > 1 else found[:, 0]


@CROSS.feature("transition", since=3)
def transition(of: Crossed) -> Values:
    """Transition weights from the newest events of the session."""
    return of.transitions


@CROSS.feature("transition_share", since=3)
def transition_share(of: Crossed) -> Values:
    """`transition` as a share of the query's largest."""
    return of.share("transitions", of.transitions)
