"""The columns that go through the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.exact import Found
from models.pipeline.signals import Signal
from models.pipeline.ties import Ties, tie_keys
from models.state.rows import HISTORY, UserRecord, hash64
from schemas.parsing import MAX_TIME_MS
from schemas.records import Request

__all__ = ["RECENT", "Candidates", "EventEncoding", "Model", "Queries", "Retrieved"]

RECENT = 30
"Newest events of a person that retrieval looks at."


class EventEncoding(Protocol):
    """How a release reads events."""

    @property
    def actions(self) -> Sequence[str]:
        """Actions that the release knows by name, most frequent first."""

    def standard(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardised values, 0 where there is none (NaN), clipped: float32, same shape."""


class Model(Protocol):
    """What the pipeline, the features and a worker need of a release that serves. `models.release.serving` implements it.

    Only `hydrate` and `sync` change it. All of it belongs to the thread of the item store.
    """

    @property
    def name(self) -> str:
        """Name of the release."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of what the ranker predicts, in the order of the columns of `Candidates.heads`."""

    @property
    def windows_ms(self) -> Mapping[str, int]:
        """By head: how long after a first interaction its action counts."""

    @property
    def light(self) -> Mapping[str, float]:
        """Fitted weight of each source in the light score; a source that it does not name weighs nothing."""

    @property
    def trained_until_ms(self) -> int:
        """Newest event time that training saw."""

    @property
    def index_recall(self) -> float:
        """Measured recall of its index of items; 1 where all vectors are looked at."""

    @property
    def vocabulary(self) -> EventEncoding:
        """How it reads events."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Retrieval vector per item row: float32 `(rows, d)`."""

    @property
    def content(self) -> NDArray[np.float32]:
        """Weighed content vector per item row: float32 `(rows, c)`; items are compared by their product."""

    @property
    def met(self) -> NDArray[np.bool_]:
        """Per item row: whether training had interactions with it."""

    @property
    def bound(self) -> int:
        """Number of item rows that `vectors`, `content` and `met` cover."""

    def synced(self, items: ItemStore) -> bool:
        """Whether every item of the catalogue has its vector."""

    def sync(self, items: ItemStore) -> None:
        """Update the vectors after changes of the catalogue, a bounded number of items per call."""

    def hydrate(self, queries: Queries, items: ItemStore) -> None:
        """Set `user_vectors`, `liked` and the signal `ease` of a batch."""

    def nearest(self, users: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Sequence[Ties]) -> list[Found]:
        """Per user vector: at most `most` eligible item rows of largest product, and the products, best first."""

    def features(
        self, queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str]
    ) -> NDArray[np.float32]:
        """The candidates' features: float32 `(n, features)`, all finite. `sources` names the columns of source scores."""

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrated probability per head: float32 `(n, heads)`."""

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weighted sum of the heads: float32 `(n,)`."""


@dataclass(slots=True)
class Queries:
    """A batch of q requests, hydrated."""

    requests: Sequence[Request]
    users: Sequence[UserRecord | None]
    recent_rows: NDArray[np.int32]
    "Item rows of the newest events, newest first, -1 where there is none: `(q, RECENT)`."
    excluded: Sequence[NDArray[np.int32]]
    "Rows each request excludes."
    categories: Sequence[NDArray[np.int32]]
    "Category numbers each request asks for; empty with `requests[n].categories` set means: none exists."
    history_rows: NDArray[np.int32]
    "Item rows of all kept events, newest first, -1 where there is none or the item is unknown: `(q, HISTORY)`."
    requested: Sequence[Requested | None]
    "The candidates that each request brings; None where Riffle retrieves."
    now_ms: int
    "The wall clock when the batch began: what is published later is not shown."
    eligible: NDArray[np.bool_]
    "By item row: whether the item is available and published."
    ties: Sequence[Ties]
    "The order among equals, per query."
    model: Model | None = None
    "The release that serves this batch, the same from its first stage to its last."
    signals: dict[str, Signal] = field(default_factory=dict)
    "What the retrieval models say of this batch, by source."
    liked: list[NDArray[np.bool_]] = field(default_factory=list)
    "Per query, newest event first: whether the serving release counts it as liked. Empty without a release."
    user_vectors: NDArray[np.float32] | None = None
    "What the serving release's user tower says: `(q, d)`; None without a release."

    def __len__(self) -> int:
        return len(self.requests)

    @classmethod
    def hydrate(
        cls,
        requests: Sequence[Request],
        users: Sequence[UserRecord | None],
        items: ItemStore,
        model: Model | None = None,
        now_ms: int = MAX_TIME_MS,
    ) -> Queries:
        """Look up what the batch needs of its people; `users[n]` is None for a person never heard of."""
        rows = np.full((len(requests), HISTORY), -1, np.int32)
        for n, user in enumerate(users):
            if user is not None and len(user.history):
                newest = items.rows_of_hashes(user.history["item"][::-1])
                rows[n, : len(newest)] = newest
        return cls(
            requests,
            users,
            rows[:, :RECENT],
            [items.rows_of(request.exclude) for request in requests],
            [items.category_rows(request.categories) for request in requests],
            rows,
            [None if request.candidates is None else Requested.of(request.candidates, items) for request in requests],
            now_ms,
            items.eligible(now_ms),
            [Ties(items.hashes, hash64(request.user_id)) for request in requests],
            model,
        )

    def order_keys(self, query_row: NDArray[np.int32], item_row: NDArray[np.int32]) -> NDArray[np.uint64]:
        """Keys that put candidates of equal score of a query in order: uint64, same shape."""
        if not self.ties:
            return np.zeros(0, np.uint64)
        salts = np.asarray([each.salt for each in self.ties], np.uint64)
        return tie_keys(self.ties[0].hashes[item_row], salts[query_row])


@dataclass(frozen=True, slots=True)
class Requested:
    """The candidates that a re-ranking request brings."""

    item_row: NDArray[np.int32]
    "Those that the catalogue holds, each once."
    unknown: int
    "How many different ones it does not hold: it never did, or they were deleted."
    repeated: int
    "How many name a candidate again that was named before."

    @classmethod
    def of(cls, candidates: Sequence[str], items: ItemStore) -> Requested:
        """Look up candidates by their ids."""
        unique = list(dict.fromkeys(candidates))
        rows = items.rows_of(unique)
        held = rows[(rows >= 0) & items.listed[rows]]
        return cls(held, len(unique) - len(held), len(candidates) - len(unique))


@dataclass(slots=True)
class Retrieved:
    """What one source brought: three columns of one length."""

    query_row: NDArray[np.int32]
    item_row: NDArray[np.int32]
    score: NDArray[np.float32]

    @classmethod
    def none(cls) -> Retrieved:
        """Nothing."""
        return cls(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))

    @classmethod
    def join(cls, parts: Sequence[Retrieved]) -> Retrieved:
        """The parts, one after the other."""
        if not parts:
            return cls.none()
        return cls(
            np.concatenate([p.query_row for p in parts]),
            np.concatenate([p.item_row for p in parts]),
            np.concatenate([p.score for p in parts]),
        )

    @classmethod
    def of_query(cls, query: int, item_row: NDArray[np.int32], score: NDArray[np.float32]) -> Retrieved:
        """Items for one query."""
        return cls(np.full(len(item_row), query, np.int32), item_row.astype(np.int32), score.astype(np.float32))


@dataclass(slots=True)
class Candidates:
    """n candidates of all queries, each (query, item) once, ordered by query."""

    query_row: NDArray[np.int32]
    item_row: NDArray[np.int32]
    source_scores: NDArray[np.float32]
    "Score of each source, NaN where it did not bring the candidate: `(n, sources)`."
    score: NDArray[np.float32]
    light: NDArray[np.float32]
    "The light score: `(n,)`."
    features: NDArray[np.float32]
    "Features as the ranker saw them, `(n, len(FEATURES))`; `(n, 0)` before ranking and without a release."
    heads: NDArray[np.float32]
    "The ranker's probability per head, `(n, heads)`; `(n, 0)` likewise."

    def __len__(self) -> int:
        return len(self.item_row)

    def spans(self, queries: int) -> NDArray[np.intp]:
        """Where each query's candidates start, and the end: they are ordered by query. `(queries + 1,)`."""
        return np.searchsorted(self.query_row, np.arange(queries + 1))

    @classmethod
    def merge(cls, retrieved: Sequence[Retrieved], n_items: int) -> Candidates:
        """Join what the sources brought; a source that brings a candidate twice counts with its better score."""
        keys = [r.query_row.astype(np.int64) * max(n_items, 1) + r.item_row for r in retrieved]
        unique, place = np.unique(np.concatenate(keys) if keys else np.zeros(0, np.int64), return_inverse=True)
        scores = np.full((len(unique), len(retrieved)), np.nan, np.float32)
        start = 0
        for column, part in enumerate(retrieved):
            at = place[start : start + len(part.item_row)]
            best = np.full(len(unique), -np.inf, np.float32)
            np.maximum.at(best, at, part.score)
            scores[at, column] = best[at]
            start += len(part.item_row)
        query_row, item_row = np.divmod(unique, max(n_items, 1))
        n, none = len(unique), np.zeros((len(unique), 0), np.float32)
        zero = np.zeros(n, np.float32)
        return cls(query_row.astype(np.int32), item_row.astype(np.int32), scores, zero, zero, none, none)

    def take(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Candidates:
        """The candidates at `index`, in its order."""
        return Candidates(
            self.query_row[index],
            self.item_row[index],
            self.source_scores[index],
            self.score[index],
            self.light[index],
            self.features[index],
            self.heads[index],
        )
