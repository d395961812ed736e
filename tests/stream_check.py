"""Events with duplicates and late arrivals, and the tables that must result from them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from reference import Tables

from models.state.rows import hash64
from schemas.codec import decode, encode
from schemas.errors import BadEvent
from schemas.records import Interaction
from schemas.settings import Settings
from schemas.validation import interaction_from
from streams.state.partitions import APPLIED, Flush, PartitionState, unpack_applied
from streams.state.rocks import PartitionStore, block_cache

START = 1_700_000_000_000
WEEK = 7 * 86_400_000

ITEMS = [f"i{n}" for n in range(40)]


async def records(
    settings: Settings, topic: str, begun: Mapping[int, tuple[int, dict[bytes, bytes]]] | None = None
) -> dict[int, dict[bytes, bytes]]:
    """What a compacted topic holds, per partition, as a committed reader sees it.

    `begun`: per partition, from which offset on it is read, and what is held before.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    tps = [TopicPartition(settings.topic(topic), p) for p in range(settings.partitions)]
    consumer.assign(tps)
    ends = await consumer.end_offsets(tps)
    held: dict[int, dict[bytes, bytes]] = {tp.partition: {} for tp in tps}
    for partition, (position, rows) in (begun or {}).items():
        held[partition] = dict(rows)
        if position >= 0:
            consumer.seek(tps[partition], position)
    while any([await consumer.position(tp) < ends[tp] for tp in tps]):
        for tp, batch in (await consumer.getmany(timeout_ms=100)).items():
            for record in batch:
                if record.value is None:
                    held[tp.partition].pop(record.key, None)
                else:
                    held[tp.partition][record.key] = record.value
    await consumer.stop()
    return held


def recomputed(events: Mapping[int, list[Interaction]]) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """The tables from the events alone, partition by partition, without Kafka: people and statistics, and neighbours."""
    rows: dict[bytes, bytes] = {}
    categories = {item: (f"c{n % 5}",) for n, item in enumerate(ITEMS)}
    together = Tables()
    for partition, stream in events.items():
        tables = Tables.after(stream, categories)
        rows |= {b"u" + user.encode(): person.record().encode() for user, person in tables.people.items()}
        rows |= {f"i{item}|{partition}".encode(): row.encode() for item, row in tables.statistics.items()}
        for item, others in tables.covisits.items():
            mine = together.covisits.setdefault(item, {})
            for other, weight in others.items():
                mine[other] = mine.get(other, 0.0) + weight
    neighbours = {hash64(item).to_bytes(8, "little"): row.encode() for item, row in together.neighbours().items()}
    return rows, neighbours


class Log:
    """The interactions topic as it is, read on from where the last reading ended: what the tables must come of."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._positions: dict[TopicPartition, int] = {}
        self.good: dict[int, list[Interaction]] = {p: [] for p in range(settings.partitions)}
        "Per partition: the events that can be used, in stream order."
        self.bad: set[tuple[int, int]] = set()
        "Partition and offset of the records that cannot."
        self.last: dict[int, int] = dict.fromkeys(range(settings.partitions), -1)
        "Per partition: the newest offset."

    async def read(self) -> None:
        """Read to the end."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._settings.bootstrap_servers, auto_offset_reset="earliest")
        await consumer.start()
        tps = [TopicPartition(self._settings.topic("interactions"), p) for p in self.good]
        consumer.assign(tps)
        for tp in tps:
            consumer.seek(tp, self._positions.get(tp, 0))
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, batch in (await consumer.getmany(timeout_ms=100)).items():
                for record in batch:
                    self.last[tp.partition] = record.offset
                    try:
                        event = interaction_from(decode("interaction", record.value, record.headers)[0])
                    except BadEvent:
                        self.bad.add((tp.partition, record.offset))
                        continue
                    if record.key is None:
                        self.bad.add((tp.partition, record.offset))
                    else:
                        self.good[tp.partition].append(event)
        self._positions = {tp: await consumer.position(tp) for tp in tps}
        await consumer.stop()


def partition_state(settings: Settings, take: Callable[[], Awaitable[Flush]]) -> PartitionState:
    """Partition 0 of the people's table, with rows of a test's own."""
    return PartitionState(
        settings,
        PartitionStore(settings.data_dir / "tables" / "own" / "0", block_cache(8)),
        source=settings.topic("interactions"),
        changelog=settings.topic("users-changelog"),
        partition=0,
        group=settings.app_id,
        take=take,
    )


BARE = {"event_id": "", "user_id": "u1", "item_id": "i1", "event_time": START, "action": "view", "value": None}
POISON: Sequence[Callable[[random.Random], tuple[bytes | None, bytes]]] = (
    lambda rng: (b"u1", rng.randbytes(40)),
    lambda rng: (b"u2", b"\x00" + rng.randbytes(4) + b"of a schema id that no registry knows"),
    lambda rng: (None, encode("interaction", {**BARE, "event_id": str(rng.random())})),
    lambda rng: (b"u3", b"\xc3\x01" + rng.randbytes(900_000)),
)


class Sent:
    """Produces events, and compares what comes of them with what the topic holds."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.rng = settings, random.Random(seed)
        self.log = Log(settings)
        self._sent: list[Interaction] = []
        # idempotent, so that a restarting broker stores each record once and in order
        self._producer = AIOKafkaProducer(
            bootstrap_servers=settings.bootstrap_servers, enable_idempotence=True, linger_ms=5, max_request_size=2 << 20
        )

    @property
    def sent(self) -> int:
        """Events produced so far."""
        return len(self._sent)

    async def start(self) -> None:
        """Produce the catalogue."""
        await self._producer.start()
        for n, item in enumerate(ITEMS):
            datum = {"item_id": item, "title": item, "categories": [f"c{n % 5}"]}
            await self._producer.send_and_wait(self.settings.topic("items"), encode("item", datum), key=item.encode())

    def _event(self) -> Interaction:
        """The next event: a tenth are duplicates, some are hours late, a few a week late."""
        rng, number = self.rng, len(self._sent)
        if number % 10 == 9:
            return rng.choice(self._sent[-50:])
        late = rng.choice((0, 0, 0, 40_000_000, WEEK if number % 50 == 0 else 0))
        user = f"u{int(rng.paretovariate(0.8)) % 200}"
        time_ms = START + number * 1_000 - late
        action, value = rng.choice(("view", "like")), rng.choice((None, 1.0, 4.5))
        return Interaction(f"e{number}", user, rng.choice(ITEMS), time_ms, action, value)

    async def events(self, count: int, *, times: int = 1, poison: float = 0.0) -> None:
        """Produce `count` events, each `times` times; `poison` of all records are ones that cannot be used."""
        topic = self.settings.topic("interactions")
        for n in range(count):
            event = self._event()
            self._sent.append(event)
            value = {name: getattr(event, name) for name in Interaction.__dataclass_fields__}
            for _ in range(times):
                done = await self._producer.send(topic, encode("interaction", value), key=event.user_id.encode())
            if self.rng.random() < poison:
                key, bad = self.rng.choice(POISON)(self.rng)
                done = await self._producer.send(topic, bad, key=key)
            if n % 50 == 49:
                await done
        await self._producer.flush()

    async def stop(self) -> None:
        await self._producer.stop()

    async def check(self, timeout_s: float = 60.0, *, neighbours: bool = True) -> None:
        """The changelogs come to hold, byte for byte, what the topic's events give; what is bad is a dead letter, once.

        Without `neighbours` those are passed over: events that are read again add their co-visits again.
        """
        await self.log.read()
        assert sum(map(len, self.log.good.values())) >= len(self._sent)
        expected, around = recomputed(self.log.good)
        until = asyncio.get_running_loop().time() + timeout_s
        while True:
            users = await records(self.settings, "users-changelog")
            found = {
                key if key[:1] == b"u" else key + f"|{partition}".encode(): value
                for partition, held in users.items()
                for key, value in held.items()
                if key[:1] in {b"u", b"i"}
            }
            applied = {p: unpack_applied(held[APPLIED])[0] if APPLIED in held else -1 for p, held in users.items()}
            tables = await records(self.settings, "covisits-changelog")
            near = {key[1:]: value for held in tables.values() for key, value in held.items() if key[:1] == b"\x01"}
            done = found == expected and (near == around or not neighbours) and applied == self.log.last
            if done or asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(0.5)
        assert found.keys() == expected.keys()
        assert found == expected
        assert near == around or not neighbours
        assert applied == self.log.last, "every offset is applied, deduplicated or dead-lettered"
        letters = await dead_letters(self.settings)
        assert len(letters) == len(set(letters)), "a record became two dead letters"
        assert set(letters) == self.log.bad

    async def check_disk(self, settings: Settings) -> None:
        """What the one worker left on disk, and the changelog from there on, is what the events alone give."""
        expected, _ = recomputed(self.log.good)
        left: dict[int, tuple[int, dict[bytes, bytes]]] = {}
        for partition in range(settings.partitions):
            store = PartitionStore(settings.table_dir("users", partition), block_cache(8))
            store.open()
            left[partition] = store.position, dict(store.scan(b""))
            store.close()
        local: dict[bytes, bytes] = {}
        for partition, rows in (await records(settings, "users-changelog", left)).items():
            local |= {key: value for key, value in rows.items() if key[:1] == b"u"}
            local |= {key + f"|{partition}".encode(): value for key, value in rows.items() if key[:1] == b"i"}
        assert local == expected


async def dead_letters(settings: Settings) -> list[tuple[int, int]]:
    """Partition and offset of every dead-lettered interaction, in the order of the letters."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    tp = TopicPartition(settings.topic("dead-letters"), 0)
    consumer.assign([tp])
    end = (await consumer.end_offsets([tp]))[tp]
    found = []
    while await consumer.position(tp) < end:
        for record in (await consumer.getmany(tp, timeout_ms=200)).get(tp, ()):
            letter = decode("dead_letter", record.value, record.headers)[0]
            if letter["topic"] == settings.topic("interactions"):
                found.append((letter["partition"], letter["offset"]))
    await consumer.stop()
    return found
