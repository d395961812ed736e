"""The user table reports the newest event that it reflects, for any events."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path

from fakes import registry_server
from grown import assert_columns

from agents.metrics import Metrics
from agents.partitions.users import USER, UserPartition
from models.items.store import ItemStore
from models.rules import SHOWN
from models.state.users import Users
from schemas.codec import decode, encode, schema_text
from schemas.columns import ERASE
from schemas.kernels import partition_of
from schemas.records import AsOf, Interaction
from schemas.registry import ConfluentRegistry
from schemas.settings import Settings
from streams.kafka.chunks import Chunk
from streams.state.rocks import block_cache

START = 1_700_000_000_000
ANN = partition_of(b"ann", 4)


def chunk(events: list[Interaction], first: int) -> Chunk:
    offsets = range(first, first + len(events))
    keys, values = [e.user_id.encode() for e in events], [encode("interaction", asdict(e)) for e in events]
    return Chunk("interactions", ANN, offsets, keys, values, [e.event_time for e in events], [()] * len(events))


def test_what_was_only_shown_counts_for_what_is_reflected_and_for_no_statistic(tmp_path: Path) -> None:
    async def told() -> None:
        items = ItemStore()
        users = UserPartition(Settings(home=tmp_path), ANN, items, block_cache(8), Metrics())
        users.state.store.open()
        try:
            before = users.as_of
            assert before is None, "no event yet"
            await users.apply(chunk([Interaction("a", "ann", "i", START + 5, SHOWN)], 0))
            assert (users.as_of, items.stream_time_ms) == (AsOf(ANN, 0, START + 5), 0)
            await users.apply(chunk([Interaction("b", "ann", "i", START + 2, "view")], 1))
            assert (users.as_of, items.stream_time_ms) == (AsOf(ANN, 1, START + 5), START + 2)
            both = [Interaction("c", "ann", "i", START + 8, "view"), Interaction("d", "ann", "j", START + 9, SHOWN)]
            await users.apply(chunk(both, 2))
            assert (users.as_of, items.stream_time_ms) == (AsOf(ANN, 3, START + 9), START + 8)
        finally:
            users.state.store.close()

    asyncio.run(told())


async def test_a_partitions_columns_hold_the_records_of_its_store_and_of_newer_events(tmp_path: Path) -> None:
    users = UserPartition(Settings(home=tmp_path), ANN, ItemStore(), block_cache(8), Metrics())
    users.state.store.open()
    try:
        near = [name for name in map(str, range(99)) if partition_of(name.encode(), 4) == ANN]
        stored, newer, nobody = near[:3]
        await users.apply(chunk([Interaction("e1", stored, "i", START)], 0))
        users.state.store.write({USER + key: row for key, row in users._users.take().items()}, 0)
        users._users.trim(0, 0)
        await users.apply(chunk([Interaction("e2", newer, "j", START + 1)], 1))
        found = Users.read(users.rows([newer, nobody, stored]))
        assert_columns(found, users.lookup([newer, nobody, stored]))
        assert found.known.tolist() == [True, False, True]
    finally:
        users.state.store.close()


async def test_events_that_came_by_another_partition_are_dead_letters_and_counted(tmp_path: Path) -> None:
    items, metrics = ItemStore(), Metrics()
    users = UserPartition(Settings(home=tmp_path), ANN, items, block_cache(8), metrics)
    users.state.store.open()
    try:
        stranger = next(name for name in map(str, range(99)) if partition_of(name.encode(), 4) != ANN)
        events = [Interaction(f"e{n}", user, "i", START) for n, user in enumerate(["ann", stranger, "ann", stranger])]
        sent = chunk(events, 0)
        await users.apply(sent)
        erase = Chunk("interactions", ANN, [4, 5], [stranger.encode(), b"ann"], [None] * 2, [START] * 2, [[ERASE]] * 2)
        await users.apply(erase)
    finally:
        users.state.store.close()
    assert metrics.events.value(outcome="applied") == 2
    assert metrics.wrong_partition.value(topic="interactions") == 3
    assert metrics.erasures.value() == 1
    letters = [decode("dead_letter", output.value or b"")[0] for output in users._outputs]
    assert [(letter["offset"], letter["code"]) for letter in letters] == [(n, "wrong_partition") for n in (1, 3, 4)]
    assert all("partitioner=murmur2_random" in letter["reason"] for letter in letters)


async def test_short_chunks_do_not_ask_the_registry_on_the_event_loop(tmp_path: Path) -> None:
    with registry_server(schemas=[schema_text("interaction")], mood="hang") as server:
        registry = ConfluentRegistry(server.url, attempt_s=0.2, wait_s=0.2, first_retry_s=0.02)
        metrics = Metrics()
        users = UserPartition(Settings(home=tmp_path), ANN, ItemStore(), block_cache(8), metrics, registry)
        users.state.store.open()
        try:
            one = chunk([Interaction("e", "ann", "i", START)], 0)
            value = b"\0\0\0\0\1" + (one.values[0] or b"")[10:]
            both = replace(
                one, offsets=[0, 1], keys=[b"ann"] * 2, values=[value, one.values[0]], timestamps=[START] * 2, headers=[()] * 2
            )
            await users.fetch_schemas(both)
            await users.apply(both)
            assert metrics.events.value(outcome="dead_letter", code="registry_unavailable") == 1
            assert metrics.events.value(outcome="applied") == 1
            server.mood = "sound"
            server.released.set()
            await registry.answered(1)
            again = replace(both, offsets=[2, 3], values=[value, value])
            await users.fetch_schemas(again)
            await users.apply(again)
            assert metrics.events.value(outcome="duplicate") == 2
        finally:
            users.state.store.close()
            registry.close()
