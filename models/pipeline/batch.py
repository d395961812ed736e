"""The column types that pass through the pipeline: queries, retrieved items and candidates."""

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
"Number of a user's newest events that retrieval uses."


class EventEncoding(Protocol):
    """How a release encodes events as model inputs."""

    @property
    def actions(self) -> Sequence[str]:
        """Actions that have an encoding of their own, most frequent first."""

    def standard(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise and clip values; NaN (no value) becomes 0. float32, same shape."""


class Model(Protocol):
    """The interface of a serving release to the pipeline, the features and a worker. `models.release.serving` implements it.

    Only `hydrate` and `sync` change it. All access is from the item store's thread.
    """

    @property
    def name(self) -> str:
        """Name of the release."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the actions that the ranker predicts, in the order of the columns of `Candidates.heads`."""

    @property
    def windows_ms(self) -> Mapping[str, int]:
        """Window per head: how long after a first interaction the head's action counts."""

    @property
    def light(self) -> Mapping[str, float]:
        """Fitted weight of each source in the light score; a source without an entry has weight 0."""

    @property
    def trained_until_ms(self) -> int:
        """Newest event time that training saw."""

    @property
    def index_recall(self) -> float:
        """Measured recall of the release's item index; 1 where retrieval is exact."""

    @property
    def vocabulary(self) -> EventEncoding:
        """The release's encoding of events."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Retrieval vector per item row: float32 `(rows, d)`."""

    @property
    def content(self) -> NDArray[np.float32]:
        """Weighted content vector per item row: float32 `(rows, c)`; the inner product is the similarity of two items."""

    @property
    def met(self) -> NDArray[np.bool_]:
        """Whether training had interactions with the item: bool per item row."""

    @property
    def bound(self) -> int:
        """Number of item rows that `vectors`, `content` and `met` cover."""

    def synced(self, items: ItemStore) -> bool:
        """Return whether every item of the catalogue has its current vector."""

    def sync(self, items: ItemStore) -> None:
        """Update the vectors after changes of the catalogue, for a bounded number of items per call."""

    def hydrate(self, queries: Queries, items: ItemStore) -> None:
        """Set `user_vectors`, `liked` and the signal `ease` of a batch."""

    def nearest(self, users: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Sequence[Ties]) -> list[Found]:
        """Find, per user vector, up to `most` eligible item rows with the largest inner products; both, best first."""

    def features(
        self, queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str]
    ) -> NDArray[np.float32]:
        """Compute the candidates' features: float32 `(n, features)`, all finite. `sources` names the source-score columns."""

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a calibrated probability per head: float32 `(n, heads)`."""

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the weighted sum of the heads: float32 `(n,)`."""


@dataclass(slots=True)
class Queries:
    """A batch of q requests, hydrated."""

    requests: Sequence[Request]
    users: Sequence[UserRecord | None]
    recent_rows: NDArray[np.int32]
    "Item rows of the newest events, newest first, -1 where there is none: `(q, RECENT)`."
    excluded: Sequence[NDArray[np.int32]]
    "Item rows that each request excludes."
    categories: Sequence[NDArray[np.int32]]
    "Category numbers that each request asks for. Empty although `requests[n].categories` is set: none of them exists."
    history_rows: NDArray[np.int32]
    "Item rows of all kept events, newest first, -1 where there is none or the item is unknown: `(q, HISTORY)`."
    requested: Sequence[Requested | None]
    "The candidates that each request names itself; None where Riffle retrieves."
    now_ms: int
    "Time when the batch began (epoch ms). Items published later are not shown."
    eligible: NDArray[np.bool_]
    "Whether the item is available and published: bool per item row."
    ties: Sequence[Ties]
    "Tie-break order per query."
    model: Model | None = None
    "The release that serves this batch, the same from its first stage to its last."
    signals: dict[str, Signal] = field(default_factory=dict)
    "Scores of the retrieval models for this batch, by source name."
    liked: list[NDArray[np.bool_]] = field(default_factory=list)
    "Whether the serving release counts each event as liked: one array per query, newest event first. Empty without a release."
    user_vectors: NDArray[np.float32] | None = None
    "Output of the serving release's user tower: `(q, d)`; None without a release."

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
        """Look up the item rows, categories and candidates of a batch; `users[n]` is None for an unknown user."""
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
        """Return tie-break keys, which order a query's candidates of equal score: uint64, same shape."""
        if not self.ties:
            return np.zeros(0, np.uint64)
        salts = np.asarray([each.salt for each in self.ties], np.uint64)
        return tie_keys(self.ties[0].hashes[item_row], salts[query_row])


@dataclass(frozen=True, slots=True)
class Requested:
    """The candidates that a re-ranking request names."""

    item_row: NDArray[np.int32]
    "Rows of the candidates that the catalogue holds, each once."
    unknown: int
    "Number of distinct candidates that the catalogue does not hold, because they never existed or were deleted."
    repeated: int
    "Number of duplicates among the given ids."

    @classmethod
    def of(cls, candidates: Sequence[str], items: ItemStore) -> Requested:
        """Look up candidates by their ids."""
        unique = list(dict.fromkeys(candidates))
        rows = items.rows_of(unique)
        held = rows[(rows >= 0) & items.listed[rows]]
        return cls(held, len(unique) - len(held), len(candidates) - len(unique))


@dataclass(slots=True)
class Retrieved:
    """The candidates that one source retrieved: three columns of equal length."""

    query_row: NDArray[np.int32]
    item_row: NDArray[np.int32]
    score: NDArray[np.float32]

    @classmethod
    def none(cls) -> Retrieved:
        """Return an empty result."""
        return cls(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))

    @classmethod
    def join(cls, parts: Sequence[Retrieved]) -> Retrieved:
        """Concatenate the parts."""
        if not parts:
            return cls.none()
        return cls(
            np.concatenate([p.query_row for p in parts]),
            np.concatenate([p.item_row for p in parts]),
            np.concatenate([p.score for p in parts]),
        )

    @classmethod
    def of_query(cls, query: int, item_row: NDArray[np.int32], score: NDArray[np.float32]) -> Retrieved:
        """Build the result of one query from its items and their scores."""
        return cls(np.full(len(item_row), query, np.int32), item_row.astype(np.int32), score.astype(np.float32))


@dataclass(slots=True)
class Candidates:
    """The n candidates of all queries, ordered by query; each (query, item) pair occurs once."""

    query_row: NDArray[np.int32]
    item_row: NDArray[np.int32]
    source_scores: NDArray[np.float32]
    "Score of each source, NaN where it did not retrieve the candidate: `(n, sources)`."
    score: NDArray[np.float32]
    light: NDArray[np.float32]
    "The light score: `(n,)`."
    features: NDArray[np.float32]
    "Features that the ranker reads, `(n, len(FEATURES))`; `(n, 0)` before ranking and without a release."
    heads: NDArray[np.float32]
    "The ranker's probability per head, `(n, heads)`; `(n, 0)` before ranking and without a release."

    def __len__(self) -> int:
        return len(self.item_row)

    def spans(self, queries: int) -> NDArray[np.intp]:
        """Return the start of each query's candidates, and the end of the last: `(queries + 1,)`."""
        return np.searchsorted(self.query_row, np.arange(queries + 1))

    @classmethod
    def merge(cls, retrieved: Sequence[Retrieved], n_items: int) -> Candidates:
        """Merge the results of the sources; a source that returns a candidate twice counts with its better score."""
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
        """Select the candidates at `index`, in that order."""
        return Candidates(
            self.query_row[index],
            self.item_row[index],
            self.source_scores[index],
            self.score[index],
            self.light[index],
            self.features[index],
            self.heads[index],
        )
