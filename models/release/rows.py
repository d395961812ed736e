"""What a serving release knows of the items of a store: vectors and content by item row, kept up to date, and their indexes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.items.store import TEXT_DIMENSIONS, ItemStore
from models.items.vectors import MODALITIES, project, unit_rows
from models.pipeline.kernels import signals
from models.release.bound import BY_ROW, Bound
from models.release.graphs import Graphs
from models.release.nearest import IndexSettings, VectorIndex
from models.release.release import Release
from models.release.row_search import RowSearch

__all__ = ["SYNC_AT_ONCE", "ReleaseRows", "content_width", "sampled_histories", "widths_of"]

REFRESH_AT_ONCE = 20_000
"Maximum number of items per batch whose content is computed again."
SYNC_AT_ONCE = 2_000
"""Maximum number of items per batch whose vector the item tower computes, and of items with new encoder vectors, so that a
burst of new items does not delay answers."""
CONTENT_EVENTS = 8
"Number of items whose content is a query of the sample on which the recall of the content index is measured."


def widths_of(release: Release) -> tuple[int, int]:
    """Return the widths of text and image vectors."""
    return release.text.shape[1], release.image.shape[1]


def content_width(release: Release) -> int:
    """Return the width of content vectors."""
    return TEXT_DIMENSIONS + sum(widths_of(release))


def sampled_histories(release: Release, length: int, settings: IndexSettings) -> NDArray[np.int64]:
    """Draw histories as users have them, of three items and their item-to-item neighbours: numbers `(sampled, length)`."""
    rng, n, near = np.random.default_rng(settings.seed), settings.sampled, release.ease_index
    own = rng.integers(0, len(release.item_ids), (n, 3))[np.arange(n)[:, None], rng.integers(0, 3, (n, length))]
    if not near.shape[1]:
        return own
    others = near[own, rng.integers(0, near.shape[1], own.shape)]
    return np.where(others >= 0, others, own)


class ReleaseRows:
    """Columns by item row of a store. All access is from the store's thread, except where a method says otherwise."""

    def __init__(
        self,
        release: Release,
        graphs: Graphs,
        index: VectorIndex | None,
        settings: IndexSettings,
        bound: Bound | None = None,
        changes: int = 0,
    ) -> None:
        """`index`: over the release's items, by their numbers; `bound` and `changes`: see `ServingModel`."""
        self.release, self._graphs, self._settings = release, graphs, settings
        weights = [release.manifest.content.get(name, 1.0) for name in ("words", *MODALITIES)]
        # square roots, because the product of two vectors then multiplies each part's product by its weight
        self._content_scale = np.sqrt(np.asarray(weights, np.float32) / np.float32(sum(weights)))
        self.learned, self.alike = RowSearch(index), RowSearch()
        "Search of `vectors`, by an index over the release's items and their numbers in it, and of `content`."
        self._number_of: dict[str, int] | None = None
        self.number_of_row = np.full(0, -1, np.int32)
        "Number in the release per item row, -1 for an item that training did not see."
        self.row_of_number = np.full(len(release.item_ids), -1, np.int32)
        self.vectors = np.zeros((0, release.item_vectors.shape[1]), np.float32)
        "Retrieval vector per item row."
        self.met = np.zeros(0, np.bool_)
        "Whether training had interactions with the item, by item row."
        self.content = np.zeros((0, content_width(release)), np.float32)
        "Weighted hashed words, text and image vector per item row: of length 1 if all are present; missing parts are 0."
        self._pending: RowSearch | None = None
        "The search of `content` whose index is being built."
        self.bound = 0
        "Number of item rows that `vectors` covers."
        self._catalogue_version = 0
        "Number of the newest change of the catalogue that is applied."
        self._vector_version = 0
        "Number of the newest change of raw item vectors that is applied."
        self._again = np.zeros(0, np.int64)
        "Rows to be computed again at the next sync."
        self._refreshed: list[NDArray[np.intp]] | None = None
        "Rows that were computed again since `begin_bound`; None if nobody asked."
        if bound is not None:
            self._hold(bound, changes)

    def _hold(self, bound: Bound, changes: int) -> None:
        for name, column in bound.columns.items():
            setattr(self, name, column)
        self.bound, self._catalogue_version, self._again = bound.size, changes, bound.stale
        self.learned.grow(len(self.vectors))
        self.learned.cover(np.flatnonzero(self.number_of_row[: bound.size] >= 0), held=True)
        if "alike" in bound.indexes:
            held = bound.indexes["alike"]
            self.alike = RowSearch(VectorIndex(self.content[: bound.size], self.content[:0], self._settings, held))
            self.alike.grow(len(self.content))
            self.alike.cover(np.arange(len(held[0].numbers)), held=True)

    def begin_bound(self, items: ItemStore) -> Bound | None:
        """Return what the release knows of the rows of the store's shelf, to be written in any thread; None if not all yet.

        Rows that change meanwhile may be written in part: they are computed again where it is read, because their entry is
        not the shelf's, or `share` keeps them.
        """
        size = items.held
        if not size or self.bound < size or not self.indexed:
            return None
        late = self.alike.late(size) if self.alike.index is not None else np.zeros(0, np.int32)
        stale = np.union1d(np.flatnonzero(items.changed[:size] > items.held_changes), late)
        found = {"learned": self.learned.index, "alike": self.alike.index}
        indexes = {name: (index.lists, index.probes, index.recall) for name, index in found.items() if index is not None}
        columns = {name: getattr(self, name) for name in (*BY_ROW, "row_of_number")}
        self._refreshed = []
        return Bound(columns, size, stale.astype(np.int64), indexes)

    def share(self, bound: Bound) -> None:
        """Use the columns that were written after `begin_bound` for the release itself, so that memory is shared."""
        refreshed, self._refreshed = self._refreshed, None
        if refreshed is None or any(len(bound.columns[name]) < self.bound for name in BY_ROW):
            return
        rows = np.concatenate([*refreshed, np.arange(bound.size, self.bound)]).astype(np.int64)
        for name in BY_ROW:
            bound.columns[name][rows] = getattr(self, name)[rows]
            setattr(self, name, bound.columns[name])
        bound.columns["row_of_number"][:] = self.row_of_number
        for search, name in ((self.learned, "learned"), (self.alike, "alike")):
            if search.index is not None and name in bound.indexes:
                search.index.lists = bound.indexes[name][0]
                search.index.vectors = self.release.item_vectors if name == "learned" else self.content[: bound.size]

    @property
    def indexed(self) -> bool:
        """Whether the content of a large catalogue has its index, without which it is searched exactly."""
        return self.bound < self._settings.exact_below or self.alike.index is not None

    def index_content(self, most: int | None = None) -> Callable[[], None]:
        """Build an index over the content of the first `most` items, in any thread; the returned call, in the store's, uses it.

        Until then, and for items that change meanwhile, search is exact.
        """
        bound, search = min(self.bound, most or self.bound), RowSearch()
        search.grow(len(self.content))
        search.cover(np.arange(bound), held=True)
        self._pending = search
        rows = self.row_of_number[sampled_histories(self.release, CONTENT_EVENTS, self._settings)]
        profiles = signals.profiles(self.content, rows.astype(np.int32), np.ones(CONTENT_EVENTS, np.float32))
        search.index = VectorIndex(self.content[:bound], profiles, self._settings)

        def use() -> None:
            if self._pending is search:
                self.alike, self._pending = search, None

        return use

    @property
    def text(self) -> NDArray[np.float32]:
        """Text vector per item row, projected by this release, of length 1; 0 where there is none."""
        end = TEXT_DIMENSIONS + widths_of(self.release)[0]
        found: NDArray[np.float32] = self.content[:, TEXT_DIMENSIONS:end] / self._content_scale[1]
        return found

    @property
    def image(self) -> NDArray[np.float32]:
        """Image vector per item row, projected by this release, of length 1; 0 where there is none."""
        found: NDArray[np.float32] = self.content[:, TEXT_DIMENSIONS + widths_of(self.release)[0] :] / self._content_scale[2]
        return found

    def live(self, rows: NDArray[np.intp], items: ItemStore) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
        """Project the raw text and image vectors of items as in training; returns both, and which are present.

        A modality counts as missing if training did not see it or used another encoder.
        """
        parts, present = [], np.zeros((len(rows), len(MODALITIES)), np.bool_)
        for n, modality in enumerate(MODALITIES):
            projected = np.zeros((len(rows), widths_of(self.release)[n]), np.float32)
            projection = self.release.projections.get(modality)
            encoder = self.release.manifest.encoders.get(modality)
            if projection is not None and encoder is not None:
                raw, present[:, n] = items.vectors.read(encoder, rows, len(projection) - 1)
                if present[:, n].any():
                    projected[present[:, n]] = project(raw[present[:, n]], projection)
            parts.append(projected)
        return parts, present

    def synced(self, items: ItemStore) -> bool:
        """Return whether every item of the catalogue has its current vector."""
        current = items.changes == self._catalogue_version and items.vectors.changes == self._vector_version
        return current and self.bound == len(items) and not len(self._again)

    def sync(self, items: ItemStore) -> None:
        """Apply changes of the catalogue and of vectors, up to SYNC_AT_ONCE items that need the item tower, and vectors."""
        if self.synced(items):
            return
        self._grow(len(items.available))
        first, size = self.bound, len(items)
        if size > first:
            if self._number_of is None:
                self._number_of = {item_id: n for n, item_id in enumerate(self.release.item_ids)}
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
        again, self._again = self._again[:REFRESH_AT_ONCE], self._again[REFRESH_AT_ONCE:]
        self._refresh(np.unique(np.concatenate([changed, changed_vectors, again])), items)

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
        for search in (self.learned, self.alike, self._pending):
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
        self.learned.cover(rows, held=True)

    def _refresh(self, rows: NDArray[np.intp], items: ItemStore) -> None:
        """Recompute the content of these rows, and the item tower's vectors of items that training did not see.

        A trained item keeps the release's text and image vectors until the encoders send new ones; other items have only the
        encoders' vectors, or none. An item whose words changed keeps its vectors until the encoders have processed them.
        """
        if self._refreshed is not None:
            self._refreshed.append(rows)
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
        for search in (self.alike, self._pending):
            if search is not None:
                search.cover(rows, held=False)
        unseen = ~known
        if unseen.any():
            inputs = (items.text[rows[unseen]], *(part[unseen] for part in parts), present[unseen].astype(np.float32))
            self.vectors[rows[unseen]] = self._graphs.item(*inputs)
            self.learned.cover(rows[unseen], held=False)
