"""The column types that pass through the pipeline: queries, retrieved items and candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.kernels import candidates as kernels
from models.pipeline.ragged import Ragged, Scored
from models.pipeline.rules.applied import AppliedRules
from models.pipeline.scratch import SCRATCH
from models.pipeline.ties import Ties
from models.state.rows import HISTORY, hash64
from models.state.users import Users
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

    @property
    def scale(self) -> NDArray[np.float32]:
        """Mean and deviation by which values are standardised, and the size to which they are clipped: float32 `(3,)`."""

    def standard(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise and clip values; NaN (no value) becomes 0. float32, same shape."""


class Model(Protocol):
    """The interface of a serving release to the pipeline, the features and a worker. `models.release.serving` implements it.

    Only `hydrate` and `sync` change it. All access is from the item store's thread, except where a method says otherwise.
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

    def hydrate(self, queries: Queries, items: ItemStore) -> Callable[[], None]:
        """Set `liked` and the signals `ease` and, if the release has it, `transitions`; the returned call sets `user_vectors`,
        in any thread."""

    def nearest(self, users: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Ties) -> Scored:
        """Find, per user vector, up to `most` eligible item rows with the largest inner products; rows ascend."""

    def alike(self, profiles: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Ties, above: float) -> Scored:
        """Find, per row of `profiles` `(q, c)`, up to `most` eligible item rows with the largest products with `content`.

        Only products above `above` count; rows ascend.
        """

    def features(
        self, queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str]
    ) -> NDArray[np.float32]:
        """Compute the candidates' features: float32 `(n, features)`, all finite. `sources` names the source-score columns."""

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a calibrated probability per head: float32 `(n, heads)`. Any thread may call it."""

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the weighted sum of the heads: float32 `(n,)`."""


@dataclass(slots=True)
class Queries:
    """A batch of q requests in columns, hydrated."""

    requests: Sequence[Request]
    users: Users
    "Records of the users."
    k: NDArray[np.int64]
    "Length of each slate at most `(q,)`."
    retrieving: NDArray[np.bool_]
    "Whether Riffle retrieves the candidates; False where the request names its own `(q,)`."
    repeats: NDArray[np.bool_]
    "Whether the slate may hold items that the user has interacted with `(q,)`."
    history_rows: NDArray[np.int32]
    "Item rows of all kept events, newest first, -1 where there is none or the item is unknown: `(q, HISTORY)`."
    recent_rows: NDArray[np.int32]
    "The first RECENT columns of `history_rows`: `(q, RECENT)`."
    excluded: Ragged
    "Item rows that each request excludes, -1 for unknown items."
    restricted: NDArray[np.bool_]
    "Whether the request asks for categories `(q,)`."
    categories: Ragged
    "Category numbers that each request asks for. Empty although `restricted` is set: none of them exists."
    requested: Sequence[Requested | None]
    "The candidates that each request names itself; None where Riffle retrieves."
    now_ms: int
    "Time when the batch began (epoch ms). Items published later are not shown."
    eligible: NDArray[np.bool_]
    "Whether the item is available and published: bool per item row. Its length is the number of items of this batch."
    ties: Ties
    "Tie-break order of each query."
    liked: NDArray[np.bool_]
    "Whether the serving release counts each event as liked, newest first: `(q, HISTORY)`; all False without a release."
    model: Model | None = None
    "The release that serves this batch, the same from its first stage to its last."
    signals: dict[str, Scored] = field(default_factory=dict)
    "Scores of the retrieval models for this batch, by source name. Item rows ascend within a query."
    user_vectors: NDArray[np.float32] | None = None
    "Output of the serving release's user tower: `(q, d)`; None without a release."
    rules: AppliedRules | None = None
    "The merchandising rules that apply to the batch; None if none does."

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def size(self) -> int:
        """Number of items of the catalogue when the batch began; later ones are left to the next batch."""
        return len(self.eligible)

    @classmethod
    def hydrate(
        cls,
        requests: Sequence[Request],
        users: Users,
        items: ItemStore,
        model: Model | None = None,
        now_ms: int = MAX_TIME_MS,
    ) -> Queries:
        """Look up the item rows, categories and candidates of a batch."""
        rows = np.full((len(requests), HISTORY), -1, np.int32)
        kept = np.arange(HISTORY) < users.size[:, None]
        rows[kept] = items.rows_of_hashes(users.item[kept])
        return cls(
            requests,
            users,
            np.fromiter((request.k for request in requests), np.int64, len(requests)),
            np.fromiter((request.candidates is None for request in requests), np.bool_, len(requests)),
            np.fromiter((request.repeats for request in requests), np.bool_, len(requests)),
            rows,
            np.ascontiguousarray(rows[:, :RECENT]),
            Ragged.of([items.rows_of(request.exclude) for request in requests]),
            np.fromiter((bool(request.categories) for request in requests), np.bool_, len(requests)),
            Ragged.of([items.category_rows(request.categories) for request in requests]),
            [None if request.candidates is None else Requested.of(request.candidates, items) for request in requests],
            now_ms,
            items.eligible(now_ms),
            Ties(items.hashes, np.fromiter((hash64(request.user_id) for request in requests), np.uint64, len(requests))),
            np.zeros((len(requests), HISTORY), np.bool_),
            model,
        )


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
    def of(cls, scored: Scored) -> Retrieved:
        """Return the listed items of all queries."""
        return cls(scored.query_row, scored.rows, scored.scores)

    def ordered(self) -> Retrieved:
        """Return the same candidates ordered by query; those of a query keep their order."""
        if kernels.ascending(self.query_row):
            return self
        order = np.argsort(self.query_row, kind="stable")
        return Retrieved(self.query_row[order], self.item_row[order], self.score[order])


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
        return np.searchsorted(self.query_row, np.arange(queries + 1, dtype=np.int32))

    @classmethod
    def merge(cls, retrieved: Sequence[Retrieved], queries: int, n_items: int) -> Candidates:
        """Merge the results of the sources; a source that returns a candidate twice counts with its better score."""
        joined = Retrieved.join([part.ordered() for part in retrieved])
        ends = np.cumsum([len(part.item_row) for part in retrieved], dtype=np.int64)
        query_row, item_row, scores = kernels.merged(
            joined.query_row, joined.item_row, joined.score, ends, queries, SCRATCH.places(n_items)
        )
        zero, none = np.zeros(len(item_row), np.float32), np.zeros((len(item_row), 0), np.float32)
        return cls(query_row, item_row, scores, zero, zero, none, none)

    def take(self, index: NDArray[np.bool_] | NDArray[np.intp] | NDArray[np.int32]) -> Candidates:
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
