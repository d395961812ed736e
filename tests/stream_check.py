"""Events with duplicates and late ones, and the tables that must come of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from reference import Tables

from models.state import hash64
from schemas.codec import encode
from schemas.records import Interaction
from streams.settings import Settings
from streams.store import PartitionStore, block_cache

START = 1_700_000_000_000
WEEK = 7 * 86_400_000

ITEMS = [f"i{n}" for n in range(40)]


async def records(settings: Settings, topic: str) -> dict[int, dict[bytes, bytes]]:
    """What a compacted topic holds, per partition, as a committed reader sees it."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    tps = [TopicPartition(settings.topic(topic), p) for p in range(settings.partitions)]
    consumer.assign(tps)
    ends = await consumer.end_offsets(tps)
    held: dict[int, dict[bytes, bytes]] = {tp.partition: {} for tp in tps}
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


class Sent:
    """A producer that remembers what it sent, per partition."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.rng = settings, random.Random(seed)
        self.streams: dict[int, list[Interaction]] = {p: [] for p in range(settings.partitions)}
        self._sent: list[Interaction] = []
        self._producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, acks="all", linger_ms=5)

    async def start(self) -> None:
        """Produce the catalogue."""
        await self._producer.start()
        for n, item in enumerate(ITEMS):
            datum = {"item_id": item, "title": item, "categories": [f"c{n % 5}"]}
            await self._producer.send_and_wait(self.settings.topic("items"), encode("item", datum), key=item.encode())

    async def events(self, count: int) -> None:
        """Produce events: a tenth duplicates, some hours late, a few a week late."""
        rng, topic = self.rng, self.settings.topic("interactions")
        for n in range(count):
            number = len(self._sent)
            event = Interaction(
                f"e{number}",
                f"u{int(rng.paretovariate(0.8)) % 200}",
                rng.choice(ITEMS),
                START + number * 1_000 - rng.choice((0, 0, 0, 40_000_000, WEEK if n % 50 == 0 else 0)),
                rng.choice(("view", "like")),
                rng.choice((None, 1.0, 4.5)),
            )
            if n % 10 == 0 and self._sent:
                event = rng.choice(self._sent[-50:])
            self._sent.append(event)
            value = {name: getattr(event, name) for name in Interaction.__dataclass_fields__}
            done = await self._producer.send(topic, encode("interaction", value), key=event.user_id.encode())
            done.add_done_callback(lambda f, e=event: self.streams[f.result().partition].append(e))
            if n % 100 == 99:
                await done
        await self._producer.flush()

    async def stop(self) -> None:
        await self._producer.stop()

    async def check(self, timeout_s: float = 60.0) -> None:
        """The changelogs come to hold, byte for byte, what the events alone give."""
        expected, around = recomputed(self.streams)
        until = asyncio.get_running_loop().time() + timeout_s
        while True:
            found = {
                key if key[:1] == b"u" else key + f"|{partition}".encode(): value
                for partition, held in (await records(self.settings, "users-changelog")).items()
                for key, value in held.items()
                if key[:1] in {b"u", b"i"}
            }
            tables = await records(self.settings, "covisits-changelog")
            neighbours = {key[1:]: value for held in tables.values() for key, value in held.items() if key[:1] == b"\x01"}
            if (found == expected and neighbours == around) or asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(0.5)
        assert found.keys() == expected.keys()
        assert found == expected
        assert neighbours == around

    def check_disk(self, settings: Settings) -> None:
        """What the one worker left on disk is what the events alone give."""
        expected, _ = recomputed(self.streams)
        local: dict[bytes, bytes] = {}
        for partition in range(settings.partitions):
            store = PartitionStore(settings.data_dir / "tables" / "users" / str(partition), block_cache(8))
            store.open()
            local |= dict(store.scan(b"u"))
            local |= {key + f"|{partition}".encode(): value for key, value in store.scan(b"i")}
            store.close()
        assert local == expected
