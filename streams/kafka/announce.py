"""Announcing releases: aliases on the compacted models topic, and the newest value of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import MessageSizeTooLargeError

from schemas.codec import decode, encode
from schemas.errors import BadEvent
from schemas.settings import Settings
from streams.kafka import connect

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS",
    "Announcement",
    "address_of",
    "announce",
    "announced",
    "announcements",
    "decode_announcement",
]

CHAMPION = "champion"
"Alias of the release that serves."
PREVIOUS = "previous"
"Alias of the release that served before; a rollback returns to it."

CHALLENGER = "challenger"
"Alias of the release that may serve next. It is recorded, and no worker serves it."


@dataclass(frozen=True, slots=True)
class Announcement:
    """A release by name. `manifest_sha256` pins its content; `uri` is the address to fetch it from."""

    release: str
    manifest_sha256: str
    uri: str = ""
    published_at: int = 0
    "Epoch ms."


def decode_announcement(value: bytes | None) -> Announcement | None:
    """Decode an announcement's value; None stands for no release.

    Raises:
        BadEvent: it cannot be decoded.
    """
    if not value:
        return None
    datum: Mapping[str, Any] = decode("release_announcement", value)[0]
    return Announcement(datum["release"], datum["manifest_sha256"], datum["uri"], datum["published_at"])


async def announced(settings: Settings) -> dict[str, Announcement | None]:
    """The newest announcement of each alias."""
    return dict(await announcements(settings))


def address_of(known: Sequence[tuple[str, Announcement | None]], release: str, manifest_sha256: str) -> str:
    """Return the newest address under which a release of this content was announced; empty without one.

    `known`: announcements, oldest first.
    """
    for _, named in reversed(known):
        if named is not None and named.uri and (named.release, named.manifest_sha256) == (release, manifest_sha256):
            return named.uri
    return ""


async def announcements(settings: Settings) -> list[tuple[str, Announcement | None]]:
    """Return the announcements that the topic still holds, oldest first, each with its alias. Unreadable ones are left out."""
    consumer = connect.consumer(settings.kafka, connect.ANNOUNCED)
    found: list[tuple[str, Announcement | None]] = []
    try:
        await consumer.start()
        partition = TopicPartition(settings.topic("models"), 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        while await consumer.position(partition) < end:
            for record in (await consumer.getmany(timeout_ms=200)).get(partition, ()):
                try:
                    found.append(((record.key or b"").decode(errors="replace"), decode_announcement(record.value)))
                except BadEvent:
                    continue
    finally:
        await consumer.stop()
    return found


async def announce(settings: Settings, aliases: Mapping[str, Announcement | None]) -> None:
    """Set aliases, all or none of them; None removes one. Returns when the broker has acknowledged them.

    They are one batch of records, which the broker appends as a whole: a rollback that is cut off does not lose the release
    that it leaves. A transaction would do the same, and need rights on a transactional id.

    Raises:
        KafkaError: the broker did not acknowledge them; whether they are set is not known.
    """
    producer = connect.producer(settings.kafka, connect.DURABLE)
    try:
        await producer.start()
        batch = producer.create_batch()
        for alias, announcement in aliases.items():
            value = None
            if announcement is not None:
                datum = {
                    "release": announcement.release,
                    "uri": announcement.uri,
                    "manifest_sha256": announcement.manifest_sha256,
                    "alias": alias,
                    "published_at": announcement.published_at or int(time.time() * 1000),
                }
                value = encode("release_announcement", datum)
            if batch.append(key=alias.encode(), value=value, timestamp=None) is None:
                raise MessageSizeTooLargeError(f"{len(aliases)} aliases do not fit into a batch")
        batch.close()
        await (await producer.send_batch(batch, settings.topic("models"), partition=0))
    finally:
        await producer.stop()
