"""The user table: one partition of the interactions topic, applied in chunks, flushed in one transaction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from rocksdict import Cache

from agents.metrics import Metrics
from models.items import ItemStore
from models.state import ItemStatRow, UserRecord, apply_interactions, apply_statistics
from schemas.codec import Registry, encode
from schemas.columns import InteractionColumns, decode_interactions
from schemas.records import After, AsOf
from streams.chunks import Chunk
from streams.partitions import Flush, Output, PartitionState
from streams.settings import Settings
from streams.store import PartitionStore

__all__ = ["UserPartition", "dead_letter"]

log = logging.getLogger(__name__)

USER, ITEM = b"u", b"i"
DEAD_VALUE_BYTES = 256 << 10
"A dead letter must always fit the broker's limit: one that does not would stop its partition for good."
DEAD_KEY_BYTES = 4 << 10


def dead_letter(settings: Settings, chunk: Chunk, index: int, code: str, reason: str) -> Output:
    """The dead-letter record of a chunk's record `index`; what is large is cut, its origin finds the original."""
    value = encode(
        "dead_letter",
        {
            "topic": chunk.topic,
            "partition": chunk.partition,
            "offset": chunk.offsets[index],
            "timestamp": chunk.timestamps[index],
            "code": code,
            "reason": reason[:1000],
            "key": (chunk.keys[index] or b"")[:DEAD_KEY_BYTES] if chunk.keys[index] is not None else None,
            "value": (chunk.values[index] or b"")[:DEAD_VALUE_BYTES] if chunk.values[index] is not None else None,
            "headers": {name[:256]: (value or b"")[:1024] for name, value in chunk.headers[index][:50]},
        },
    )
    return Output(settings.topic("dead-letters"), (chunk.keys[index] or b"")[:DEAD_KEY_BYTES] or None, value, partition=0)


class UserPartition:
    """Records of the people of one partition, and what they add to item statistics and co-visitation."""

    def __init__(
        self,
        settings: Settings,
        partition: int,
        items: ItemStore,
        cache: Cache,
        metrics: Metrics,
        registry: Registry | None = None,
    ) -> None:
        self._settings = settings
        self._items = items
        self._metrics = metrics
        self._registry = registry
        self.partition = partition
        self.state = PartitionState(
            settings,
            PartitionStore(settings.data_dir / "tables" / "users" / str(partition), cache),
            source=settings.topic("interactions"),
            changelog=settings.topic("users-changelog"),
            partition=partition,
            group=settings.app_id,
            take=self._take,
        )
        self._users: dict[str, UserRecord | None] = {}
        self._dirty: set[str] = set()
        self._statistics: dict[str, ItemStatRow] = {}
        self._dirty_items: set[str] = set()
        self._covisits: dict[str, dict[str, float]] = {}
        self._outputs: list[Output] = []
        self.flushed: set[str] = set()
        "People whose records became durable since somebody last cleared this."
        self._taken: set[str] = set()
        self._event_time = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    async def open(self) -> None:
        """Restore; afterwards `apply` and `lookup` may be called."""
        await self.state.open()
        self._statistics = {k[1:].decode(): ItemStatRow.decode(v) for k, v in self.state.store.scan(ITEM)}
        self._event_time = max((row.updated_ms for row in self._statistics.values()), default=0)
        self.state.ready.set()
        log.info(
            "users-%d ready at offset %d: %d records from the changelog in %.2f s",
            self.partition,
            self.state.applied,
            self.state.restored_records,
            self.state.restore_seconds,
        )

    def apply(self, chunk: Chunk) -> None:
        """Apply a chunk. Records at or below the applied offset were applied before and change nothing."""
        start = next((n for n, offset in enumerate(chunk.offsets) if offset > self.state.applied), len(chunk))
        if start:
            self._metrics.count("events", start, outcome="replayed")
        if start == len(chunk):
            return
        decoded = decode_interactions(
            chunk.values[start:], chunk.keys[start:], chunk.headers[start:], chunk.offsets[start:], self._registry
        )
        for bad in decoded.bad:
            self._metrics.count("events", outcome="dead_letter", code=bad.code)
            self._outputs.append(dead_letter(self._settings, chunk, start + bad.index, bad.code, bad.reason))
        columns, row = decoded.columns, 0
        for index, user in decoded.erasures:
            until = int(columns.offset.searchsorted(chunk.offsets[start + index]))
            self._apply(columns.slice(row, until))
            self._users[user] = None
            self._dirty.add(user)
            self._metrics.count("erasures")
            row = until
        self._apply(columns.slice(row, len(columns)))
        self._advance(chunk.last_offset)

    def _apply(self, events: InteractionColumns) -> None:
        if not len(events):
            return
        records = self._load(set(events.user_id))
        applied = apply_interactions(records, events, self._items.categories_of_hash, self._items.id_of_hash)
        self._dirty.update(records)
        self._dirty_items |= apply_statistics(self._statistics, events, applied.accepted)
        for item_id, others in applied.covisits.items():
            mine = self._covisits.setdefault(item_id, {})
            for other, weight in others.items():
                mine[other] = mine.get(other, 0.0) + weight
        accepted = int(applied.accepted.sum())
        self._event_time = max(self._event_time, int(events.event_time.max()))
        self._items.stream_time_ms = max(self._items.stream_time_ms, self._event_time)
        self._metrics.count("events", accepted, outcome="applied")
        self._metrics.count("events", len(events) - accepted, outcome="duplicate")

    def _load(self, users: set[str]) -> dict[str, UserRecord]:
        missing = [user for user in users if user not in self._users]
        for user, data in zip(missing, self.state.store.get_many([USER + u.encode() for u in missing]), strict=True):
            self._users[user] = None if data is None else UserRecord.decode(data)
        found: dict[str, UserRecord] = {}
        for user in users:
            record = self._users[user]
            if record is None:
                record = self._users[user] = UserRecord()
            found[user] = record
        return found

    def _advance(self, offset: int) -> None:
        self.state.applied = offset
        for wanted, waiter in self._waiters:
            if wanted <= offset and not waiter.done():
                waiter.set_result(None)
        self._waiters = [(wanted, waiter) for wanted, waiter in self._waiters if not waiter.done()]

    def lookup(self, users: Sequence[str]) -> list[UserRecord | None]:
        """Records of people, as of the newest applied event; None for a person never heard of."""
        missing = [user for user in users if user not in self._users]
        stored = dict(zip(missing, self.state.store.get_many([USER + u.encode() for u in missing]), strict=True))
        return [
            self._users[user] if user in self._users else UserRecord.decode(data) if (data := stored[user]) else None
            for user in users
        ]

    def reflects(self, after: After) -> bool:
        """Whether the event of a token is applied."""
        return self.state.applied >= after.offset

    async def wait_for(self, after: After, timeout_s: float) -> bool:
        """Wait until the event of a token is applied; returns whether it is."""
        if self.reflects(after):
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((after.offset, waiter))
        await asyncio.wait([waiter], timeout=max(timeout_s, 0.0))
        waiter.cancel()
        return self.reflects(after)

    @property
    def as_of(self) -> AsOf:
        """The newest event that `lookup` reflects."""
        return AsOf(self.partition, self.state.applied, self._event_time)

    def _take(self) -> Flush | None:
        if self.state.applied == self.state.durable:
            return None
        flush = Flush(outputs=self._outputs, applied=self.state.applied)
        for user in self._dirty:
            record = self._users[user]
            flush.rows[USER + user.encode()] = None if record is None else record.encode()
        statistics, covisits = self._settings.topic("item-stats"), self._settings.topic("covisits")
        for item_id in self._dirty_items:
            row = self._statistics[item_id]
            flush.rows[ITEM + item_id.encode()] = row.encode()
            datum = {
                "item_id": item_id,
                "partition": self.partition,
                "offset": flush.applied,
                "counts": row.counts,
                "value_sum": row.value_sum,
                "value_count": row.value_count,
                "popularity": row.popularity,
                "updated_at": row.updated_ms,
                "first_at": row.first_ms,
            }
            key = f"{item_id}|{self.partition}".encode()
            flush.outputs.append(Output(statistics, key, encode("item_statistics", datum), partition=0))
        for item_id, others in self._covisits.items():
            datum = {"item_id": item_id, "others": list(others), "weights": list(others.values())}
            flush.outputs.append(Output(covisits, item_id.encode(), encode("covisit", datum)))
        self._taken = self._dirty
        self._dirty, self._dirty_items, self._covisits, self._outputs = set(), set(), {}, []
        return flush

    async def flush(self) -> None:
        """Make what is applied durable, then forget clean records beyond the cache's size."""
        if await self.state.flush():
            self.flushed |= self._taken
            self._metrics.gauge("flush_seconds", self.state.flush_seconds, table="users", partition=str(self.partition))
        excess = len(self._users) - self._settings.cache_users
        if excess > 0:
            for user in [user for user in self._users if user not in self._dirty][:excess]:
                del self._users[user]

    async def close(self) -> None:
        """Let go of the partition without a flush."""
        await self.state.close()
