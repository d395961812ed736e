"""The user table says up to which event it reflects, whatever the events are."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

from agents.metrics import Metrics
from agents.users import UserPartition
from models.items import ItemStore
from models.rules import SHOWN
from schemas.codec import encode
from schemas.kernels import partition_of
from schemas.records import AsOf, Interaction
from streams.chunks import Chunk
from streams.settings import Settings
from streams.store import block_cache

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
