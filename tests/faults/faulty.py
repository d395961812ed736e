"""A worker with a built-in fault: `python faulty.py NAME[:NUMBER]`. It processes all chunks in threads, like long ones.

Some faults kill the worker when it passes a certain point for the NUMBER-th time. Others are builds that are wrong on purpose,
to prove that the checks detect them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

import agents.worker
from agents.partitions.covisits import CovisitPartition
from agents.partitions.users import ITEM, USER, UserPartition
from models.tables.statistics import StatisticsTable
from models.tables.users import Applied, Changed, ItemsOf
from schemas.columns import EventColumns
from schemas.settings import Settings
from streams import aside
from streams.kafka.chunks import Chunk
from streams.kafka.connection import Connection
from streams.state import partitions
from streams.state.partitions import Flush, Output, PartitionState
from streams.state.rocks import PartitionStore

HOUR_S = 3_600


def countdown(number: int) -> Callable[[], None]:
    """Return a function that kills this process at its `number`-th call."""
    left = number

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return step


def works(_: int) -> None:
    """Run without a fault."""


def dies_in_mid_chunk(number: int) -> None:
    """Die when records are changed in memory, but statistics are not."""
    step, whole = countdown(number), StatisticsTable.apply

    def apply(self: StatisticsTable, events: EventColumns, applied: Applied) -> None:
        step()
        whole(self, events, applied)

    StatisticsTable.apply = apply  # type: ignore[method-assign]


def dies_before_the_acknowledgement(number: int) -> None:
    """Die when changelog records are sent, but none is acknowledged."""
    step, whole = countdown(number), PartitionState._send_rows

    async def send(self: PartitionState, producer: Any, rows: Mapping[bytes, bytes | None]) -> Any:
        sent = await whole(self, producer, rows)
        step()
        return sent

    PartitionState._send_rows = send  # type: ignore[method-assign]


def dies_before_the_commit(number: int) -> None:
    """Die when all records are acknowledged, but the transaction is still open."""
    step, whole = countdown(number), AIOKafkaProducer.commit_transaction

    async def commit(self: AIOKafkaProducer) -> None:
        step()
        await whole(self)

    AIOKafkaProducer.commit_transaction = commit


def dies_after_the_commit(number: int) -> None:
    """Die when the transaction is committed, but not written to RocksDB."""
    step, whole = countdown(number), PartitionState._transaction

    async def transaction(self: PartitionState, taken: Flush) -> int:
        position = await whole(self, taken)
        step()
        return position

    PartitionState._transaction = transaction  # type: ignore[method-assign]


def dies_after_the_write(number: int) -> None:
    """Die when the transaction is also written to RocksDB, before the worker continues."""
    step, whole = countdown(number), PartitionStore.write

    def write(self: PartitionStore, rows: Mapping[bytes, bytes | None], position: int) -> None:
        whole(self, rows, position)
        step()

    PartitionStore.write = write  # type: ignore[method-assign]


def steps_the_clock(number: int) -> None:
    """Step the wall clock at every `number`-th chunk: an hour ahead, then two back, and so on."""
    whole, now, now_ns = UserPartition.apply, time.time, time.time_ns
    seen = 0

    def ahead() -> int:
        return (0, HOUR_S, -HOUR_S)[(seen // number) % 3]

    async def apply(self: UserPartition, chunk: Any) -> None:
        nonlocal seen
        seen += 1
        await whole(self, chunk)

    UserPartition.apply = apply  # type: ignore[method-assign]
    time.time = lambda: now() + ahead()
    time.time_ns = lambda: now_ns() + ahead() * 10**9


def broker_answers(_: int) -> None:
    """Replace error codes in the broker's answers by those in the file `orders` in RIFFLE_HOME, once each, in its order.

    A line is `API CODE`, by their numbers in Kafka's protocol. The file is read when it changes; each line that was carried out
    is appended to the file `done`. The broker has still carried out the request: only its answer is changed.
    """
    from aiokafka.protocol.api import Response
    from aiokafka.protocol.struct import Struct
    from aiokafka.protocol.types import Array, Schema

    home = Path(os.environ["RIFFLE_HOME"])
    orders: list[tuple[int, int]] = []
    read = [0]

    def read_again() -> None:
        try:
            changed_ns = (home / "orders").stat().st_mtime_ns
        except OSError:
            return
        if changed_ns != read[0]:
            read[0] = changed_ns
            lines = (home / "orders").read_text().splitlines()
            orders[:] = [(int(api), int(code)) for api, code in map(str.split, lines)]

    def changed(kind: Any, value: Any, code: int) -> tuple[Any, int]:
        """Return a value in which this code replaces all error codes, and the number of replaced ones."""
        if isinstance(kind, Array):
            each = [changed(kind.array_of, one, code) for one in value or ()]
            return [one for one, _ in each], sum(n for _, n in each)
        if isinstance(kind, Schema):
            fields = zip(kind.names, kind.fields, value, strict=True)
            each = [(code, 1) if name == "error_code" else changed(field, one, code) for name, field, one in fields]
            return tuple(one for one, _ in each), sum(n for _, n in each)
        return value, 0

    whole = Struct.decode.__func__

    def decode(cls: Any, data: Any) -> Any:
        found = whole(cls, data)
        read_again()
        if orders and issubclass(cls, Response) and orders[0][0] == cls.API_KEY:
            api, code = orders[0]
            fields, errors = changed(cls.SCHEMA, [getattr(found, name) for name in cls.SCHEMA.names], code)
            if not errors:
                return found
            orders.pop(0)
            found = cls(*fields)
            with (home / "done").open("a") as done:
                done.write(f"{api} {code}\n")
        return found

    Struct.decode = classmethod(decode)


def stands_still(_: int) -> None:
    """Block in a chunk of partition 0 forever."""
    from agents.partitions.lanes import Lanes

    whole = Lanes.apply

    async def apply(self: Lanes, parts: Any, chunk: Any) -> None:
        if chunk.partition == 0 and chunk.topic.endswith("interactions"):
            await asyncio.sleep(10_000)
        await whole(self, parts, chunk)

    Lanes.apply = apply  # type: ignore[method-assign]


def wrong_disk_first(number: int) -> None:
    """Wrong build: writes RocksDB before the transaction, and dies between the two."""
    step, whole = countdown(number), PartitionState._transaction

    async def transaction(self: PartitionState, taken: Any) -> Any:
        self.store.write(taken.rows, self.store.position)
        assert self.store._db is not None
        self.store._db.flush()  # rows only in memory would be lost with the worker and do no harm
        if any(key.startswith(USER) for key in taken.rows):
            step()
        return await whole(self, taken)

    PartitionState._transaction = transaction  # type: ignore[method-assign]


def wrong_offsets_only(number: int) -> None:
    """Wrong build: each `number`-th flush commits its offsets and drops its rows."""
    whole, flushes = PartitionState._send_rows, 0

    async def send(self: PartitionState, producer: Any, rows: Any) -> Any:
        nonlocal flushes
        flushes += 1
        kept = {key: value for key, value in rows.items() if key == partitions.APPLIED} if flushes % number == 0 else rows
        return await whole(self, producer, kept)

    PartitionState._send_rows = send  # type: ignore[method-assign]


def wrong_applies_again(_: int) -> None:
    """Wrong build: co-visits that are read again count twice."""
    whole = CovisitPartition.apply

    async def apply(self: CovisitPartition, chunk: Any) -> None:
        for _ in range(2):
            self.state.applied = -1
            await whole(self, chunk)

    CovisitPartition.apply = apply  # type: ignore[method-assign]


def wrong_swallows_bad_records(_: int) -> None:
    """Wrong build: records that cannot be decoded are dropped without a dead letter."""
    import agents.partitions.users

    def letterless(settings: Settings, chunk: Chunk, index: int, code: str, reason: str) -> Output:
        return Output(settings.topic("item-stats"), b"nothing", b"", partition=0)

    agents.partitions.users.dead_letter = letterless


def wrong_keeps_expiring_connections(_: int) -> None:
    """Wrong build: connections are not replaced before their login expires."""

    def stay(self: Connection) -> None:
        del self

    Connection.retire = stay  # type: ignore[method-assign]


def wrong_takes_half_a_chunk(_: int) -> None:
    """Wrong build: a flush does not wait for the chunk that is being applied. The worker dies after the first such flush."""

    class Open:
        """A lock that locks nothing."""

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: object) -> None: ...

    prepare, change, take = PartitionState.__init__, UserPartition._change, UserPartition._take
    transaction = PartitionState._transaction
    halfway: set[int] = set()
    half: set[PartitionState] = set()

    def init(self: PartitionState, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        self.rows_lock = Open()  # type: ignore[assignment]

    def slowly(self: UserPartition, events: EventColumns, of: ItemsOf) -> Changed:
        changed = change(self, events, of)
        halfway.add(self.partition)
        time.sleep(0.3)
        halfway.discard(self.partition)
        return changed

    async def taken(self: UserPartition) -> Any:
        mid = self.partition in halfway
        flush = await take(self)
        if mid and flush is not None and any(key.startswith(ITEM) for key in flush.rows):
            half.add(self.state)
        return flush

    async def committed(self: PartitionState, taken: Flush) -> int:
        position = await transaction(self, taken)
        if self in half:
            os.kill(os.getpid(), signal.SIGKILL)
        return position

    PartitionState.__init__, PartitionState._transaction = init, committed  # type: ignore[method-assign]
    UserPartition._change, UserPartition._take = slowly, taken  # type: ignore[method-assign]


def main() -> None:
    """Install the fault, then run a worker."""
    name, _, number = sys.argv[1].partition(":")
    fault = globals()[name]
    fault(int(number or 1))
    aside.LONG = 1
    sys.argv = sys.argv[:1]
    agents.worker.main()


if __name__ == "__main__":
    main()
