"""A partition with partly applied changes is never flushed again, even if a flush was running at that time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from schemas.errors import StoreCorrupt
from schemas.settings import Settings
from streams.state.partitions import Flush, PartitionState
from streams.state.rocks import PartitionStore, block_cache


async def test_a_flush_that_succeeds_does_not_mend_what_was_spoiled_meanwhile(tmp_path: Path) -> None:
    async def take() -> Flush:
        return Flush({b"k": b"v"}, [], 1)

    store = PartitionStore(tmp_path / "0", block_cache(8))
    store.open()
    state = PartitionState(Settings(), store, source="s", changelog="c", partition=0, group="g", take=take)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def transaction(taken: Flush) -> int:
        begun.set()
        await go_on.wait()
        return 3

    state._transaction = transaction  # type: ignore[method-assign]
    flushing = asyncio.create_task(state.flush())
    await begun.wait()
    queued = asyncio.create_task(state.flush())
    await asyncio.sleep(0)
    state.spoil()
    go_on.set()
    assert await flushing
    with pytest.raises(StoreCorrupt):
        await queued
    store.close()
