"""A serving release with its state for an item store: vectors by item row, and predictions for a batch of queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.features.compute import FEATURES, SPEC, compute
from models.items.store import TEXT_DIMENSIONS, ItemStore
from models.items.vectors import MODALITIES, project, unit_rows
from models.pipeline.batch import Candidates, Queries
from models.pipeline.kernels import signals
from models.pipeline.ragged import Scored
from models.pipeline.scratch import SCRATCH
from models.pipeline.ties import Ties
from models.release.graphs import Graphs, OnnxGraphs
from models.release.nearest import STANDARD, IndexSettings, VectorIndex
from models.release.release import Release
from models.release.row_search import RowSearch
from models.release.sequences import EVENT_WIDTH, LENGTH, Vocabulary, inputs_of
from schemas.errors import ReleaseRejected

__all__ = ["ServingModel", "prepare"]

REFRESH_AT_ONCE = 20_000
"Maximum number of items per batch whose content is computed again."
SYNC_AT_ONCE = 2_000
"""Maximum number of items per batch whose vector the item tower computes, and of items with new encoder vectors, so that a
burst of new items does not delay answers."""
CONTENT_EVENTS = 8
"Number of items whose content is a query of the sample on which the recall of the content index is measured."
LIKED_DECAY = np.float32(0.97)
WARM_BATCHES = (1, 32)


def prepare(folder: Path, sha256: str | None = None) -> ServingModel:
    """Verify, load and test-run a release. It does not touch the serving release, so any thread may call it.

    Raises:
        ReleaseRejected: the release must not serve.
    """
    return ServingModel(Release.open(folder, sha256))


class ServingModel:
    """A loaded and tested release that serves. `prepare` may run in any thread; all else belongs to the item store's thread."""

    def __init__(
        self, release: Release, threads: int = 1, index: IndexSettings | VectorIndex = STANDARD, graphs: Graphs | None = None
    ) -> None:
        """Open the graphs and try them; above `index.exact_below` items, build an index over their vectors, if none is given.

        `graphs` replaces the release's own; `threads` then has no effect.

        Raises:
            ReleaseRejected: features of another specification, or a graph that does not run or has non-finite output.
        """
        manifest = release.manifest
        if manifest.feature_spec != SPEC:
            raise ReleaseRejected(
                "feature_spec", f"release {release.name} needs features {manifest.feature_spec}, this Riffle has {SPEC}"
            )
        self.release = release
        self.name = release.name
        self.heads = tuple(head.action for head in manifest.heads)
        self.windows_ms = {head.action: head.window_ms for head in manifest.heads}
        "Window per head: how long after a first interaction the head's action counts."
        self._weights = np.asarray([head.weight for head in manifest.heads], np.float32)
        self.vocabulary = Vocabulary(manifest.actions, manifest.value_mean, manifest.value_deviation, manifest.positive)
        self.dimensions = release.item_vectors.shape[1]
        weights = [manifest.content.get(name, 1.0) for name in ("words", *MODALITIES)]
        # square roots, because the product of two vectors then multiplies each part's product by its weight
        self._content_scale = np.sqrt(np.asarray(weights, np.float32) / np.float32(sum(weights)))
        self._graphs: Graphs = OnnxGraphs(release.name, release.graphs, threads) if graphs is None else graphs
        try:
            for n in WARM_BATCHES:
                self._try(n)
        except ReleaseRejected:
            raise
        except Exception as exc:
            raise ReleaseRejected("graph", f"a graph of release {release.name} does not run: {exc}") from exc
        self._settings = STANDARD if isinstance(index, VectorIndex) else index
        built: VectorIndex | None = None
        if isinstance(index, VectorIndex):
            built = index
        elif len(release.item_ids) >= index.exact_below:
            built = VectorIndex(release.item_vectors, self._sampled_queries(index), index)
        self._learned, self._alike = RowSearch(built), RowSearch()
        "Search of `vectors`, by an index over the release's items and their numbers in it, and of `content`."
        self._number_of = {item_id: n for n, item_id in enumerate(release.item_ids)}
        self.number_of_row = np.full(0, -1, np.int32)
        "Number in the release per item row, -1 for an item that training did not see."
        self.row_of_number = np.full(len(release.item_ids), -1, np.int32)
        self.vectors = np.zeros((0, self.dimensions), np.float32)
        "Retrieval vector per item row."
        self.met = np.zeros(0, np.bool_)
        "Whether training had interactions with the item, by item row."
        self.content = np.zeros((0, TEXT_DIMENSIONS + release.text.shape[1] + release.image.shape[1]), np.float32)
        "Weighted hashed words, text and image vector per item row: of length 1 if all are present; missing parts are 0."
        self._pending: RowSearch | None = None
        "The search of `content` whose index is being built."
        self.bound = 0
        "Number of item rows that `vectors` covers."
        self._catalogue_version = 0
        "Number of the newest change of the catalogue that is applied."
        self._vector_version = 0
        "Number of the newest change of raw item vectors that is applied."

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
        return self._learned.index

    def _try(self, n: int) -> None:
        shapes = self._graphs.user(
            np.zeros((n, LENGTH, self.dimensions), np.float32),
            np.zeros((n, LENGTH, EVENT_WIDTH), np.float32),
            np.zeros((n, LENGTH), np.float32),
        )
        content = np.zeros((n, TEXT_DIMENSIONS), np.float32)
        items = self._graphs.item(content, *(np.zeros((n, width), np.float32) for width in (*self._widths, len(MODALITIES))))
        heads = self.rank(np.zeros((n, len(FEATURES)), np.float32))
        for array, shape in ((shapes, (n, self.dimensions)), (items, (n, self.dimensions)), (heads, (n, len(self.heads)))):
            if array.shape != shape or not bool(np.isfinite(array).all()):
                raise ReleaseRejected("graph", f"a graph of release {self.name} gives {array.shape}, not finite {shape}")

    def _sampled(self, length: int, settings: IndexSettings) -> NDArray[np.int64]:
        """Draw histories as users have them, of three items and their item-to-item neighbours: numbers `(sampled, length)`."""
        rng, n, near = np.random.default_rng(settings.seed), settings.sampled, self.release.ease_index
        own = rng.integers(0, len(self.release.item_ids), (n, 3))[np.arange(n)[:, None], rng.integers(0, 3, (n, length))]
        if not near.shape[1]:
            return own
        others = near[own, rng.integers(0, near.shape[1], own.shape)]
        return np.where(others >= 0, others, own)

    def _sampled_queries(self, settings: IndexSettings) -> NDArray[np.float32]:
        """Compute user vectors of sampled histories, similar to the index's real queries: float32 `(sampled, d)`."""
        picked, n = self._sampled(LENGTH, settings), settings.sampled
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
        vectors = self.vectors[: self.bound]
        return self._learned.nearest(users, vectors, eligible, most, ties, self.row_of_number)

    def alike(
        self, profiles: NDArray[np.float32], eligible: NDArray[np.bool_], most: int, ties: Ties, above: float
    ) -> Scored:
        """Find, per profile `(q, c)`, the eligible item rows whose content has the largest products above `above`."""
        return self._alike.nearest(profiles, self.content[: self.bound], eligible, most, ties, above=above)

    @property
    def indexed(self) -> bool:
        """Whether the content of a large catalogue has its index, without which it is searched exactly."""
        return self.bound < self._settings.exact_below or self._alike.index is not None

    def index_content(self) -> Callable[[], None]:
        """Build an index over the content of all items, in any thread; the returned call, in the store's, uses it.

        Until then, and for items that change meanwhile, search is exact.
        """
        bound, search = self.bound, RowSearch()
        search.grow(len(self.content))
        search.cover(np.arange(bound), held=True)
        self._pending = search
        rows = self.row_of_number[self._sampled(CONTENT_EVENTS, self._settings)]
        profiles = signals.profiles(self.content, rows.astype(np.int32), np.ones(CONTENT_EVENTS, np.float32))
        search.index = VectorIndex(self.content[:bound], profiles, self._settings)

        def use() -> None:
            if self._pending is search:
                self._alike, self._pending = search, None

        return use

    @property
    def text(self) -> NDArray[np.float32]:
        """Text vector per item row, projected by this release, of length 1; 0 where there is none."""
        end = TEXT_DIMENSIONS + self._widths[0]
        found: NDArray[np.float32] = self.content[:, TEXT_DIMENSIONS:end] / self._content_scale[1]
        return found

    @property
    def image(self) -> NDArray[np.float32]:
        """Image vector per item row, projected by this release, of length 1; 0 where there is none."""
        found: NDArray[np.float32] = self.content[:, TEXT_DIMENSIONS + self._widths[0] :] / self._content_scale[2]
        return found

    @property
    def _widths(self) -> tuple[int, int]:
        return self.release.text.shape[1], self.release.image.shape[1]

    def live(self, rows: NDArray[np.intp], items: ItemStore) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
        """Project the raw text and image vectors of items as in training; returns both, and which are present.

        A modality counts as missing if training did not see it or used another encoder.
        """
        parts, present = [], np.zeros((len(rows), len(MODALITIES)), np.bool_)
        for n, modality in enumerate(MODALITIES):
            projected = np.zeros((len(rows), self._widths[n]), np.float32)
            projection = self.release.projections.get(modality)
            encoder = self.release.manifest.encoders.get(modality)
            if projection is not None and encoder is not None:
                raw, present[:, n] = items.vectors.read(encoder, rows, len(projection) - 1)
                if present[:, n].any():
                    projected[present[:, n]] = project(raw[present[:, n]], projection)
            parts.append(projected)
        return parts, present

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a calibrated probability per head: float32 `(n, heads)`."""
        return self._graphs.rank(features)

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the ranking score, the weighted sum of the heads: float32 `(n,)`."""
        weighted: NDArray[np.float32] = heads @ self._weights
        return weighted

    def synced(self, items: ItemStore) -> bool:
        """Return whether every item of the catalogue has its current vector."""
        current = items.changes == self._catalogue_version and items.vectors.changes == self._vector_version
        return current and self.bound == len(items)

    def sync(self, items: ItemStore) -> None:
        """Apply changes of the catalogue and of vectors, up to SYNC_AT_ONCE items that need the item tower, and vectors."""
        if self.synced(items):
            return
        self._grow(len(items.available))
        first, size = self.bound, len(items)
        found = np.fromiter((self._number_of.get(name, -1) for name in items.ids[first:]), np.int32, size - first)
        self.number_of_row[first:size] = found
        known = first + np.flatnonzero(found >= 0)
        self._take_released(known, found[found >= 0])
        self.bound = size
        changed = self._due(items)
        changed_vectors = items.vectors.changed(self._vector_version)[:SYNC_AT_ONCE]
        self._catalogue_version = int(items.changed[changed].max(initial=self._catalogue_version))
        if len(changed_vectors):
            self._vector_version = items.vectors.change_of(int(changed_vectors[-1]))
        self._refresh(np.unique(np.concatenate([changed, changed_vectors])), items)

    def _due(self, items: ItemStore) -> NDArray[np.intp]:
        """Return rows whose catalogue entry changed, oldest change first, until SYNC_AT_ONCE of them need the item tower."""
        changed = items.changed[: self.bound]
        rows = np.flatnonzero(changed > self._catalogue_version)
        if len(rows) > REFRESH_AT_ONCE:
            rows = rows[changed[rows] <= np.partition(changed[rows], REFRESH_AT_ONCE - 1)[REFRESH_AT_ONCE - 1]]
        rows = rows[np.argsort(changed[rows], kind="stable")]
        towered = np.flatnonzero(self.number_of_row[rows] < 0)
        return rows[: towered[SYNC_AT_ONCE]] if len(towered) > SYNC_AT_ONCE else rows

    def _grow(self, capacity: int) -> None:
        for search in (self._learned, self._alike, self._pending):
            if search is not None:
                search.grow(capacity)
        old = len(self.vectors)
        if old >= capacity:
            return
        for name in ("vectors", "number_of_row", "met", "content"):
            column = getattr(self, name)
            larger = np.full((capacity, *column.shape[1:]), -1 if name == "number_of_row" else 0, column.dtype)
            larger[:old] = column
            setattr(self, name, larger)

    def _take_released(self, rows: NDArray[np.intp], index: NDArray[np.int32]) -> None:
        release = self.release
        self.row_of_number[index] = rows
        self.vectors[rows] = release.item_vectors[index]
        self.met[rows] = release.met[index]
        self._learned.cover(rows, held=True)

    def _refresh(self, rows: NDArray[np.intp], items: ItemStore) -> None:
        """Recompute the content of these rows, and the item tower's vectors of items that training did not see.

        A trained item keeps the release's text and image vectors until the encoders send new ones; other items have only the
        encoders' vectors, or none. An item whose words changed keeps its vectors until the encoders have processed them.
        """
        parts, present = self.live(rows, items)
        index = self.number_of_row[rows]
        known, there = index >= 0, np.maximum(index, 0)
        released = self.release.present[there] & known[:, None]
        said, kept = [items.text[rows]], (self.release.text, self.release.image)
        for trained, part, mine, theirs in zip(kept, parts, present.T, released.T, strict=True):
            said.append(np.where(mine[:, None], unit_rows(part), trained[there] * theirs[:, None]))
        # each part has length 1 or 0: a missing part adds 0 to a product, as in a mean of cosines, and the rest is not raised
        scaled = [column * scale for column, scale in zip(said, self._content_scale, strict=True)]
        self.content[rows] = np.concatenate(scaled, axis=1)
        for search in (self._alike, self._pending):
            if search is not None:
                search.cover(rows, held=False)
        unseen = ~known
        if unseen.any():
            inputs = (items.text[rows[unseen]], *(part[unseen] for part in parts), present[unseen].astype(np.float32))
            self.vectors[rows[unseen]] = self._graphs.item(*inputs)

    def hydrate(self, queries: Queries, items: ItemStore) -> Callable[[], None]:
        """Set the liked histories and the item-to-item signal (Steck 2019, on the live history) of a batch.

        The returned call runs the user tower, which sets `user_vectors`.
        """
        self.sync(items)
        queries.liked = self.vocabulary.liked_of(queries.users)
        release, size = self.release, queries.size
        near, weights, number, row = release.ease_index, release.ease_weight, self.number_of_row, self.row_of_number
        work = SCRATCH.sums(size), *SCRATCH.marks(size, len(queries))
        found = signals.weighted(queries.history_rows, queries.liked, LIKED_DECAY, number, near, weights, row, size, *work)
        queries.signals["ease"] = Scored(*found)
        events, mask = inputs_of(queries.users, self.vocabulary, queries.liked)
        newest = queries.history_rows[:, LENGTH - 1 :: -1]
        vectors = np.where((newest >= 0)[:, :, None], self.vectors[newest], np.float32(0))

        def encode() -> None:
            queries.user_vectors = self._graphs.user(vectors, events, mask)

        return encode

    def features(
        self, queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str]
    ) -> NDArray[np.float32]:
        """Compute the candidates' features by `models.features.compute`."""
        return compute(queries, candidates, items, sources, self)
