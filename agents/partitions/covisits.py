"""The neighbour table: sums co-visitation increments by item, exactly once, and publishes whole rows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from itertools import islice

import numpy as np
from rocksdict import Cache

from agents.metrics import Metrics
from agents.partitions.users import dead_letter
from models.items.store import NEIGHBOURS, ItemStore
from models.state.kernels.user_rows import UNIT
from models.state.rows import NeighbourRow, hash64
from models.tables.neighbours import Increments, NeighbourTable
from schemas.codec import decode, encode, header
from schemas.errors import BadEvent, StoreCorrupt
from schemas.settings import Settings
from streams.aside import aside
from streams.kafka.chunks import Chunk
from streams.state.partitions import Flush, Output, PartitionState
from streams.state.rocks import PartitionStore

__all__ = ["CovisitPartition"]

log = logging.getLogger(__name__)

ROW = b"\x01"
"First byte of a row's key, before the hash of the item's id."
UNPUBLISHED = b"\x00unpublished"
PUBLISHED_AT_ONCE = 50
"Maximum number of items whose neighbours one flush publishes."
WAITING_AT_MOST = 100_000
"Maximum number of unpublished items that a restart preserves; others are published when they next change."
LAZY_ROWS = 2_000
SMALLEST_BYTES = 16
"Minimum size of an increment in bytes."
LAZY_S = 5.0


def increments_of(value: bytes, headers: Sequence[tuple[str, bytes]]) -> Increments:
    """Decode a covisits record: a block, or the increments of one item in the earlier schema.

    Raises:
        BadEvent: as `schemas.codec.decode`, or `truncated` if the columns' lengths do not match.
    """
    if value[:10] == header("covisit"):
        datum = decode("covisit", value, headers)[0]
        others = np.asarray([hash64(other) for other in datum["others"]], np.uint64)
        units = np.asarray([round(weight / UNIT) for weight in datum["weights"]], np.uint64)
        return Increments(np.asarray([hash64(datum["item_id"])], np.uint64), np.asarray([len(others)]), others, units)
    datum = decode("covisit_block", value, headers)[0]
    names = ("items", "ends", "others", "units")
    if any(not isinstance(datum.get(name), bytes) or len(datum[name]) % 8 for name in names):
        raise BadEvent("truncated", "the length of a column is not a whole number of values")
    items, ends, others, units = (np.frombuffer(datum[name], "<u8") for name in names)
    fits = len(items) == len(ends) and len(others) == len(units) and (int(ends[-1]) if len(ends) else 0) == len(others)
    if not fits or (np.diff(ends.astype(np.int64), prepend=0) < 0).any():
        raise BadEvent("truncated", "columns of different lengths")
    return Increments(items, ends.astype(np.int64), others.astype(np.uint64), units.astype(np.uint64))


class CovisitPartition:
    """Neighbours of the items of one partition of the covisits topic.

    The transaction that commits events also sends their increments. These are applied under the same offset rule, so that each
    event counts exactly once from end to end.
    """

    def __init__(self, settings: Settings, partition: int, items: ItemStore, cache: Cache, metrics: Metrics) -> None:
        self._settings = settings
        self._items = items
        self._metrics = metrics
        self._replaced: list[bytes] = []
        self.partition = partition
        self.state = PartitionState(
            settings,
            PartitionStore(settings.table_dir("covisits", partition), cache),
            source=settings.topic("covisits"),
            changelog=settings.topic("covisits-changelog"),
            partition=partition,
            group=settings.app_id,
            take=self._take,
            timed=lambda part: metrics.work_seconds.timed(part=part),
            reports_missing=False,  # expected, because increments are retained for a day only
        )
        self._table = NeighbourTable(lambda keys: self.state.store.get_many([ROW + key for key in keys]))
        self._outputs: list[Output] = []
        self._unpublished: dict[bytes, None] = {}
        "Keys of rows that changed after they were published, those that wait longest first."
        self._flushed_s = 0.0

    async def open(self, committed: int = -1) -> None:
        """Restore the partition; afterwards, and once `state.ready` is set, `apply` may be called.

        `committed`: as for `PartitionState.open`.
        """
        await self.state.open(committed)
        try:
            await self._load()
        except StoreCorrupt as exc:
            await self.state.rebuild(exc)
            await self._load()

    async def _load(self) -> None:
        waiting = self.state.store.get_many([UNPUBLISHED])[0] or b"\x01"
        if waiting[0] != 1:
            raise StoreCorrupt("record_format", "unpublished neighbours of an unknown format")
        self._unpublished = dict.fromkeys(waiting[n : n + 8] for n in range(1, len(waiting), 8))
        # rows of format 1 have the item's id as key, which begins above ROW; they are rewritten under its hash
        old = await asyncio.to_thread(lambda: list(self.state.store.scan(b"", start=b"\x02")))
        self._replaced = [key for key, _ in old]
        for key, row in old:
            self._table.put(hash64(key.decode()).to_bytes(8, "little"), NeighbourRow.decode(row))

    async def apply(self, chunk: Chunk) -> None:
        """Add a chunk's increments. Call it within `state.changing()`."""
        self.state.note_gap(chunk.offsets[0])
        await aside(sum(len(value or b"") for value in chunk.values) // SMALLEST_BYTES, self._add, chunk)
        self.state.applied = max(self.state.applied, chunk.last_offset)

    def _add(self, chunk: Chunk) -> None:
        for n, offset in enumerate(chunk.offsets):
            if offset <= self.state.applied:
                continue
            try:
                increments = increments_of(chunk.values[n] or b"", chunk.headers[n])
            except Exception as exc:  # an unexpected error must not affect other records
                code = exc.code if isinstance(exc, BadEvent) else "internal"
                self._metrics.covisits.add(outcome="dead_letter")
                self._outputs.append(dead_letter(self._settings, chunk, n, code, str(exc)))
                continue
            with self._metrics.work_seconds.timed(part="neighbours"):
                self._table.add(increments)

    async def _take(self) -> Flush | None:
        if self.state.applied == self.state.durable and not self._unpublished and not self._replaced:
            return None
        flush = Flush(outputs=self._outputs, applied=self.state.applied)
        self._outputs = []
        await aside(self._table.changed + len(self._unpublished), self._list, flush)
        return flush

    def _list(self, flush: Flush) -> None:
        with self._metrics.work_seconds.timed(part="take (in a thread)"):
            self._fill(flush)

    def _fill(self, flush: Flush) -> None:
        rows = self._table.take()
        flush.rows = {ROW + key: row for key, row in rows.items()}
        flush.rows.update(dict.fromkeys(self._replaced))
        self._replaced = []
        self._unpublished.update(dict.fromkeys(rows))
        published = list(islice(self._unpublished, PUBLISHED_AT_ONCE))
        for key in published:
            del self._unpublished[key]
            item_id = self._items.id_of(int.from_bytes(key, "little"))
            if item_id is not None:
                flush.outputs.append(self._neighbours_record(item_id, key))
        waiting = list(self._unpublished)
        if len(waiting) > WAITING_AT_MOST:
            self._metrics.neighbours_not_kept_waiting.add(len(waiting) - WAITING_AT_MOST)
        flush.rows[UNPUBLISHED] = b"\x01" + b"".join(waiting[-WAITING_AT_MOST:])

    def _neighbours_record(self, item_id: str, key: bytes) -> Output:
        codes, weights = self._table.heaviest(key, NEIGHBOURS)
        rows = self._items.index.find_many(codes)
        known = rows >= 0
        datum = {
            "item_id": item_id,
            "others": [self._items.ids[row] for row in rows[known].tolist()],
            "weights": weights[known].tolist(),
            "total": self._table.total(int.from_bytes(key, "little")),
        }
        return Output(self._settings.topic("neighbours"), item_id.encode(), encode("neighbours", datum), partition=0)

    async def flush(self, *, now: bool = True) -> None:
        """Make applied increments durable, then evict clean rows beyond the cache's size.

        Without `now`, many changed rows wait for LAZY_S, because an item's row changes with each of its events. After a crash,
        increments that are not durable are read again from the covisits topic.
        """
        if not now and self._table.changed_at_most > LAZY_ROWS and time.monotonic() - self._flushed_s < LAZY_S:
            return
        if await self.state.flush():
            self._metrics.flush_duration_seconds.observe(self.state.flush_seconds, table="covisits")
        self._flushed_s = time.monotonic()
        async with self.state.rows_lock:
            self._table.trim(self._settings.cache_users, self._settings.cache_bytes)

    @property
    def full(self) -> bool:
        """Whether a flush must precede further chunks, so that memory stays bounded."""
        return self._table.changed > self._settings.cache_users or self._table.held > 2 * self._settings.cache_bytes

    async def close(self) -> None:
        """Close the partition without a flush."""
        async with self.state.rows_lock:
            await self.state.close()
