"""Sources: the stages that retrieve candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import RECENT, Queries, Retrieved
from models.pipeline.exact import exact_top
from models.pipeline.kernels import order, signals
from models.pipeline.leaders import Leaders
from models.pipeline.popular import Popularity, most_popular, popularity_of
from models.pipeline.ragged import Ragged, Scored
from models.pipeline.rules.source import RulesSource
from models.pipeline.stages import Source

__all__ = [
    "RECENCY",
    "RETRIEVING",
    "SOURCES",
    "ContentSource",
    "CovisitationSource",
    "EaseSource",
    "FreshSource",
    "HistorySource",
    "LearnedSource",
    "PopularSource",
    "RequestedSource",
    "RulesSource",
    "SignalSource",
    "TransitionSource",
]

RECENCY = np.float32(0.9) ** np.arange(RECENT, dtype=np.float32)
"Weight of a user's newest events, newest first."


LEAST_ALIKE = 1e-4
"Minimum cosine of similar items; smaller values are rounding errors."


class PopularSource:
    """The most popular items by decayed event counts, overall or within the categories that a request asks for."""

    name = "popular"
    default_weight = 0.35
    retrieves = True

    def __init__(self, most: int = 300) -> None:
        self._most = most
        self._popularity, self._leaders = Popularity(), Leaders(popularity_of)

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Return the most popular items. Their number grows with the user's seen-set, so that unseen ones remain."""
        if not queries.retrieving.any():
            return Retrieved.none()
        most = np.maximum(self._most, queries.k) + queries.users.seen_items + queries.excluded.lengths
        anywhere = queries.retrieving & ~queries.restricted
        head = self._leaders.first(items, queries.eligible, int(most[anywhere].max(initial=0)))
        return most_popular(queries, items, lambda: self._popularity.of(queries, items), head, most, queries.retrieving)


class SignalSource:
    """The best items of the signal with the source's name, which a hydrator sets. Without the signal it returns nothing."""

    name: str
    default_weight = 1.0
    retrieves = True

    def __init__(self, most: int = 300) -> None:
        self._most = most

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:  # noqa: ARG002
        """Return the signal's best items per query."""
        signal = queries.signals.get(self.name)
        if signal is None:
            return Retrieved.none()
        return Retrieved.of(signal.best(np.where(queries.retrieving, self._most, 0), queries.ties))


class CovisitationSource(SignalSource):
    """Co-visitation neighbours of the user's newest items: items that follow them in histories or, at half weight, precede."""

    name = "covisitation"


class EaseSource(SignalSource):
    """Items with the largest learned item-to-item weights from the user's liked items."""

    name = "ease"


class TransitionSource(SignalSource):
    """Items that follow the newest events of the user's session in other sessions, by a release that learned transitions."""

    name = "transitions"

    def __init__(self, most: int = 100) -> None:
        super().__init__(most)


class LearnedSource:
    """Two-tower retrieval by the serving release: items whose vectors have the largest product with the user's vector."""

    name = "learned"
    default_weight = 0.5
    retrieves = True

    def __init__(self, most: int = 300) -> None:
        self._most = most

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:  # noqa: ARG002
        """Search the whole catalogue, by the release's index where it has one, else exactly."""
        model, vectors = queries.model, queries.user_vectors
        asked = np.flatnonzero(queries.retrieving).astype(np.int32)
        if model is None or vectors is None or not len(asked):
            return Retrieved.none()
        near = model.nearest(vectors[asked], queries.eligible, self._most, queries.ties.of(asked))
        found, best = Retrieved.of(near), near.largest(-np.inf)
        # exponentiated, because the light score divides by the best score and towers score on a logarithmic scale
        return Retrieved(asked[found.query_row], found.item_row, np.exp(found.score - best[found.query_row]))


class ContentSource:
    """Items with content similar to the user's newest items: hashed words, and with a release text and image vectors."""

    name = "content"
    default_weight = 0.25
    retrieves = True

    def __init__(self, most: int = 150) -> None:
        self._most = most

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Return the items nearest, by cosine, to the weighted mean of the newest items' vectors."""
        known = (queries.recent_rows >= 0) & queries.retrieving[:, None]
        if not known.any() or not queries.size:
            return Retrieved.none()
        model = queries.model if queries.model is not None and queries.model.bound else None
        vectors = items.text if model is None else model.content
        # rows added since the release's last sync are left to the next batch
        known &= queries.recent_rows < len(vectors)
        profile = signals.profiles(vectors, np.where(known, queries.recent_rows, -1), RECENCY)
        known_users = np.flatnonzero(known.any(axis=1)).astype(np.int32)
        profile, ties = profile[known_users], queries.ties.of(known_users)
        if model is None:
            n = min(len(vectors), queries.size)
            near = exact_top(profile, vectors[:n], queries.eligible[:n], self._most, ties, LEAST_ALIKE)
        else:
            near = model.alike(profile, queries.eligible, self._most, ties, LEAST_ALIKE)
        found = Retrieved.of(near)
        return Retrieved(known_users[found.query_row], found.item_row, found.score)


class FreshSource:
    """Items with few or no events, newest first. This is how a new item gets its first events."""

    name = "fresh"
    default_weight = 0.15
    retrieves = True

    def __init__(self, most: int = 50, few: int = 5) -> None:
        self._most = most
        self._few = few
        self._leaders = Leaders(self._published, timeless=True)

    def _published(self, items: ItemStore, rows: slice | NDArray[np.integer], eligible: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return when new items were published, 0 for others."""
        new = eligible[rows] & (items.all_events[rows] <= self._few)
        return np.where(new, items.published_ms[rows], 0)

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Return the newest items: the same for all users, except for ties in the time of publication."""
        ties = queries.ties
        # all items that tie with the last of the newest are among them: the query's keys break the tie
        newest, _ = self._leaders.first(items, queries.eligible, self._most)
        places = np.sort(newest)
        if not len(places):
            return Retrieved.none()
        published = items.published_ms[places]
        score = np.linspace(1.0, 0.1, min(len(places), self._most), dtype=np.float32)
        asked = np.flatnonzero(queries.retrieving).astype(np.int32)
        rows = order.newest(published, places, len(score), asked, ties.hashes, ties.salts)
        return Retrieved(np.repeat(asked, len(score)), rows, np.tile(score, len(asked)))


class HistorySource:
    """The user's newest items, for requests that allow repeats."""

    name = "history"
    default_weight = 0.5
    retrieves = False

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:  # noqa: ARG002
        """Return the items of the user's newest events, the newest with the largest score."""
        asked = queries.repeats & queries.retrieving
        if not asked.any():
            return Retrieved.none()
        query, place = np.nonzero((queries.recent_rows >= 0) & asked[:, None])
        return Retrieved(query.astype(np.int32), queries.recent_rows[query, place], RECENCY[place])


class RequestedSource:
    """The candidates that a re-ranking request names itself."""

    name = "requested"
    default_weight = 0.0
    retrieves = False

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:  # noqa: ARG002
        """Return the requested candidates that the catalogue holds."""
        if queries.retrieving.all():
            return Retrieved.none()
        nothing = np.zeros(0, np.int32)
        rows = Ragged.of([nothing if requested is None else requested.item_row for requested in queries.requested])
        return Retrieved.of(Scored(rows.starts, rows.values.astype(np.int32), np.zeros(len(rows.values), np.float32)))


SOURCES: tuple[type[Source], ...] = (
    CovisitationSource,
    EaseSource,
    LearnedSource,
    ContentSource,
    PopularSource,
    FreshSource,
    RequestedSource,
    RulesSource,
    TransitionSource,
    HistorySource,
)
"The sources of the pipeline, in the order of the columns of `Candidates.source_scores`. Weights and features derive from it."
RETRIEVING = tuple(source for source in SOURCES if source.retrieves)
"Sources that find candidates themselves. Each has a feature `by_NAME` that marks its candidates."
