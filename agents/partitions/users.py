"""The user table: applies one partition of the interactions topic in chunks, and flushes it in one transaction."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rocksdict import Cache

from agents.metrics import Metrics
from models.items.store import ItemStore
from models.state.rows import ItemStatRow, UserRecord
from models.tables.neighbours import CovisitSums
from models.tables.statistics import StatisticsTable
from models.tables.users import Changed, ItemsOf, UserTable, interactions_only
from schemas.codec import Registry, encode, look_up
from schemas.columns import Decoded, EventColumns, Placed, decode_interactions
from schemas.errors import NotReady, StoreCorrupt
from schemas.records import After, AsOf, UserPage, UserQuery
from schemas.settings import Settings
from streams.aside import aside
from streams.kafka.chunks import Chunk
from streams.kafka.dead_letters import letter_of
from streams.state.partitions import Flush, Output, PartitionState
from streams.state.rocks import PartitionStore

__all__ = ["ITEM", "USER", "UserPartition", "dead_letter"]

log = logging.getLogger(__name__)

USER, ITEM = b"u", b"i"
"First byte of the keys of users' records, and of items' statistics."
LOADED_AT_ONCE = 500
"Number of rows entered between two turns of the event loop while a partition is opened."
PUBLISHED_AT_ONCE = 100
"Maximum number of items whose statistics one flush publishes, so that readers' work is bounded at any rate of events."
WAITING_LETTERS = 20_000
"Maximum number of dead letters that wait for a flush."
PAIRS_PER_ROW = 30
"Number of co-visits that take as much memory as a user's record."


def dead_letter(settings: Settings, chunk: Chunk, index: int, code: str, reason: str) -> Output:
    """Build the dead letter of a chunk's record `index`."""
    origin = chunk.topic, chunk.partition, chunk.offsets[index], chunk.timestamps[index]
    key, value = letter_of(origin, code, reason, chunk.keys[index], chunk.values[index], chunk.headers[index])
    return Output(settings.topic("dead-letters"), key, value, partition=0)


class UserPartition:
    """State of one partition's users, and their contributions to item statistics and co-visitation."""

    def __init__(
        self,
        settings: Settings,
        partition: int,
        items: ItemStore,
        cache: Cache,
        metrics: Metrics,
        registry: Registry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: returns epoch seconds, for the age of records."""
        self._settings = settings
        self._items = items
        self._metrics = metrics
        self._clock = clock
        self._registry = registry
        self.partition = partition
        self.state = PartitionState(
            settings,
            PartitionStore(settings.table_dir("users", partition), cache),
            source=settings.topic("interactions"),
            changelog=settings.topic("users-changelog"),
            partition=partition,
            group=settings.app_id,
            take=self._take,
            timed=lambda part: metrics.work_seconds.timed(part=part),
        )
        self._users = UserTable(items, lambda keys: self.state.store.get_many([USER + key for key in keys]))
        self._statistics = StatisticsTable(items)
        self._covisits = CovisitSums(items)
        self._outputs: list[Output] = []
        self._flushed: set[str] = set()
        "Users whose records became durable since the last `take_flushed`."
        self._erased: set[str] = set()
        "Users of `_flushed` who were erased."
        self._taken: set[str] = set()
        "Users in the flush under way."
        self._gone: set[str] = set()
        "Erased users in the flush under way."
        self._more = False
        "Whether unpublished statistics remain."
        self._event_time = 0
        """Newest event time of applied events, impressions included. After a restart and until an event arrives, that of the
        newest interaction, from the item statistics."""
        self._taken_time = 0
        "Newest event time of the events that the last flush took."
        self.held_time = 0
        "Newest event time known of the rows on disk: of the events up to `state.held`, or earlier."
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    async def open(self, committed: int = -1) -> None:
        """Restore the partition; afterwards, and once `state.ready` is set, `apply` and `lookup` may be called.

        `committed`: as for `PartitionState.open`.
        """
        await self.state.open(committed)
        try:
            rows = await asyncio.to_thread(lambda: list(self.state.store.scan(ITEM)))
        except StoreCorrupt as exc:
            await self.state.rebuild(exc)
            rows = await asyncio.to_thread(lambda: list(self.state.store.scan(ITEM)))
        for n, (key, value) in enumerate(rows):
            if n % LOADED_AT_ONCE == 0:
                await asyncio.sleep(0)
            row = ItemStatRow.decode(value)
            self._statistics.put(key[1:].decode(), row)
            self._items.set_statistics(key[1:].decode(), self.partition, row)
            self._event_time = max(self._event_time, row.updated_ms)
        self.held_time = max(self.held_time, self._event_time)
        # after a crash it is not known which statistics were published: all are published again, a few at a time
        self._more = True
        self._items.own_partitions.add(self.partition)
        log.info(
            "users-%d ready at offset %d: %d records from the changelog in %.2f s",
            self.partition,
            self.state.applied,
            self.state.restored_records,
            self.state.restore_seconds,
        )

    async def fetch_schemas(self, chunk: Chunk) -> None:
        """Look up the schemas that a chunk needs, before `state.changing()` and `apply`; waits a bounded time."""
        await look_up(self._registry, chunk.values, chunk.headers)

    async def apply(self, chunk: Chunk) -> None:
        """Apply a whole chunk before a flush can take any of it. Call it within `state.changing()`.

        Records at or below the applied offset were applied before and are skipped. Long chunks are applied in a thread, while
        requests are answered. Requests see a chunk's changes only when all of them, or all up to an erasure, are entered.
        """
        start = next((n for n, offset in enumerate(chunk.offsets) if offset > self.state.applied), len(chunk))
        if start:
            self._metrics.events.add(start, outcome="replayed")
        if start == len(chunk):
            return
        self.state.note_gap(chunk.offsets[start])
        decoded = await aside(len(chunk), self._decode, chunk, start)
        for bad in decoded.bad:
            self._metrics.events.add(outcome="dead_letter", code=bad.code)
            if bad.code == "wrong_partition":
                self._metrics.wrong_partition.add(topic="interactions")
            self._outputs.append(dead_letter(self._settings, chunk, start + bad.index, bad.code, bad.reason))
        columns, row = decoded.columns, 0
        for index, user in decoded.erasures:
            until = int(columns.offset.searchsorted(chunk.offsets[start + index]))
            await self._apply(columns.slice(row, until))
            self._users.erase(user.encode())
            self._metrics.erasures.add()
            row = until
        await self._apply(columns.slice(row, len(columns)))
        self._advance(chunk.last_offset)
        self._metrics.event_visible_seconds.observe(max(0.0, self._clock() - chunk.timestamps[start] / 1000))

    def _decode(self, chunk: Chunk, start: int) -> Decoded:
        with self._metrics.work_seconds.timed(part="decode"):
            return decode_interactions(
                chunk.values[start:],
                chunk.keys[start:],
                chunk.headers[start:],
                chunk.offsets[start:],
                self._registry,
                chunk.timestamps[start:],
                Placed(chunk.partition, self._settings.partitions),
            )

    async def _apply(self, events: EventColumns) -> None:
        if not len(events):
            return
        newest, interactions = int(events.event_time.max()), interactions_only(events)
        if len(interactions) < len(events):
            self._metrics.events.add(len(events) - len(interactions), outcome="shown")
        if len(interactions):
            await self._apply_interactions(interactions)
        self._event_time = max(self._event_time, newest)

    async def _apply_interactions(self, events: EventColumns) -> None:
        changed = await aside(len(events), self._change, events, self._users.items_of(events))
        if changed.damaged:
            self._metrics.records_damaged.add(len(changed.damaged))
            log.error("%d users' records in users-%d cannot be read: they begin anew", len(changed.damaged), self.partition)
        applied = self._users.enter(changed)
        accepted = int(applied.accepted.sum())
        self._items.stream_time_ms = max(self._items.stream_time_ms, int(events.event_time.max()))
        self._metrics.events.add(accepted, outcome="applied")
        self._metrics.events.add(len(events) - accepted, outcome="duplicate")

    def _change(self, events: EventColumns, of: ItemsOf) -> Changed:
        with self._metrics.work_seconds.timed(part="records"):
            changed = self._users.change(events, of)
        with self._metrics.work_seconds.timed(part="statistics"):
            self._statistics.apply(events, changed.applied)
        with self._metrics.work_seconds.timed(part="covisits"):
            self._covisits.add(changed.applied)
        return changed

    def _advance(self, offset: int) -> None:
        self.state.applied = offset
        for wanted, waiter in self._waiters:
            if wanted <= offset and not waiter.done():
                waiter.set_result(None)
        self._waiters = [(wanted, waiter) for wanted, waiter in self._waiters if not waiter.done()]

    def lookup(self, users: Sequence[str]) -> list[UserRecord | None]:
        """Return the records of users as of the newest applied event; None for an unknown user."""
        return self._users.lookup(users)

    async def page(self, query: UserQuery) -> UserPage:
        """List users by the order of their ids' bytes, from the rows on disk.

        A new user is listed once the first event is flushed; an erased one is never listed.

        Raises:
            NotReady: the partition is being restored or closed, or its rows cannot be read and will be rebuilt.
        """
        most, found = query.limit + 1, list[str]()
        start = USER + query.after.encode() + b"\0" if query.after else USER
        # held so that no erased user's row is deleted, and then dropped from memory, between the two looks
        async with self.state.rows_lock:
            if not self.state.ready.is_set():
                raise NotReady("not_ready", f"partition {self.partition} is being restored: try again")
            while len(found) < most:
                wanted = most - len(found)
                try:
                    keys = await asyncio.to_thread(self.state.store.keys, USER, start, wanted)
                except StoreCorrupt as exc:
                    message = f"rows of partition {self.partition} cannot be read, and are rebuilt: try again"
                    raise NotReady("not_ready", message) from exc
                found += [key[1:].decode() for key in keys if not self._users.erased(key[1:])]
                if len(keys) < wanted:
                    break
                start = keys[-1] + b"\0"
        users = tuple(found[: query.limit])
        return UserPage(self.partition, self._settings.partitions, users, users[-1] if len(found) == most else None)

    def rows(self, users: Sequence[str]) -> list[bytes | None]:
        """Return the records of users as rows for `Users.read`, as of the newest applied event; None for an unknown user."""
        return self._users.rows(users)

    def reflects(self, after: After) -> bool:
        """Return whether the event of a token is applied."""
        return self.state.applied >= after.offset

    async def wait_for(self, after: After, timeout_s: float) -> bool:
        """Wait until the event of a token is applied; returns whether it is."""
        if self.reflects(after):
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (after.offset, waiter)
        self._waiters.append(entry)
        try:
            await asyncio.wait([waiter], timeout=max(timeout_s, 0.0))
        finally:
            waiter.cancel()
            if entry in self._waiters:
                self._waiters.remove(entry)
        return self.reflects(after)

    @property
    def as_of(self) -> AsOf | None:
        """Return the newest event that `lookup` reflects; None before the first one."""
        if self.state.applied < 0:
            return None
        return AsOf(self.partition, self.state.applied, self._event_time)

    async def _take(self) -> Flush | None:
        if self.state.applied == self.state.durable and not self._more:
            return None
        with self._metrics.work_seconds.timed(part="take"):
            self._statistics.copy_to_store(self.partition)
        flush, self._taken_time = Flush(outputs=self._outputs, applied=self.state.applied), self._event_time
        self._outputs = []
        await aside(self._users.changed, self._list, flush, self._covisits.hashes())
        with self._metrics.work_seconds.timed(part="take"):
            published = self._statistics.unpublished(PUBLISHED_AT_ONCE)
            self._more = len(published) == PUBLISHED_AT_ONCE
            flush.outputs += [self._statistics_record(row, flush.applied) for row in published]
        return flush

    def _list(self, flush: Flush, hashes: NDArray[np.uint64]) -> None:
        with self._metrics.work_seconds.timed(part="take (in a thread)"):
            people = self._users.take()
            flush.rows = {USER + user: row for user, row in people.items()}
            self._taken = {user.decode() for user in people}
            self._gone = {user.decode() for user, row in people.items() if row is None}
            flush.rows.update((ITEM + item_id.encode(), row) for item_id, row in self._statistics.take().items())
            topic = self._settings.topic("covisits")
            for owner, sums in self._covisits.take(self._settings.partitions, hashes):
                columns = {"items": sums.items, "ends": sums.ends, "others": sums.others, "units": sums.units}
                datum = {name: column.astype("<u8").tobytes() for name, column in columns.items()}
                flush.outputs.append(Output(topic, None, encode("covisit_block", datum), partition=owner))

    def _statistics_record(self, row: int, offset: int) -> Output:
        stats, item_id = self._statistics.get(row), self._items.ids[row]
        datum = {
            "item_id": item_id,
            "partition": self.partition,
            "offset": offset,
            "counts": stats.counts,
            "value_sum": stats.value_sum,
            "value_count": stats.value_count,
            "popularity": stats.popularity,
            "updated_at": stats.updated_ms,
            "first_at": stats.first_ms,
        }
        key = f"{item_id}|{self.partition}".encode()
        return Output(self._settings.topic("item-stats"), key, encode("item_statistics", datum), partition=0)

    async def flush(self) -> None:
        """Make applied events durable, then evict clean records beyond the cache's size."""
        if await self.state.flush():
            self.held_time = max(self.held_time, self._taken_time)
            self._flushed |= self._taken
            self._erased = (self._erased - self._taken) | self._gone
            self._metrics.flush_seconds.set(self.state.flush_seconds, table="users", partition=str(self.partition))
            self._metrics.flush_duration_seconds.observe(self.state.flush_seconds, table="users")
        async with self.state.rows_lock:
            self._users.trim(self._settings.cache_users, self._settings.cache_bytes)

    def take_flushed(self) -> tuple[set[str], set[str]]:
        """Return the users whose records became durable since the last call, and the erased ones; no user is in both."""
        changed, erased = self._flushed - self._erased, self._erased
        self._flushed, self._erased = set(), set()
        return changed, erased

    @property
    def full(self) -> bool:
        """Whether a flush must precede further chunks, so that memory stays bounded."""
        waiting = max(self._users.changed, self._covisits.waiting // PAIRS_PER_ROW)
        if len(self._outputs) > WAITING_LETTERS:
            return True
        return waiting > self._settings.cache_users or self._users.held > 2 * self._settings.cache_bytes

    async def close(self) -> None:
        """Close the partition without a flush."""
        self._items.own_partitions.discard(self.partition)
        async with self.state.rows_lock:
            await self.state.close()
