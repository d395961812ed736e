"""Reads partitions with librdkafka, in a thread that holds the interpreter's lock only to pass records on."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any

from aiokafka.errors import KafkaError
from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from faust.types import TP

from schemas.kafka_settings import KafkaSettings
from streams.kafka.native import clients

__all__ = ["UNREADABLE", "NativeReader", "Read"]

log = logging.getLogger(__name__)

POLL_S = 0.05
"Seconds after which the thread looks whether it reads other partitions, or ends."
AT_ONCE = 64
"Records that are passed on together, at most, so that the event loop has other turns in a burst."
AHEAD = 2
"Lists of records that wait to be taken before the thread reads no further."
UNREADABLE: Sequence[tuple[str, bytes]] = (("\N{REPLACEMENT CHARACTER}", b""),)
"Headers of a record that has a header whose name is not UTF-8: librdkafka's client cannot return any of them."
_headers = methodcaller("headers")
"""Returns a message's headers. If a name is not UTF-8, the client returns a list with an exception set. The interpreter checks
for that only where it calls a function by its general protocol, as here, and not where it has specialised a call."""


@dataclass(frozen=True, slots=True)
class Read:
    """A record, with aiokafka's names."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, eq=False)
class _Assignment:
    """Partitions to read, with the offset at which each begins; None for its beginning."""

    starts: Mapping[TP, int | None] = field(default_factory=dict)


class NativeReader:
    """Reads the partitions that `read` names, and calls `take` in the event loop with records of one partition, in their order.

    `failed` is called in the event loop with errors, after which reading goes on. The group's membership and its offsets are
    the caller's: this consumer joins no group and commits nothing.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        group_id: str,
        take: Callable[[TP, Sequence[Read]], None],
        failed: Callable[[KafkaError], None],
    ) -> None:
        self._kafka = kafka
        self._group_id = group_id
        self._take = take
        self._failed = failed
        self._wanted = _Assignment()
        self._room = threading.Semaphore(AHEAD)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def over(self) -> bool:
        """Whether the thread has ended by an error."""
        return self._thread is not None and not self._thread.is_alive() and not self._ending.is_set()

    def read(self, starts: Mapping[TP, int | None]) -> None:
        """Read these partitions from these offsets on, and no others. Records that were read but not taken are dropped."""
        self._wanted = _Assignment(dict(starts))
        if self._thread is None and starts:
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, args=(loop,), name="native-reader", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread. It blocks for a moment."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            wanted, files = self._wanted, clients.Files(self._kafka)
            positions = dict(wanted.starts)
            while not self._ending.is_set():
                if wanted is not self._wanted:
                    wanted = self._wanted
                    positions = dict(wanted.starts)
                # a consumer of its own for each assignment, because one keeps the ids of topics that were made anew since
                consumer = clients.consumer(self._kafka, self._group_id)
                try:
                    consumer.assign([_native(tp, start) for tp, start in positions.items()])
                    while wanted is self._wanted and not self._ending.is_set() and not files.changed():
                        self._pass_some(consumer, wanted, positions, loop)
                finally:
                    consumer.close()
        except Exception:
            log.exception("topics that must not wait are not read any more")

    def _pass_some(
        self, consumer: Any, assigned: _Assignment, positions: dict[TP, int | None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Wait for records, and pass them to the event loop when it has room. `positions`: the offsets that come next."""
        first = consumer.poll(POLL_S)
        if first is None:
            return
        messages = [first, *consumer.consume(AT_ONCE - 1, 0.0)]
        while not self._room.acquire(timeout=POLL_S):
            if self._ending.is_set():
                return
        for message in messages:
            if message.error() is None:
                positions[TP(message.topic(), message.partition())] = message.offset() + 1
        loop.call_soon_threadsafe(self._pass_on, assigned, messages)

    def _pass_on(self, assigned: _Assignment, messages: Sequence[Any]) -> None:
        self._room.release()
        if assigned is not self._wanted:
            return  # they are read again from the new starts
        read: dict[TP, list[Read]] = {}
        for message in messages:
            if (error := message.error()) is not None:
                self._failed(clients.error_of(error))
            else:
                read.setdefault(TP(message.topic(), message.partition()), []).append(_read(message))
        for tp, records in read.items():
            self._take(tp, records)


def _native(tp: TP, start: int | None) -> TopicPartition:
    return TopicPartition(tp.topic, tp.partition, OFFSET_BEGINNING if start is None else start)


def _read(message: Any) -> Read:
    try:
        headers = _headers(message) or ()
    except SystemError:  # a header's name is not UTF-8
        headers = UNREADABLE
    return Read(message.offset(), message.key(), message.value(), max(message.timestamp()[1], 0), headers)
