"""The dead-letter topic: content of a letter, reading letters, and replaying their records once the cause is fixed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.codec import decode, encode
from schemas.columns import ERASE
from schemas.errors import BadEvent
from schemas.kernels import partition_of
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.aiokafka_patches import AIOKafkaConsumer

__all__ = ["CUT_BYTES", "REPLAYED_FROM", "letter_of", "origins_of", "read_letters", "replay_letters"]

CUT_BYTES = 256 << 10
"""Length at which a value is cut in a dead letter; only its origin holds it whole. A letter must always fit the broker's limit,
because one that does not would stop its partition for good."""
KEY_BYTES = 4 << 10
NAME_CHARACTERS, HEADER_BYTES, HEADERS = 256, 1 << 10, 50
"Limits of a header's name and value, and of the number of headers."
REPLAYED_FROM = "riffle-replayed-from"
"Header of a replayed record: its original topic, partition and offset."


def letter_of(
    origin: tuple[str, int, int, int],
    code: str,
    reason: str,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
) -> tuple[bytes | None, bytes]:
    """Key and value of a record's dead letter. Large fields are cut; the origin locates the original.

    `origin`: topic, partition, offset, and timestamp in epoch milliseconds.
    """
    topic, partition, offset, timestamp = origin
    kept = None if key is None else key[:KEY_BYTES]
    letter = {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "timestamp": timestamp,
        "code": code,
        "reason": reason[:1000],
        "key": kept,
        "value": None if value is None else value[:CUT_BYTES],
        "headers": {name[:NAME_CHARACTERS]: (value or b"")[:HEADER_BYTES] for name, value in headers[:HEADERS]},
    }
    return kept or None, encode("dead_letter", letter)


def _cut(letter: Mapping[str, Any]) -> bool:
    """Whether the letter may lack a part of its record."""
    headers = letter["headers"]
    return (
        len(letter["value"] or b"") >= CUT_BYTES
        or len(letter["key"] or b"") >= KEY_BYTES
        or len(headers) >= HEADERS
        or any(len(name) >= NAME_CHARACTERS or len(value) >= HEADER_BYTES for name, value in headers.items())
    )


@contextlib.asynccontextmanager
async def _reader(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group that reads committed records."""
    consumer = connect.consumer(settings.kafka, connect.COMMITTED)
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def read_letters(settings: Settings, newest: int | None = None) -> AsyncIterator[dict[str, Any]]:
    """Each dead letter up to now, oldest first: the fields of its schema, and `letter`, its offset in the topic.

    Only the first letter of each record is returned. `newest`: read only about so many records from the end of the topic.
    """
    told = set[tuple[object, ...]]()
    async with _reader(settings) as consumer:
        tp = TopicPartition(settings.topic("dead-letters"), 0)
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        if newest is not None:
            consumer.seek(tp, max((await consumer.beginning_offsets([tp]))[tp], end - newest))
        while await consumer.position(tp) < end:
            for record in (await consumer.getmany(tp, timeout_ms=200, max_records=1_000)).get(tp, ()):
                try:
                    letter = decode("dead_letter", record.value or b"")[0]
                    origin = tuple(letter[name] for name in ("topic", "partition", "offset", "timestamp"))
                    if origin not in told:
                        told.add(origin)
                        yield {"letter": record.offset, **letter}
                except BadEvent as exc:
                    yield {"letter": record.offset, "code": exc.code, "reason": f"not a dead letter: {exc.message}"}


def origins_of(letters: Iterable[Mapping[str, Any]]) -> set[bytes]:
    """Return the origins of the letters' records that were replayed before, as their headers hold them."""
    return {found for letter in letters if (found := letter.get("headers", {}).get(REPLAYED_FROM)) is not None}


async def replay_letters(
    settings: Settings,
    letters: Iterable[Mapping[str, Any]],
    came_back: Collection[bytes] = (),
    within_s: float | None = None,
) -> dict[str, int]:
    """Produce the records of `letters` to their topics again; returns how many were sent and how many were not, by reason.

    An event that was applied before is dropped again as a duplicate. Only the newest state of a catalogue entry counts: an
    entry that a newer one followed is `superseded` and not sent. The same holds for a record that was replayed before and came
    back as one of `letters`, or as one of `came_back` (`origins_of`). Events of users who were erased later are `erased` and
    not sent. A record that is still wrong becomes a dead letter again. `failed` counts records that Kafka did not acknowledge;
    sending them again is safe. `within_s`: seconds for the looks before, and again for sending.

    Raises:
        TimeoutError: the looks before took longer; nothing was sent.
    """
    letters = list(letters)
    outcome = {"sent": 0, "cut": 0, "unreadable": 0, "superseded": 0, "erased": 0, "failed": 0}
    async with asyncio.timeout(within_s):
        items, events = settings.topic("items"), settings.topic("interactions")
        followed = await _newest(settings, [letter for letter in letters if letter.get("topic") == items])
        erased = await _erased(settings, [letter for letter in letters if letter.get("topic") == events])
    back = origins_of(letters) | set(came_back)
    chosen = []
    for letter in letters:
        if "topic" not in letter:
            outcome["unreadable"] += 1
        elif _cut(letter):
            outcome["cut"] += 1
        elif letter["letter"] in erased:
            outcome["erased"] += 1
        elif _origin(letter) in back or followed.get((letter["topic"], letter["key"]), -1) > letter["offset"]:
            outcome["superseded"] += 1
        else:
            chosen.append(letter)
    outcome["sent"] = await _sent(settings, chosen, within_s)
    outcome["failed"] = len(chosen) - outcome["sent"]
    return outcome


def _origin(letter: Mapping[str, Any]) -> bytes:
    return f"{letter['topic']}-{letter['partition']}@{letter['offset']}".encode()


async def _sent(settings: Settings, letters: Sequence[Mapping[str, Any]], within_s: float | None) -> int:
    """Produce these records at once, in their order within a partition; returns how many were acknowledged."""
    if not letters:
        return 0
    producer = connect.producer(settings.kafka, connect.DURABLE)
    sending: list[asyncio.Future[Any]] = []
    try:
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(within_s):
                await producer.start()
                for letter in letters:
                    headers = [(name, value) for name, value in letter["headers"].items() if name != REPLAYED_FROM]
                    headers.append((REPLAYED_FROM, _origin(letter)))
                    # a record without a key keeps its partition, one with a key goes to its key's partition
                    partition = letter["partition"] if letter["key"] is None else None
                    value, key = letter["value"], letter["key"]
                    sending.append(await producer.send(letter["topic"], value, key=key, headers=headers, partition=partition))
                await asyncio.wait(sending)
    finally:
        with contextlib.suppress(KafkaError):
            await producer.stop()  # waits for what is under way
    return sum(one.done() and not one.cancelled() and one.exception() is None for one in sending)


async def _erased(settings: Settings, letters: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the numbers of those letters of events whose users were erased later.

    Reads the partitions of their keys from the oldest of these letters to the end.
    """
    waiting: dict[tuple[TopicPartition, bytes], list[tuple[int, int]]] = {}
    oldest: dict[TopicPartition, int] = {}
    found = set[int]()
    keyed = [
        (TopicPartition(letter["topic"], partition_of(letter["key"], settings.partitions)), letter)
        for letter in letters
        if letter["key"]
    ]
    if not keyed:
        return found
    async with _reader(settings) as consumer:
        consumer.assign(list({tp for tp, _ in keyed}))
        for tp, letter in keyed:
            offset = await _offset_in(consumer, tp, letter)
            oldest[tp] = min(offset, oldest.get(tp, offset))
            waiting.setdefault((tp, letter["key"]), []).append((offset, letter["letter"]))
        ends = await consumer.end_offsets(list(oldest))
        begins = await consumer.beginning_offsets(list(oldest))
        for tp, offset in oldest.items():
            consumer.seek(tp, min(max(offset, begins[tp]), ends[tp]))
        for tp, end in ends.items():
            while await consumer.position(tp) < end:
                for record in (await consumer.getmany(tp, timeout_ms=200, max_records=1_000)).get(tp, ()):
                    if not record.value and ERASE in record.headers and (tp, record.key) in waiting:
                        found |= {number for offset, number in waiting[tp, record.key] if offset < record.offset}
    return found


async def _offset_in(consumer: AIOKafkaConsumer, tp: TopicPartition, letter: Mapping[str, Any]) -> int:
    """Return the offset in its key's partition after which an erasure is later than a letter's event.

    That of the event, or of the first one if it was replayed; if it was on another partition, by its time.
    """
    topic, _, rest = letter["headers"].get(REPLAYED_FROM, b"").decode(errors="replace").rpartition("-")
    number, _, offset = rest.partition("@")
    first = letter["partition"], letter["offset"]
    if topic == letter["topic"] and number.isdecimal() and offset.isdecimal():
        first = int(number), int(offset)
    if first[0] == tp.partition:
        return int(first[1])
    found = (await consumer.offsets_for_times({tp: max(letter["timestamp"], 0)}))[tp]
    return int(found.offset if found is not None else (await consumer.end_offsets([tp]))[tp]) - 1


async def _newest(settings: Settings, letters: Sequence[Mapping[str, Any]]) -> dict[tuple[str, bytes | None], int]:
    """The newest offset of each of these records' keys, by topic and key, in the records' own partition."""
    found: dict[tuple[str, bytes | None], int] = {}
    if not letters:
        return found
    oldest: dict[TopicPartition, int] = {}
    for letter in letters:
        tp = TopicPartition(letter["topic"], letter["partition"])
        oldest[tp] = min(letter["offset"], oldest.get(tp, letter["offset"]))
    asked = {(letter["topic"], letter["key"]) for letter in letters}
    async with _reader(settings) as consumer:
        consumer.assign(list(oldest))
        ends = await consumer.end_offsets(list(oldest))
        for tp, offset in oldest.items():
            consumer.seek(tp, offset)
        for tp, end in ends.items():
            while await consumer.position(tp) < end:
                for record in (await consumer.getmany(tp, timeout_ms=200, max_records=1_000)).get(tp, ()):
                    if (tp.topic, record.key) in asked:
                        found[tp.topic, record.key] = record.offset
    return found
