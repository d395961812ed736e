"""Sources: the stages that retrieve candidates."""

from __future__ import annotations

import numpy as np

from models.items.store import ItemStore
from models.pipeline.batch import RECENT, Queries, Retrieved
from models.pipeline.exact import exact_top
from models.pipeline.stages import Source
from models.pipeline.ties import Contenders, best

__all__ = [
    "RECENCY",
    "RETRIEVING",
    "SOURCES",
    "ContentSource",
    "CovisitationSource",
    "EaseSource",
    "FreshSource",
    "LearnedSource",
    "PopularSource",
    "RequestedSource",
    "SignalSource",
]

RECENCY = np.float32(0.9) ** np.arange(RECENT, dtype=np.float32)
"Weight of a user's newest events, newest first."


LEAST_ALIKE = 1e-4
"Minimum cosine of similar items; smaller values are rounding errors."
EVER = 0.001
"Weight of an event in popularity that never decays, so that a few new events after a quiet time do not displace older counts."


class PopularSource:
    """The most popular items by decayed event counts, overall or within the categories that a request asks for."""

    name = "popular"
    default_weight = 0.35
    retrieves = True

    def __init__(self, most: int = 300) -> None:
        self._most = most

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Return the most popular items. Their number grows with the user's seen-set, so that unseen ones remain."""
        asked = [n for n, request in enumerate(queries.requests) if request.candidates is None]
        if not asked:
            return Retrieved.none()
        ever = items.events[: len(items)].sum(axis=1) * EVER
        popularity = np.where(queries.eligible, items.popularity_now() + ever + 1e-6, 0.0).astype(np.float32)
        parts = []
        tops: dict[int, Contenders] = {}
        for n in asked:
            request, user = queries.requests[n], queries.users[n]
            seen = sum(user.seen.counts) if user is not None else 0
            most = max(self._most, request.k) + seen + len(request.exclude)
            if request.categories:
                wanted = np.isin(items.category_ids[: len(items)], queries.categories[n]).any(axis=1)
                top = best(np.where(wanted, popularity, np.float32(0)), most, queries.ties[n].keys)
            else:
                if most not in tops:
                    tops[most] = Contenders.of(popularity, most)
                top = tops[most].best(queries.ties[n].keys)
            parts.append(Retrieved.of_query(n, top.astype(np.int32), np.log1p(popularity[top])))
        return Retrieved.join(parts)


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
        return Retrieved.join(
            [
                Retrieved.of_query(n, *signal.top(n, self._most, queries.ties[n].keys))
                for n, request in enumerate(queries.requests)
                if request.candidates is None
            ]
        )


class CovisitationSource(SignalSource):
    """Items that other users interacted with after the user's newest items."""

    name = "covisitation"


class EaseSource(SignalSource):
    """Items with the largest learned item-to-item weights from the user's liked items."""

    name = "ease"


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
        asked = [n for n, request in enumerate(queries.requests) if request.candidates is None]
        if model is None or vectors is None or not asked:
            return Retrieved.none()
        parts = []
        ties = [queries.ties[n] for n in asked]
        for n, (rows, scores) in zip(asked, model.nearest(vectors[asked], queries.eligible, self._most, ties), strict=True):
            # exponentiated, because the light score divides by the best score and towers score on a logarithmic scale
            parts.append(Retrieved.of_query(n, rows, np.exp(scores - scores[:1])))
        return Retrieved.join(parts)


class ContentSource:
    """Items with content similar to the user's newest items: hashed words, and with a release text and image vectors."""

    name = "content"
    default_weight = 0.25
    retrieves = True

    def __init__(self, most: int = 150) -> None:
        self._most = most

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Return the items nearest, by cosine, to the weighted mean of the newest items' vectors."""
        asked = np.asarray([r.candidates is None for r in queries.requests], np.bool_)
        known = (queries.recent_rows >= 0) & asked[:, None]
        if not known.any() or not len(items):
            return Retrieved.none()
        weights = np.where(known, RECENCY, np.float32(0))
        vectors = items.text if queries.model is None or not queries.model.bound else queries.model.content
        # rows added since the release's last sync are left to the next batch
        known &= queries.recent_rows < len(vectors)
        profile = np.einsum("qr,qrd->qd", weights * known, vectors[np.where(known, queries.recent_rows, 0)])
        length = np.linalg.norm(profile, axis=1, keepdims=True)
        profile = np.divide(profile, length, out=np.zeros_like(profile), where=length > 0)
        told, n_items = np.flatnonzero(known.any(axis=1)), min(len(vectors), len(items))
        keys = [queries.ties[n].keys for n in told.tolist()]
        near = exact_top(profile[told], vectors[:n_items], queries.eligible[:n_items], self._most, keys, LEAST_ALIKE)
        return Retrieved.join([Retrieved.of_query(n, *found) for n, found in zip(told.tolist(), near, strict=True)])


class FreshSource:
    """Items with few or no events, newest first. This is how a new item gets its first events."""

    name = "fresh"
    default_weight = 0.15
    retrieves = True

    def __init__(self, most: int = 50, few: int = 5) -> None:
        self._most = most
        self._few = few

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Return the newest items: the same for all users, except for ties in the time of publication."""
        n = len(items)
        new = queries.eligible & (items.events[:n].sum(axis=1) <= self._few) & (items.published_ms[:n] > 0)
        places = np.flatnonzero(new)
        if not len(places):
            return Retrieved.none()
        if len(places) > self._most:
            # keep all items that tie with the last of the newest: the query's keys break the tie
            last = np.partition(items.published_ms[places], -self._most)[-self._most]
            places = places[items.published_ms[places] >= last]
        published = items.published_ms[places]
        score = np.linspace(1.0, 0.1, min(len(places), self._most), dtype=np.float32)
        parts = []
        for query, request in enumerate(queries.requests):
            if request.candidates is None:
                order = np.lexsort((queries.ties[query].keys(places), -published))[: self._most]
                parts.append(Retrieved.of_query(query, places[order].astype(np.int32), score))
        return Retrieved.join(parts)


class RequestedSource:
    """The candidates that a re-ranking request names itself."""

    name = "requested"
    default_weight = 0.0
    retrieves = False

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:  # noqa: ARG002
        """Return the requested candidates that the catalogue holds."""
        parts = []
        for n, requested in enumerate(queries.requested):
            if requested is not None:
                parts.append(Retrieved.of_query(n, requested.item_row, np.zeros(len(requested.item_row), np.float32)))
        return Retrieved.join(parts)


SOURCES: tuple[type[Source], ...] = (
    CovisitationSource,
    EaseSource,
    LearnedSource,
    ContentSource,
    PopularSource,
    FreshSource,
    RequestedSource,
)
"The sources of the pipeline, in the order of the columns of `Candidates.source_scores`. Weights and features derive from it."
RETRIEVING = tuple(source for source in SOURCES if source.retrieves)
"Sources that have a feature each, which marks their candidates."
