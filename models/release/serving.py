"""A serving release with its state for an item store: vectors by item row, and predictions for a batch of queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.features.compute import FEATURES, columns_of, compute
from models.items.store import TEXT_DIMENSIONS, ItemStore
from models.items.vectors import MODALITIES
from models.pipeline.batch import Candidates, Queries
from models.pipeline.kernels import signals
from models.pipeline.ragged import Scored
from models.pipeline.scratch import SCRATCH
from models.pipeline.ties import Ties
from models.release.bound import Bound, open_bound
from models.release.graphs import Graphs, OnnxGraphs
from models.release.nearest import STANDARD, IndexSettings, VectorIndex
from models.release.release import Release
from models.release.rows import ReleaseRows, content_width, sampled_histories, widths_of
from models.release.sequences import EVENT_WIDTH, LENGTH, STEP, Vocabulary, inputs_of
from models.release.transitions import SESSION_GAP_MS
from schemas.errors import ReleaseRejected

__all__ = ["ServingModel", "prepare"]

LIKED_DECAY = np.float32(0.97)
WARM_BATCHES = (1, 32)


def prepare(folder: Path, sha256: str | None = None, held: tuple[Path, int] | None = None) -> ServingModel:
    """Verify, load and test-run a release. It does not touch the serving release, so any thread may call it.

    `held`: folder of what the release knows of the rows of the store's shelf, and the value of the store's `changes` up to
    which its rows are those of the shelf.

    Raises:
        ReleaseRejected: the release must not serve.
        StoreCorrupt: `held` cannot be used.
    """
    release = Release.open(folder, sha256)
    bound = None if held is None else open_bound(held[0], release, content_width(release))
    return ServingModel(release, bound=bound, changes=0 if held is None else held[1])


class ServingModel:
    """A loaded and tested release that serves. `prepare` may run in any thread; all else belongs to the item store's thread."""

    def __init__(
        self,
        release: Release,
        threads: int = 1,
        index: IndexSettings | VectorIndex = STANDARD,
        graphs: Graphs | None = None,
        bound: Bound | None = None,
        changes: int = 0,
    ) -> None:
        """Open the graphs and try them; above `index.exact_below` items, build an index over their vectors, if none is given.

        `graphs` replaces the release's own; `threads` then has no effect. `bound`: what the release knows of the rows of the
        store's shelf, as they were when the store had `changes`.

        Raises:
            ReleaseRejected: features of another specification, or a graph that does not run or has non-finite output.
        """
        manifest = release.manifest
        self._columns = columns_of(release.name, manifest.feature_spec)
        self.release = release
        self.name = release.name
        self.heads = tuple(head.action for head in manifest.heads)
        self.windows_ms = {head.action: head.window_ms for head in manifest.heads}
        "Window per head: how long after a first interaction the head's action counts."
        self._weights = np.asarray([head.weight for head in manifest.heads], np.float32)
        self.vocabulary = Vocabulary(manifest.actions, manifest.value_mean, manifest.value_deviation, manifest.positive)
        self.dimensions = release.item_vectors.shape[1]
        self._graphs: Graphs = OnnxGraphs(release.name, release.graphs, threads) if graphs is None else graphs
        try:
            for n in WARM_BATCHES:
                self._try(n)
            self._try(1, STEP)
        except ReleaseRejected:
            raise
        except Exception as exc:
            raise ReleaseRejected("graph", f"a graph of release {release.name} does not run: {exc}") from exc
        self._settings = STANDARD if isinstance(index, VectorIndex) else index
        built: VectorIndex | None = None
        if isinstance(index, VectorIndex):
            built = index
        elif bound is not None and "learned" in bound.indexes:
            built = VectorIndex(release.item_vectors, release.item_vectors[:0], index, bound.indexes["learned"])
        elif len(release.item_ids) >= index.exact_below:
            built = VectorIndex(release.item_vectors, self._sampled_queries(index), index)
        self.rows = ReleaseRows(release, self._graphs, built, self._settings, bound, changes)

    @property
    def light(self) -> Mapping[str, float]:
        """Fitted weight of each source in the light score; a source without an entry has weight 0."""
        return self.release.manifest.light

    @property
    def trained_until_ms(self) -> int:
        """Newest event time that training saw."""
        return self.release.manifest.trained_until_ms

    @property
    def index_recall(self) -> float:
        """Measured recall of the index; 1 where retrieval is exact."""
        return 1.0 if self.index is None else self.index.recall

    @property
    def index(self) -> VectorIndex | None:
        """Index over the release's items, by their numbers in the release; None where retrieval is exact."""
        return self.rows.learned.index

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Retrieval vector per item row: float32 `(rows, d)`."""
        return self.rows.vectors

    @property
    def content(self) -> NDArray[np.float32]:
        """Weighted content vector per item row: see `ReleaseRows.content`."""
        return self.rows.content

    @property
    def met(self) -> NDArray[np.bool_]:
        """Whether training had interactions with the item, by item row."""
        return self.rows.met

    @property
    def bound(self) -> int:
        """Number of item rows that `vectors`, `content` and `met` cover."""
        return self.rows.bound

    def synced(self, items: ItemStore) -> bool:
        """Return whether every item of the catalogue has its current vector."""
        return self.rows.synced(items)

    def sync(self, items: ItemStore) -> None:
        """Apply changes of the catalogue and of vectors, a bounded number of them: see `ReleaseRows.sync`."""
        self.rows.sync(items)

    def _try(self, n: int, length: int = LENGTH) -> None:
        shapes = self._graphs.user(
            np.zeros((n, length, self.dimensions), np.float32),
            np.zeros((n, length, EVENT_WIDTH), np.float32),
            np.zeros((n, length), np.float32),
        )
        content = np.zeros((n, TEXT_DIMENSIONS), np.float32)
        items = self._graphs.item(
            content, *(np.zeros((n, width), np.float32) for width in (*widths_of(self.release), len(MODALITIES)))
        )
        heads = self.rank(np.zeros((n, len(FEATURES)), np.float32))
        for array, shape in ((shapes, (n, self.dimensions)), (items, (n, self.dimensions)), (heads, (n, len(self.heads)))):
            if array.shape != shape or not bool(np.isfinite(array).all()):
                raise ReleaseRejected("graph", f"a graph of release {self.name} gives {array.shape}, not finite {shape}")

    def _sampled_queries(self, settings: IndexSettings) -> NDArray[np.float32]:
        """Compute user vectors of sampled histories, similar to the index's real queries: float32 `(sampled, d)`."""
        picked, n = sampled_histories(self.release, LENGTH, settings), settings.sampled
        lengths = np.random.default_rng(settings.seed + 1).integers(1, LENGTH + 1, (n, 1))
        mask = (np.arange(LENGTH) >= LENGTH - lengths).astype(np.float32)
        events = np.zeros((n, LENGTH, EVENT_WIDTH), np.float32)
        events[:, :, 3:5] = 1.0  # liked, by the most frequent action
        return self._graphs.user(self.release.item_vectors[picked] * mask[:, :, None], events * mask[:, :, None], mask)

    def nearest(self, users: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Ties) -> Scored:
        """Find, per user vector, the eligible item rows with the largest inner products; rows ascend.

        `eligible`: bool by item row; `ties`: by item row and by user. Items that training did not see are not in the index and
        are searched exactly.
        """
        rows = self.rows
        return rows.learned.nearest(users, rows.vectors[: rows.bound], eligible, most, ties, rows.row_of_number)

    def alike(self, profiles: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Ties, above: float) -> Scored:
        """Find, per profile `(q, c)`, the eligible item rows whose content has the largest products above `above`."""
        rows = self.rows
        return rows.alike.nearest(profiles, rows.content[: rows.bound], eligible, most, ties, above=above)

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a calibrated probability per head: float32 `(n, heads)`."""
        return self._graphs.rank(features if self._columns is None else features[:, self._columns])

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the ranking score, the weighted sum of the heads: float32 `(n,)`."""
        weighted: NDArray[np.float32] = heads @ self._weights
        return weighted

    def hydrate(self, queries: Queries, items: ItemStore) -> Callable[[], None]:
        """Set the liked histories, the item-to-item signal (Steck 2019, on the live history) and transitions of a batch.

        The returned call runs the user tower, which sets `user_vectors`.
        """
        self.sync(items)
        queries.liked = self.vocabulary.liked_of(queries.users)
        release, size = self.release, queries.size
        near, weights, number, row = release.ease_index, release.ease_weight, self.rows.number_of_row, self.rows.row_of_number
        work = SCRATCH.sums(size), *SCRATCH.marks(size, len(queries))
        found = signals.weighted(queries.history_rows, queries.liked, LIKED_DECAY, number, near, weights, row, size, *work)
        queries.signals["ease"] = Scored(*found)
        if release.transitions is not None:
            follow = release.transitions
            work = SCRATCH.sums(size), *SCRATCH.marks(size, len(queries))
            sequence, lags = (queries.recent_rows, queries.users.time), follow.lags
            found = signals.transitions(*sequence, lags, SESSION_GAP_MS, number, follow.index, follow.weight, row, size, *work)
            queries.signals["transitions"] = Scored(*found)
        events, mask = inputs_of(queries.users, self.vocabulary, queries.liked)
        newest = queries.history_rows[:, mask.shape[1] - 1 :: -1]
        vectors = np.where((newest >= 0)[:, :, None], self.vectors[newest], np.float32(0))

        def encode() -> None:
            queries.user_vectors = self._graphs.user(vectors, events, mask)

        return encode

    def features(
        self, queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str]
    ) -> NDArray[np.float32]:
        """Compute the candidates' features by `models.features.compute`."""
        return compute(queries, candidates, items, sources, self)
